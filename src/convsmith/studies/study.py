"""The directory of a study (crossval, ablate, tune): what was asked, what it was resolved to, going on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith import rundir
from convsmith.config import RunConfig, parse_yaml, read_layer, validate
from convsmith.data.dataset import HELD_OUT, Dataset
from convsmith.errors import UserError, choose
from convsmith.files import read_json, write_json, write_text
from convsmith.plainyaml import to_yaml
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts, environment, set_threads
from convsmith.studies import cluster, runner
from convsmith.studies.runner import Answer, Job

if TYPE_CHECKING:
    from convsmith.studies.folds import Fold

#: kind of a study -> the module with its `go_on`
KINDS = {"crossval": "crossval", "ablate": "ablation", "tune": "tuning"}
FOLDS = "folds.json"
BEGUN = "begun.json"  # what study.yaml and config.yaml said when the study was begun

Backend = Callable[[Sequence[Job], int, Path, Interrupts], Iterator[Answer]]
BACKENDS: dict[str, Backend] = {"local": runner.run_jobs, "ray": cluster.run_jobs}


def backend(name: str) -> Backend:
    """How jobs are run; a UserError for an unknown name, a missing package or a cluster that does not answer."""
    if name not in BACKENDS:
        raise choose("backend", name, BACKENDS)
    if name == "ray":
        cluster.connect()
    return BACKENDS[name]


def threads_for(config: RunConfig, at_once: int) -> RunConfig:
    """The config with torch's threads: as asked, else this machine's divided among the jobs that run at once."""
    return config.with_values(train={"threads": config.train.threads or max(1, set_threads(None) // at_once)})


def existing(runs_dir: Path, name: str | None, asked: Mapping[str, Any]) -> RunDir | None:
    """The study `name` where it was begun before; a UserError where something else was asked of it then."""
    if not name or not (runs_dir / name).exists():
        rundir.refuse_taken(runs_dir, name)
        return None
    run = RunDir(runs_dir / name)
    before = read_asked(run)
    if before["kind"] != asked["kind"]:
        raise UserError(f"'{run.path}' is a study of another kind ({before['kind']}): choose another --name")
    # A key that the version which began the study did not have has its default.
    before |= {key: validate(before[key]).model_dump(mode="json") for key in ("config", "base") if key in before}
    if differences := [f"{key} was {then}, now {now}" for key, then, now in _differences(before, asked)]:
        raise UserError(
            f"study '{run.path}' was begun with something else ({'; '.join(differences)}): "
            "choose another --name, or ask the same again to go on with it"
        )
    return run


def read_asked(run: RunDir) -> dict[str, Any]:
    """What study.yaml holds; a UserError where the directory is no study, or says something else than what was begun.

    What ran is what the files said then: a study that is changed afterwards would put other words to its numbers.
    """
    path = run.study
    if not path.exists():
        raise UserError(f"'{run.path}' exists and is not a study (it has no {path.name}): choose another --name")
    asked = parse_yaml(path.read_text(encoding="utf-8"), f"'{path}'")
    if not isinstance(asked, dict) or asked.get("kind") not in KINDS:
        raise UserError(f"'{path}' is damaged (it names no kind of study): restore it, or start a new study")
    if (begun := run.path / BEGUN).exists():
        before = read_json(begun)
        _refuse_changed(path, before["study"], asked)
        _refuse_changed(run.config, before["config"], read_layer(run.config))
    return asked


def _refuse_changed(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # Optuna's studies take more trials at any time.
    if said := [f"{key} was {then}, is {value}" for key, then, value in _differences(before, now) if key != "trials"]:
        raise UserError(
            f"'{path}' was changed after the study had begun ({'; '.join(said)}): its results are those of what it "
            "said then. Undo the change, or start a new study"
        )


def create(
    runs_dir: Path, name: str | None, stem: str, asked: Mapping[str, Any], config: RunConfig, files: Mapping[str, Any]
) -> RunDir:
    """A new study directory, whole or not at all: study.yaml, resolved config.yaml, environment.json, JSON `files`."""
    with rundir.draft(runs_dir) as run:
        write_text(run.study, to_yaml(dict(asked)))
        write_text(run.config, config.to_yaml())
        begun = {"study": parse_yaml(run.study.read_text(encoding="utf-8"), ""), "config": read_layer(run.config)}
        write_json(run.path / BEGUN, begun)
        record = environment() | {"device": config.train.device, "threads": config.train.threads}
        write_json(run.environment, record)
        for file, content in files.items():
            write_json(run.path / file, content)
        run.log("started")
        return rundir.publish(run, name, stem)


def folds_record(dataset: Dataset, folds: Sequence[Fold]) -> dict[str, Any]:
    """For folds.json: the ids of the pool, of the sealed test split, and each fold as positions in the pool."""
    return {
        "hash": dataset.hash,
        "pool": list(dataset.pool().ids),
        "test": dataset.splits_record()["splits"].get("test", []),
        "divisions": [
            {
                "repeat": fold.repeat,
                "number": fold.number,
                "train": fold.train.tolist(),
                "val": fold.val.tolist(),
                HELD_OUT: fold.held_out.tolist(),
            }
            for fold in folds
        ],
    }


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of what differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(before.get(name, "absent"), now.get(name, "absent"), inner)
    elif before != now:
        yield key, before, now
