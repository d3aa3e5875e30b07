"""The directory of a study (crossval, ablate, tune): its files at the start, and the check that they were not changed.

`backends` runs the jobs of a study; what each kind computes is in its own module.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convsmith import records, rundir
from convsmith.config import RunConfig, differences, read_layer, read_run_config, validate, validate_asked
from convsmith.data.dataset import HELD_OUT, Dataset
from convsmith.data.sources import with_absolute_paths
from convsmith.errors import UserError
from convsmith.events import Listener, Note, nobody
from convsmith.files import write_text
from convsmith.plainyaml import to_yaml
from convsmith.rundir import RunDir
from convsmith.runtime import environment, set_threads, usable_cores
from convsmith.studies.config import MOST_RUNS
from convsmith.terminal import visible
from convsmith.training.interrupted import going_on

if TYPE_CHECKING:
    from convsmith.studies.folds import Fold

FOLDS = "folds.json"
STARTED = "begun.json"  # what study.yaml and config.yaml held when the study was started

MOST_DIVISIONS = 1_000
JOBS_PER_CORE = 4

Written = tuple[type[records.Record], Mapping[str, Any]]  # a JSON file: its schema and its content


def within(name: str, value: int, least: int, most: int) -> None:
    """A UserError for an option that is outside its bounds."""
    if value < least:
        raise UserError(f"--{name} {value}: must be at least {least}")
    if value > most:
        raise UserError(f"--{name} {value}: must be at most {most:,}")


def refuse_jobs(jobs: int, backend: str) -> None:
    """A UserError for a number of runs at a time that cannot be: here each is a process with a torch of its own."""
    cores = usable_cores()
    if backend == "local" and jobs > (most := JOBS_PER_CORE * cores):
        raise UserError(
            f"--jobs {jobs}: this machine has {cores} cores, so at most {most} processes may train at a time"
        )
    within("jobs", jobs, 1, MOST_RUNS)


def refuse_too_many(folds: int, repeats: int, trainings: int) -> None:
    """A UserError for a study that is too large, before anything of it is built.

    A division holds the position of every image, and is kept in memory and in folds.json.
    """
    if (divisions := folds * repeats) > MOST_DIVISIONS:
        raise UserError(
            f"{folds:,} folds, repeated {repeats:,} times, are {divisions:,} divisions of the images: at most "
            f"{MOST_DIVISIONS:,} are possible"
        )
    if trainings > MOST_RUNS:
        raise UserError(f"this study needs {trainings:,} trainings: at most {MOST_RUNS:,} are possible")


def refuse_without_val(config: RunConfig) -> None:
    """A UserError for a config that leaves no images by which a study could choose an epoch."""
    if config.data.val_fraction == 0:
        raise UserError(
            "a study chooses the epoch of each run by val images, of which data.val_fraction 0 leaves none: "
            "leave it out"
        )


def as_html(title: object, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of results for a notebook; numbers have four significant digits."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in rows[0]) if rows else ""
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f"<p><b>{_cell(title)}</b></p><table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(visible("" if value is None else str(value)))


def threads_for(config: RunConfig, max_workers: int) -> RunConfig:
    """The config with a number of torch threads: the configured one, or this machine's divided by `max_workers`."""
    return config.with_values(train={"threads": config.train.threads or max(1, set_threads(None) // max_workers)})


def existing(runs_dir: Path, name: str | None, spec: Mapping[str, Any], listener: Listener = nobody) -> RunDir | None:
    """The study `name` if it was started before; a UserError where its spec was different then.

    Without a name, the study that was started with the same spec and interrupted; the listener is told of it.
    """
    if name is None:
        return _interrupted(runs_dir, spec, listener)
    if not name or not (runs_dir / name).exists():
        rundir.refuse_taken(runs_dir, name)
        return None
    run = RunDir(runs_dir / name)
    run.refuse_links()
    before = read_spec(run)
    if before["kind"] != spec["kind"]:
        raise UserError(f"'{run.path}' is a study of another kind ({before['kind']}): choose another --name")
    if changed := _changes(before, spec):
        raise UserError(
            f"study '{run.path}' was started with other settings ({'; '.join(changed)}): "
            "choose another --name, or give the same settings again to resume it"
        )
    return run


def _changes(before: dict[str, Any], spec: Mapping[str, Any]) -> list[str]:
    """What a study's spec was before and is now. A newer key than the version that started it has its default value."""
    # Nobody asks for a test or a way to keep a budget: a study goes on as in the version that started it.
    spec = {key: value for key, value in spec.items() if key not in ("test", "stopping") or key in before}
    before |= {key: validate_asked(before[key]).model_dump(mode="json") for key in ("config", "base") if key in before}
    return [f"{key} was {then}, now {now}" for key, (then, now) in differences([before, spec])]


def _interrupted(runs_dir: Path, spec: Mapping[str, Any], listener: Listener) -> RunDir | None:
    """The study in `runs_dir` with the same spec that is neither finished nor running and was changed last.

    None where an object of the user's own takes part, which a spec does not describe.
    """
    config = validate(spec["config" if "config" in spec else "base"])
    own = config.is_own or config.optim.is_own or "own_optimizer" in spec
    if own:
        return None

    def is_same(run: RunDir) -> bool:
        if not run.study.exists() or rundir.read_study(run)["kind"] != spec["kind"] or _changes(read_spec(run), spec):
            return False
        # A spec has its data as they are called, which may mean others in another folder.
        return read_run_config(run.config).data.source == with_absolute_paths(config.data).source

    run = rundir.stopped_in(runs_dir, is_same)
    if run is not None:
        listener(going_on(run, "study"))
    return run


def read_spec(run: RunDir) -> dict[str, Any]:
    """The content of study.yaml; a UserError where the directory is not a study, or was changed after its start.

    The results belong to the original files; a study that is changed afterwards would describe them wrongly.
    """
    path = run.study
    if not path.exists():
        raise UserError(f"'{run.path}' exists but is not a study (it has no {path.name}): choose another --name")
    spec = rundir.read_study(run)
    if (started := run.path / STARTED).exists():
        before = records.read(started, records.StudyStart)
        _refuse_changed(path, before["study"], spec)
        _refuse_changed(run.config, before["config"], read_layer(run.config))
    return spec


def note_test(run: RunDir, spec: Mapping[str, Any], listener: Listener) -> None:
    """Say by which test a study goes on that a version started which tested over folds."""
    if records.test_of(spec) == "folds":
        listener(Note(f"an older convsmith started '{run.path}': it goes on with that version's test, over folds"))


def write_spec(run: RunDir, spec: Mapping[str, Any]) -> None:
    """Write study.yaml."""
    write_text(run.study, to_yaml(records.versioned(spec)))


def _refuse_changed(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # A tuning study may be given more trials at any time.
    if changed := [
        f"{key} was {then}, is {value}" for key, (then, value) in differences([before, now]) if key != "trials"
    ]:
        raise UserError(
            f"'{path}' was changed after the study had started ({'; '.join(changed)}), but its results belong to the "
            "original settings: undo the change, or start a new study"
        )


def create(
    runs_dir: Path,
    name: str | None,
    default_name: str,
    spec: Mapping[str, Any],
    config: RunConfig,
    files: Mapping[str, Written],
) -> RunDir:
    """Create a study directory atomically: study.yaml, the resolved config.yaml, environment.json, and `files`."""
    with rundir.draft(runs_dir) as run:
        write_spec(run, spec)
        write_text(run.config, config.to_yaml())
        started = {"study": rundir.read_study(run), "config": read_layer(run.config)}
        records.write(run.path / STARTED, records.StudyStart, started)
        record = environment() | {"device": config.train.device, "threads": config.train.threads}
        records.write(run.environment, records.Environment, record)
        for file, (kind, content) in files.items():
            records.write(run.path / file, kind, content)
        run.log("started")
        return rundir.publish(run, name, default_name)


def folds_record(dataset: Dataset, folds: Sequence[Fold]) -> dict[str, Any]:
    """The content of folds.json: the ids of the pool and of the test split, and each fold as positions in the pool."""
    groups = dataset.pool_groups()
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
        **({} if groups is None else {"groups": groups.tolist()}),
    }


def recorded_folds(record: Mapping[str, Any]) -> list[Fold]:
    """The folds of `folds_record`, or of folds.json."""
    from convsmith.studies.folds import Fold  # and scikit-learn, which workers do without

    parts = ("train", "val", HELD_OUT)
    return [
        Fold(one["repeat"], one["number"], *(np.array(one[part], dtype=np.int64) for part in parts))
        for one in record["divisions"]
    ]
