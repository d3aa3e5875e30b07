"""Builds wheel and sdist twice, compares their bytes, checks what is in them, and tries the wheel on its own.

``python tools/package.py`` in a git checkout; `make package` runs it with `build` installed. The last commit is built,
not the working tree. Both builds start from checkouts of other names and other permissions, and take the commit's time
as SOURCE_DATE_EPOCH. On success the files are in ``dist/``; the exit code is 1 where something differs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1_000_000  # bytes of each file: the package has no data of its own
SDIST = ("src/", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", ".gitignore", "PKG-INFO")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="convsmith-package-") as folder:
        first = build(Path(folder) / "one", 0o022)
        second = build(Path(folder) / "a-checkout-of-another-name", 0o077)
        differing = [one.name for one, two in zip(first, second, strict=True) if digest(one) != digest(two)]
        if differing:
            return fail(f"two builds of the same commit differ: {', '.join(differing)}")
        if problem := next(filter(None, map(content_problem, first)), None):
            return fail(problem)
        wheel = next(path for path in first if path.suffix == ".whl")
        if problem := try_out(wheel, Path(folder) / "elsewhere"):
            return fail(problem)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        (ROOT / "dist").mkdir()
        for path in first:
            shutil.copy(path, ROOT / "dist")
            print(f"{digest(path)}  dist/{path.name}  {path.stat().st_size:,} bytes")
    print("package: two builds have the same bytes, and the wheel trains and predicts in an environment of its own")
    return 0


def build(folder: Path, umask: int) -> list[Path]:
    """Wheel and sdist of the last commit, built from a checkout in `folder`."""
    before = os.umask(umask)
    try:
        folder.mkdir()
        archive = git("archive", "HEAD")
        subprocess.run(["tar", "-x"], input=archive, cwd=folder, check=True)
        environment = os.environ | {"SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct").decode().strip()}
        subprocess.run([sys.executable, "-m", "build", "--quiet"], cwd=folder, env=environment, check=True)
    finally:
        os.umask(before)
    return sorted((folder / "dist").iterdir())


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content_problem(path: Path) -> str | None:
    """What is wrong with the files in a wheel or an sdist; None if nothing is."""
    tracked = set(git("ls-tree", "-r", "--name-only", "HEAD").decode().splitlines())
    sources = {name for name in tracked if name.startswith("src/convsmith/")}
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            names = {f"src/{name}" for name in wheel.namelist() if ".dist-info/" not in name}
        foreign = names - sources
    else:
        with tarfile.open(path) as sdist:
            names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in sdist.getnames()}
        foreign = {name for name in names if not name.startswith(SDIST)} | (names - tracked - {"PKG-INFO"})
    if missing := sources - names:
        return f"{path.name} lacks {', '.join(sorted(missing)[:5])}"
    if foreign:
        return f"{path.name} holds what does not belong there: {', '.join(sorted(foreign)[:5])}"
    if (size := path.stat().st_size) > LARGEST:
        return f"{path.name} has {size:,} bytes, more than {LARGEST:,}"
    return None


def try_out(wheel: Path, folder: Path) -> str | None:
    """Install the wheel without extras into a new environment, and train and predict in an empty folder."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    tools = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    work = folder / "work"
    work.mkdir()
    draw = "from PIL import Image; Image.new('L', (40, 30), 200).save('image.png')"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CONVSMITH"))}
    clean |= {"CONVSMITH_CACHE": str(folder / "cache"), "WANDB_MODE": "disabled"}
    for command in (
        [tools / "python", "-m", "pip", "install", "--quiet", wheel],
        [tools / "convsmith", "--version"],
        [tools / "python", "-m", "convsmith", "train", "--help", "optim"],
        [tools / "convsmith", "train", "--preset", "digits", "--epochs", "1", "--name", "first"],
        [tools / "python", "-c", draw],
        [tools / "convsmith", "predict", "runs/first", "image.png"],
    ):
        done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            return f"in a new environment, {' '.join(map(str, command[:2]))} ... failed: {' | '.join(said)}"
    return None


def fail(problem: str) -> int:
    print(f"package: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
