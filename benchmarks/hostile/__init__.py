"""Files that attack whoever opens them: each function here yields the cases of a kind; `hostile_files.py` runs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = Any
Content = bytes | Callable[[], bytes]


@dataclass(frozen=True)
class Base:
    """What the files are made from: a run with its exports, an image, and the file that only an attack can create."""

    folder: Path
    canary: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs/base"

    @property
    def image(self) -> Path:
        return self.folder / "image.png"

    @property
    def onnx(self) -> Path:
        return self.run / "export/model.onnx"

    @property
    def archive(self) -> Path:
        return self.run / "export/model.pt2"

    @property
    def touch(self) -> str:
        """The shell command that every trick tries to run."""
        return f"touch {self.canary}"


@dataclass(frozen=True)
class Case:
    """A command with hostile files: `argv` of convsmith, run in an empty folder that `files` are written to first.

    `{run}` in `argv` is a copy of the base's run, over which the files of `in_run` are written; `make` does whatever
    else is to be done in the folder. `armed` opens the first file as careless software would, and shows that it bites.
    Where hundreds of files differ only in what one function reads, `direct` is that function, of the first file's path.
    """

    name: str
    argv: tuple[str, ...]
    files: dict[str, Content] = field(default_factory=dict)
    in_run: dict[str, Content] = field(default_factory=dict)
    make: Callable[[Path], None] | None = None
    armed: Callable[[Path], object] | None = None
    direct: Callable[[Path], object] | None = None  # instead of `argv`: the function by which the verb reads the file
    real: bool = False  # a process of its own, since starting it is the point

    def write(self, base: Base, folder: Path) -> list[str]:
        """Create the files in `folder`; returns the arguments."""
        run = folder / "run"
        if any("{run}" in word for word in self.argv):
            shutil.copytree(base.run, run, symlinks=True)
        for place, files in ((folder, self.files), (run, self.in_run)):
            for name, content in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).unlink(missing_ok=True)
                (place / name).write_bytes(content if isinstance(content, bytes) else content())
        if self.make:
            self.make(folder)
        return [word.replace("{run}", "run").replace("{image}", str(base.image)) for word in self.argv]
