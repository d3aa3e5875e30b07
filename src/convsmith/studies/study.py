"""What all studies (crossval, ablate, tune) share: their directory, running their folds, and resuming them.

Each kind of study has its own module for what it computes.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith import records, rundir
from convsmith.config import RunConfig, differences, parse_yaml, read_layer, validate
from convsmith.data.dataset import HELD_OUT, Dataset
from convsmith.errors import Stopped, UserError, choose
from convsmith.events import FeatureExtractionProgress, JobDone, JobProgress, JobsStarted, Listener, nobody
from convsmith.files import write_text
from convsmith.plainyaml import to_yaml
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts, environment, set_threads
from convsmith.studies import own, ray_cluster, runner
from convsmith.studies.runner import Answer, Job
from convsmith.training.setup import NO_PARTS, Parts

if TYPE_CHECKING:
    from convsmith.studies.ablation import AblationResult
    from convsmith.studies.crossval import CrossvalResult
    from convsmith.studies.fold_job import FoldJob
    from convsmith.studies.folds import Fold
    from convsmith.studies.tuning import TuningResult

#: kind of a study -> the module with its `resume`
KINDS = {"crossval": "crossval", "ablate": "ablation", "tune": "tuning"}
FOLDS = "folds.json"
STARTED = "begun.json"  # what study.yaml and config.yaml held when the study was started

Written = tuple[type[records.Record], Mapping[str, Any]]  # a JSON file: its schema and its content
Backend = Callable[[Sequence[Job], int, Path, Interrupts], Iterator[Answer]]
BACKENDS: dict[str, Backend] = {"local": runner.run_jobs, "ray": ray_cluster.run_jobs}


def at_least(least: int, name: str, value: int) -> None:
    """A UserError for an option below its least value."""
    if value < least:
        raise UserError(f"--{name} {value}: must be at least {least}")


def runner_for(name: str, parts: Parts = NO_PARTS) -> Backend:
    """How jobs are run: in this process where they need `parts`, else by the backend of this name.

    UserError for an unknown name, a missing package or a cluster that does not answer.
    """
    if name not in BACKENDS:
        raise choose("backend", name, BACKENDS)
    if own.has_own(parts):
        return partial(runner.run_here, parts=parts)
    if name == "ray":
        ray_cluster.connect()
    return BACKENDS[name]


def resume(
    directory: str | Path,
    parts: Parts = NO_PARTS,
    *,
    jobs: int = 1,
    backend: str = "local",
    listener: Listener = nobody,
) -> CrossvalResult | AblationResult | TuningResult:
    """Go on with a study that was stopped, or read the results of one that is done.

    `parts` are what was handed in when it was started. Raises UserError where the directory is no study, was changed,
    or where parts are missing; Stopped where a signal ended it, with all saved.
    """
    at_least(1, "jobs", jobs)
    run = RunDir(Path(directory))
    module = importlib.import_module(f"convsmith.studies.{KINDS[read_spec(run)['kind']]}")
    result: CrossvalResult | AblationResult | TuningResult = module.resume(
        run, parts, jobs=jobs, backend=backend, listener=listener
    )
    return result


def run_folds(
    run: RunDir, jobs: Sequence[FoldJob], max_workers: int, runner: Backend, how_to_resume: str, listener: Listener
) -> dict[str, str]:
    """Run the fold jobs that are not done; why those failed that did, by name. Stopped where a signal came."""
    waiting = [job for job in jobs if not job.done]
    listener(JobsStarted(len(jobs), len(jobs) - len(waiting)))
    failed: dict[str, str] = {}
    shared = False
    with Interrupts() as interrupts:
        for answer in runner(waiting, max_workers, run.path / "workers.log", interrupts) if waiting else ():
            job = waiting[answer.index]
            if answer.progress:
                if "epoch" in answer.progress:
                    listener(JobProgress(answer.index, answer.progress["epoch"] / answer.progress["epochs"]))
                elif not shared:  # all runs with a frozen backbone use the same features
                    shared = True
                    listener(FeatureExtractionProgress(0, answer.progress["features"]))
                continue
            listener(JobDone(answer.index, job.name, answer.record, answer.failed))
            if answer.record is None:
                failed[job.name] = answer.failed or ""
            run.log(f"{job.name} {'done' if answer.record else f'failed: {answer.failed}'}")
        stop_if(interrupts, how_to_resume)
    return failed


def stop_if(interrupts: Interrupts, how_to_resume: str) -> None:
    """Raise Stopped where a signal has come; everything must have been saved."""
    if interrupts.received:
        raise Stopped(interrupts.received, f"stopped, all saved; go on with: {how_to_resume}")


def as_html(title: object, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of results for a notebook; numbers have four digits."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows[0]) if rows else ""
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f"<p><b>{html.escape(str(title))}</b></p><table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape("" if value is None else str(value))


def threads_for(config: RunConfig, max_workers: int) -> RunConfig:
    """The config with torch's threads: as configured, else this machine's, divided among `max_workers`."""
    return config.with_values(train={"threads": config.train.threads or max(1, set_threads(None) // max_workers)})


def existing(runs_dir: Path, name: str | None, spec: Mapping[str, Any]) -> RunDir | None:
    """The study `name` where it was started before; a UserError where its spec was another then."""
    if not name or not (runs_dir / name).exists():
        rundir.refuse_taken(runs_dir, name)
        return None
    run = RunDir(runs_dir / name)
    before = read_spec(run)
    if before["kind"] != spec["kind"]:
        raise UserError(f"'{run.path}' is a study of another kind ({before['kind']}): choose another --name")
    # A key that came after the version that started the study has its default.
    before |= {key: validate(before[key]).model_dump(mode="json") for key in ("config", "base") if key in before}
    if changed := [f"{key} was {then}, now {now}" for key, (then, now) in differences([before, spec])]:
        raise UserError(
            f"study '{run.path}' was started with something else ({'; '.join(changed)}): "
            "choose another --name, or give the same settings again to go on with it"
        )
    return run


def read_spec(run: RunDir) -> dict[str, Any]:
    """What study.yaml holds; a UserError where the directory is no study, or was changed after its start.

    The results belong to what the files held then; a study that is changed afterwards would describe them wrongly.
    """
    path = run.study
    if not path.exists():
        raise UserError(f"'{run.path}' exists and is not a study (it has no {path.name}): choose another --name")
    spec = read_study_file(run)
    if (started := run.path / STARTED).exists():
        before = records.read(started, records.StudyStart)
        _refuse_changed(path, before["study"], spec)
        _refuse_changed(run.config, before["config"], read_layer(run.config))
    return spec


def read_study_file(run: RunDir) -> dict[str, Any]:
    """What study.yaml says at present; a UserError where it is damaged, or of a newer edition."""
    spec = parse_yaml(run.study.read_text(encoding="utf-8"), f"'{run.study}'")
    if not isinstance(spec, dict) or spec.get("kind") not in KINDS:
        raise UserError(f"'{run.study}' is damaged (it names no kind of study): restore it, or start a new study")
    return records.unversioned(run.study, spec)


def write_spec(run: RunDir, spec: Mapping[str, Any]) -> None:
    """Write study.yaml."""
    write_text(run.study, to_yaml(records.versioned(spec)))


def _refuse_changed(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    # Optuna's studies take more trials at any time.
    if said := [
        f"{key} was {then}, is {value}" for key, (then, value) in differences([before, now]) if key != "trials"
    ]:
        raise UserError(
            f"'{path}' was changed after the study had started ({'; '.join(said)}): its results belong to what it "
            "held then. Undo the change, or start a new study"
        )


def create(
    runs_dir: Path,
    name: str | None,
    stem: str,
    spec: Mapping[str, Any],
    config: RunConfig,
    files: Mapping[str, Written],
) -> RunDir:
    """A new study directory, whole or not at all: study.yaml, resolved config.yaml, environment.json, and `files`."""
    with rundir.draft(runs_dir) as run:
        write_spec(run, spec)
        write_text(run.config, config.to_yaml())
        started = {"study": read_study_file(run), "config": read_layer(run.config)}
        records.write(run.path / STARTED, records.StudyStart, started)
        record = environment() | {"device": config.train.device, "threads": config.train.threads}
        records.write(run.environment, records.Environment, record)
        for file, (kind, content) in files.items():
            records.write(run.path / file, kind, content)
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
