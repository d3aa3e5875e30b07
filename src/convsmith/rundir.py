"""A run directory: where each file lies, and how files are written so that none is ever half there."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from convsmith.errors import UserError, command


class RunDir:
    """Paths below ``runs/<name>/``. Knows files alone: neither configs nor tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.splits = path / "splits.json"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.skipped = path / "skipped.json"
        self.test_access = path / "test-access.jsonl"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.log_file = path / "log.txt"
        self.study = path / "study.yaml"  # of a study: what the user asked for
        self.lr_find = path / "lr_find.csv"  # of a learning-rate range test

    def evaluation(self, split: str) -> Path:
        return self.path / f"evaluation-{split}.json"

    def predictions(self, split: str) -> Path:
        return self.path / f"predictions-{split}.csv"

    def log(self, line: str) -> None:
        """Add a line with the time to log.txt."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{now()} {line}\n")

    def warn(self, line: str) -> None:
        """A warning: to log.txt and to stderr."""
        self.log(f"warning: {line}")
        print(f"warning: {line}", file=sys.stderr)

    def record_test_access(self, command: str) -> None:
        """Note in test-access.jsonl, before the test split is opened, when and by which command."""
        with self.test_access.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"when": now(), "command": command}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def lock(self, wait: float = 0) -> Iterator[None]:
        """Hold the directory for this process; a UserError where another one holds it after `wait` seconds."""
        lock = FileLock(self.path / ".lock", timeout=wait)
        try:
            with explain_os_errors(f"run '{self.path}'"):
                lock.acquire()
        except Timeout:
            raise UserError(f"run '{self.path}' is in use by another process: wait for it, or stop it first") from None
        try:
            yield
        finally:
            lock.release()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def refuse_taken(runs_dir: Path, name: str | None) -> None:
    """A UserError where `name` is taken or cannot be a folder's name."""
    if name is None:
        return
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name) or len(name.encode()) > 200:
        raise UserError(f"run name '{name}' must be a plain folder name, without slashes, of at most 200 bytes")
    path = runs_dir / name
    if path.exists():
        raise UserError(
            f"run '{path}' exists already: choose another --name, or go on with it: {command('resume', path)}"
        )


@contextmanager
def draft(runs_dir: Path) -> Iterator[RunDir]:
    """A hidden directory in which a new run is put together; it is gone at the end unless `publish` took it.

    So a run directory is there whole or not at all, wherever the process is killed.
    """
    with explain_os_errors(f"the run directory below '{runs_dir}'"):
        runs_dir.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=".new-", dir=runs_dir))
        path.chmod(0o777 & ~_umask())
        try:
            yield RunDir(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)


def publish(run: RunDir, name: str | None, stem: str) -> RunDir:
    """Give a draft its name: `name`, or without one the first free of ``stem-1``, ``stem-2``, ... Never overwrites.

    Raises UserError as `refuse_taken` does.
    """
    runs_dir = run.path.parent
    for number in itertools.count(1):
        refuse_taken(runs_dir, name)
        path = runs_dir / (name or f"{stem}-{number}")
        if path.exists():
            continue
        try:
            os.rename(run.path, path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # taken by another process in between
                continue
            raise
        sync_folder(runs_dir)
        return RunDir(path)
    raise AssertionError("numbers do not end")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_run(path: str | Path, *needs: str) -> RunDir:
    """An existing run; a UserError names what is missing: the run itself or a file that is needed."""
    run = RunDir(Path(path))
    if not run.path.is_dir() or not run.config.exists():
        parent = run.path.parent
        there = (
            sorted(entry.name for entry in parent.iterdir() if (entry / "config.yaml").exists())
            if parent.is_dir()
            else []
        )
        listed = f" Runs in '{parent}': {', '.join(there[:10])}" if there else ""
        reason = "is not a run directory (it has no config.yaml)" if run.path.exists() else "does not exist"
        raise UserError(f"run '{path}' {reason}.{listed}")
    for need in needs:
        if not (run.path / need).exists():
            lost = run.summary.exists() or need in (run.checkpoints.name, run.splits.name)  # no resume makes these
            mend = "any more: restore it, or train again" if lost else f"yet: {command('resume', path)} makes it"
            raise UserError(f"run '{path}' has no {need} {mend}")
    return run


def write_text(path: Path, text: str) -> None:
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        name = text[max(error.start - 40, 0) : error.end].encode("utf-8", "backslashreplace").decode()
        raise UserError(f"cannot write '{path}': a name that is not UTF-8 ('{name}'): rename that folder") from None
    write_bytes(path, content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *keys: str) -> Any:
    """The JSON value in a file; with `keys` an object that has them. UserError where it is not so."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing: restore it, or run again") from None
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({str(error).splitlines()[0]}): restore it, or run again") from None
    if keys and not (isinstance(value, dict) and set(keys) <= value.keys()):
        raise UserError(f"'{path}' is damaged (it should have {' and '.join(keys)}): restore it, or run again")
    return value


def read_splits(run: RunDir) -> dict[str, Any]:
    """splits.json: `hash` of the data and `splits`, the ids of each."""
    value: dict[str, Any] = read_json(run.splits, "hash", "splits")
    if not (isinstance(value["splits"], dict) and {"train", "val"} <= value["splits"].keys()):
        raise UserError(f"'{run.splits}' is damaged (no train and val): restore it, or run again")
    return value


def write_bytes(path: Path, data: bytes) -> None:
    with written_whole(path) as file:
        file.write(data)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file whose content becomes `path`, all or nothing: a temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows cannot open folders, and needs it not."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_DISK = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "your disk quota is used up: make room",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EACCES: "permission denied: choose another folder",
    errno.EPERM: "permission denied: choose another folder",
}
_IN_THE_WAY = {
    errno.ENOENT: "that folder cannot be made: choose another one",
    errno.EEXIST: "a file of that name is in the way: choose another folder",
    errno.EISDIR: "a folder of that name is in the way: choose another file",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
}


def disk_trouble(error: OSError) -> str | None:
    """What to do about a disk that is full, read-only or forbidden; None where the error is another one."""
    return _DISK.get(error.errno or 0)


@contextmanager
def explain_os_errors(what: str) -> Iterator[None]:
    """Turn a disk that is full, read-only or forbidden, or a wrong path, into one line that names `what`."""
    try:
        yield
    except OSError as error:
        if (trouble := disk_trouble(error) or _IN_THE_WAY.get(error.errno or 0)) is None:
            raise
        raise UserError(f"cannot write {what}: {trouble}") from None
