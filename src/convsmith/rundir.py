"""Run and study directories: their paths, their kinds, and how a new one is created atomically.

The content of the files is defined in `records`.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast

from filelock import FileLock, Timeout

from convsmith import records
from convsmith.errors import UserError, command, damaged
from convsmith.files import explain_os_errors, nearest_path, open_to_append, siblings, sync_folder
from convsmith.plainyaml import read_yaml
from convsmith.terminal import visible, warn

CARD = "model.json"  # in the folder of a model
IN_RUN = "in_run"  # the attribute of an exception that names the locked directory which it came from


class RunDir:
    """The paths below ``runs/<name>/``. It knows only files, neither configs nor tensors.

    With `alone` the directory is the folder of a model, such as a copy of a run's ``model/``, and the run is not there.
    With `quiet` nothing is logged: another process of the training does.
    """

    def __init__(self, path: Path, alone: bool = False, quiet: bool = False) -> None:
        self.path = path
        self.alone = alone
        self._quiet = quiet
        self.name = path.name
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.splits = path / "splits.json"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.skipped = path / "skipped.json"
        self.test_access = path / "test-access.jsonl"
        self.model = path if alone else path / "model"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.wandb = path / "wandb"
        self.log_file = path / "log.txt"
        self.study = path / "study.yaml"  # the specification of a study
        self.crossval = path / "crossval.json"  # the result of a cross-validation
        self.ablation = path / "ablation.json"  # the result of an ablation study
        self.best = path / "best.yaml"  # the best config of a tuning study
        self.auto = path / "auto.json"  # the race of which the run is the winner
        self.lr_find = path / "lr_find.csv"  # the result of a learning-rate range test

    def evaluation(self, split: str) -> Path:
        return self.path / f"evaluation-{split}.json"

    def evaluations(self) -> list[str]:
        """The names of all evaluations: splits of the run, and other data."""
        before, after = self.evaluation("*").name.split("*")
        found = self.path.glob(f"{before}*{after}")
        return sorted(file.name.removeprefix(before).removesuffix(after) for file in found)

    def predictions(self, split: str) -> Path:
        return self.path / f"predictions-{split}.csv"

    def confusion(self, split: str) -> Path:
        """The figure of an evaluation; `train` draws that of the val split."""
        return self.figures / ("confusion.png" if split == "val" else f"confusion-{split}.png")

    def log(self, line: str) -> None:
        """Append a line with the time to log.txt, in which names are made visible: it is read in a terminal."""
        if self._quiet:
            return
        with open_to_append(self.log_file) as file:
            file.write(f"{now()} {visible(line)}\n".encode())

    def warn(self, line: str) -> None:
        """Note a warning in log.txt, and give it to Python's logger `convsmith`, which by itself writes to stderr."""
        self.log(f"warning: {line}")
        warn(line)

    def record_test_access(self, command: str) -> None:
        """Record in test-access.jsonl when and by which command the test split is opened; call it before that."""
        with open_to_append(self.test_access) as file:
            opening = records.versioned({"when": now(), "command": command})
            file.write((json.dumps(opening, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())

    def refuse_links(self) -> None:
        """Raise UserError for a symbolic link inside the directory; call it before anything is written.

        The directory itself may be reached by links (`runs/` on another disk). A link inside it would take what is
        written to a place that is no part of the run. W&B makes links within its own folders. A lock file that has
        another name and content is refused, too, since locking may empty it.
        """
        if not _is_own_lock(self.path / ".lock"):
            raise UserError(f"'{self.path / '.lock'}' is not the lock of a run, but another file: remove it")
        for folder, folders, names in os.walk(self.path):
            for name in (*folders, *names):
                if os.path.islink(path := os.path.join(folder, name)):
                    raise _linked(Path(path))
            folders[:] = [name for name in folders if name != self.wandb.name]

    @contextmanager
    def lock(self, wait: float = 0) -> Iterator[None]:
        """Lock the directory for this process; raises UserError if another one still holds it after `wait` seconds.

        It raises what `refuse_links` does.
        """
        self.refuse_links()
        lock = FileLock(self.path / ".lock", timeout=wait)
        try:
            with explain_os_errors(f"run '{self.path}'"):
                lock.acquire()
        except Timeout:
            raise UserError(f"run '{self.path}' is in use by another process: wait for it or stop it first") from None
        try:
            yield
        except Exception as error:
            setattr(error, IN_RUN, self)
            raise
        finally:
            lock.release()


def _is_own_lock(path: Path) -> bool:
    """Whether locking `path` loses nothing, although it may empty it: backups by hard links share empty locks."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    return not stat.S_ISREG(status.st_mode) or status.st_nlink == 1 or status.st_size == 0


def _linked(path: Path) -> UserError:
    return UserError(
        f"'{path}' is a link to '{os.readlink(path)}', and nothing is written through a link inside a run: remove it, "
        "or put the original there (the run's folder itself may be a link)"
    )


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def default_name(*parts: str) -> str:
    """The name of what has none of its own, without its number: of each part, what needs no quotes in a shell."""
    return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts)


FOLDER_NAME = "a plain folder name, without slashes and hidden characters, of at most 200 bytes"


def is_folder_name(name: str) -> bool:
    """Whether a new run or arm may have this name: it becomes a folder, a part of commands, and a line in tables."""
    plain = name not in ("", ".", "..") and not re.search(r"[/\\]", name) and visible(name) == name
    return plain and len(name.encode()) <= 200


def refuse_taken(runs_dir: Path, name: str | None) -> None:
    """Raise UserError if `name` is taken or cannot be the name of a folder."""
    if name is None:
        return
    if not is_folder_name(name):
        raise UserError(f"run name '{name}' must be {FOLDER_NAME}")
    path = runs_dir / name
    if path.exists():
        raise UserError(
            f"run '{path}' exists already: choose another --name, or resume it with {command('resume', path)}"
        )


@contextmanager
def draft(runs_dir: Path) -> Iterator[RunDir]:
    """A hidden directory in which a new run is prepared; it is removed at the end unless `publish` has renamed it.

    A run directory is therefore complete or does not exist, whenever the process is killed. Drafts that killed
    processes left behind are removed first; those of living ones are locked by a file beside them.
    """
    with explain_os_errors(f"the run directory below '{runs_dir}'"):
        runs_dir.mkdir(parents=True, exist_ok=True)
        for name in {path.name.removesuffix(".lock") for path in runs_dir.iterdir() if _DRAFT.fullmatch(path.name)}:
            _remove_abandoned(runs_dir / name)
        path, lock = _new_draft(runs_dir)
        try:
            yield RunDir(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            _remove_lock(lock)


_DRAFT = re.compile(r"\.new-[a-z0-9_]{8}(\.lock)?")


def _new_draft(runs_dir: Path) -> tuple[Path, FileLock]:
    while True:
        path = runs_dir / f".new-{secrets.token_hex(4)}"
        lock = FileLock(_lock_of(path))
        lock.acquire()
        if _lock_of(path).exists():  # else another process took it for an abandoned one before it was locked
            path.mkdir()
            return path, lock
        lock.release()


def _remove_lock(lock: FileLock) -> None:
    """Release a lock and remove its file: while it is locked, so that nobody else locks a file that goes away.

    Windows does not remove files that are open; there, what another process locks in between stays.
    """
    if sys.platform == "win32":
        lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _lock_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.lock")


def _remove_abandoned(draft: Path) -> None:
    """Remove a draft that no process has locked.

    The first edition locked none: a folder without a lock is removed only if it contains nothing but files of a run.
    """
    lock = _lock_of(draft)
    layout = {value.name for value in vars(RunDir(draft)).values() if isinstance(value, Path)}
    with suppress(Timeout, OSError):
        if lock.is_symlink() or not (lock.exists() or {entry.name for entry in draft.iterdir()} <= layout):
            return
        held = FileLock(lock, timeout=0)
        held.acquire()
        shutil.rmtree(draft, ignore_errors=True)
        _remove_lock(held)


def publish(run: RunDir, name: str | None, default_name: str) -> RunDir:
    """Rename a draft to `name`, or else to the first free one of ``default_name-1``, ``default_name-2``, ...

    It never overwrites a directory. Raises UserError as `refuse_taken` does.
    """
    runs_dir = run.path.parent
    for number in itertools.count(1):
        refuse_taken(runs_dir, name)
        path = runs_dir / (name or f"{default_name}-{number}")
        if path.exists():
            continue
        try:
            os.rename(run.path, path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another process has taken the name in between
                continue
            raise
        sync_folder(runs_dir)
        return RunDir(path)
    raise AssertionError("unreachable")


def open_run(path: str | Path, *needs: str) -> RunDir:
    """An existing run; a UserError names what is missing, the run itself or one of the files that it `needs`."""
    run = RunDir(Path(path))
    if (run.path / CARD).exists() and not run.config.exists():
        raise UserError(f"'{path}' is a model without its run, which knows the data: give images, or the run itself")
    if not run.path.is_dir() or not run.config.exists():
        parent = run.path.parent
        present = sorted(name for name in siblings(run.path) if os.path.exists(parent / name / "config.yaml"))
        listed = f" Runs in '{parent}': {', '.join(present[:10])}" if present else ""
        reason = "is not a run directory (it has no config.yaml)" if run.path.exists() else "does not exist"
        raise UserError(f"run '{path}' {reason}.{nearest_path(run.path, present)}{listed}")
    for need in needs:
        if not (run.path / need).exists():
            lost = run.summary.exists() or need in (run.checkpoints.name, run.splits.name)  # resume cannot create these
            hint = "any more: restore it, or train again" if lost else f"yet: {command('resume', path)} writes it"
            raise UserError(f"run '{path}' has no {need} {hint}")
    return run


def open_single(path: str | Path, *needs: str) -> RunDir:
    """A single run with the files that it `needs`; raises UserError for studies, range tests and missing files."""
    run = open_run(path)
    if run.lr_find.exists():
        raise UserError(f"'{run.path}' is a learning-rate range test, not a training: see its figures/lr_find.png")
    if run.study.exists():
        raise UserError(f"'{run.path}' is a study: name one of its runs, {example_of(run)}")
    return open_run(path, *needs)


def open_trained(path: str | Path, *needs: str) -> RunDir:
    """A single run with the files that it `needs`, or the folder of a model alone; raises what `open_single` raises.

    A run's own ``model/`` stands for the run.
    """
    folder = Path(path)
    if not (folder / CARD).exists():
        return open_single(path, *needs)
    run = RunDir(folder.parent)
    return open_single(run.path, *needs) if run.config.exists() and run.model == folder else RunDir(folder, alone=True)


def example_of(study: RunDir) -> str:
    """An example of a study's run, for the end of a sentence."""
    runs = sorted(str(file.parent) for file in study.path.glob("*/**/summary.json"))
    return f"such as {runs[0]}" if runs else "once one is finished"


Kind = Literal["run", "lr-find", records.StudyKind]


def kind_of(run: RunDir) -> Kind:
    """The kind of a directory: a training, a study, or a range test. UserError if study.yaml names no valid kind."""
    if run.lr_find.exists():
        return "lr-find"
    return cast(records.StudyKind, read_study(run)["kind"]) if run.study.exists() else "run"


def read_study(run: RunDir) -> dict[str, Any]:
    """What study.yaml says at present; a UserError where it names no kind of study, or is of a newer edition."""
    spec = read_yaml(run.study)
    if not isinstance(spec, dict) or spec.get("kind") not in [*records.SPECS]:
        raise damaged(run.study, "it names no kind of study")
    records.check(run.study, records.SPECS[spec["kind"]], spec)
    return records.unversioned(run.study, spec)


def state_of(run: RunDir) -> Literal["running", "finished", "incomplete", "stopped"]:
    """Whether a process holds the directory, it is finished, or `resume` would continue it.

    A study of which some runs have failed is incomplete: `resume` tries them again.
    """
    if (lock := run.path / ".lock").exists() and not lock.is_symlink() and _is_own_lock(lock):  # a check creates none
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            return "running"
        except OSError:  # nobody can hold a directory that is not writable
            pass
    if run.crossval.exists():
        return "incomplete" if records.read(run.crossval, records.Crossval)["missing"] else "finished"
    if run.ablation.exists():
        return "incomplete" if records.read(run.ablation, records.Ablation).get("failed") else "finished"
    ends = (run.summary, run.best, run.lr_find)
    return "finished" if any(end.exists() for end in ends) else "stopped"


def runs_in(folder: Path) -> list[RunDir]:
    """The run and study directories directly below `folder`, the one that was changed last first."""
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}': name one that contains runs, or train first")
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    found = [RunDir(path) for path in paths if os.path.exists(path / "config.yaml")]  # False where it may not be read
    return sorted(found, key=lambda run: (-changed_at(run).timestamp(), run.name))


def stopped_in(folder: Path, is_wanted: Callable[[RunDir], bool]) -> RunDir | None:
    """The stopped run or study directly below `folder` that is wanted and was changed last; None if there is none."""
    for run in runs_in(folder) if folder.is_dir() else []:
        try:
            if is_wanted(run) and state_of(run) == "stopped":
                return run
        except UserError:  # it is damaged, which `resume` says of the one that it is given
            continue
    return None


def changed_at(run: RunDir) -> datetime:
    """The time of the last entry in the directory's log, in local time."""
    file = run.log_file if run.log_file.exists() else run.config
    return datetime.fromtimestamp(file.stat().st_mtime)


def size_of(run: RunDir) -> int:
    """The size of all files in the directory in bytes; files with several hard links count once."""
    seen = {}
    for file in run.path.rglob("*"):
        with suppress(OSError):  # the file may be removed in the meantime
            status = file.lstat()
            if file.is_file():
                seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def next_steps(run: RunDir, is_own: bool, has_test: bool) -> tuple[str, list[str]]:
    """How to go on with a finished run, as a label and commands, or calls for data or a network of the user's own."""
    if is_own:  # no command could pass them in
        label, steps = "next, in Python:", ['run.evaluate("test")', "run.predict(images)"]
    else:
        label = "next:"
        steps = [command("evaluate", run.path, "--split", "test"), f"{command('predict', run.path)} IMAGE..."]
    return label, steps if has_test else steps[1:]


def race_of(run: RunDir) -> dict[str, Any] | None:
    """auto.json of the race that the run has won; None for a run that was trained by itself."""
    return records.read(run.auto, records.Auto) if run.auto.exists() else None


def out_of_fold(run: RunDir) -> dict[str, Any] | None:
    """The estimate of the race that the run has won, if its val images took part in the choice of the winner."""
    race = race_of(run)
    return race.get("estimate") if race and race["folds"] else None


def listing(folder: Path) -> list[dict[str, Any]]:
    """The runs and studies directly below `folder`, as `convsmith.runs` returns them."""
    found = []
    for run in runs_in(folder):
        kind, state, val, test = "run", "damaged", None, None
        try:
            kind, state = kind_of(run), state_of(run)
            if (race := race_of(run)) and (estimate := race.get("estimate")):
                val = estimate["accuracy"]
            elif run.summary.exists():
                val = (records.read(run.summary, records.Summary)["val"] or {}).get("accuracy")
            elif run.crossval.exists():
                val = records.read(run.crossval, records.Crossval)["mean"].get("accuracy")
            if run.evaluation("test").exists():
                test = records.read(run.evaluation("test"), records.Evaluation)["accuracy"]
        except UserError:  # one damaged file must not hide the other runs
            state = "damaged"
        accuracies = {"val_accuracy": val, "test_accuracy": test}
        found.append({"directory": run.path, "kind": kind, "state": state, **accuracies})
        found[-1] |= {"bytes": size_of(run), "changed": changed_at(run)}
    return found
