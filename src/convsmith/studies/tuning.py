"""Tuning: Optuna searches for the best values of config keys. Trials are ordinary runs; none reads the test split."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from convsmith import files, records
from convsmith.config import Layer, RunConfig, validate
from convsmith.errors import UserError
from convsmith.events import (
    JobDone,
    JobProgress,
    JobsStarted,
    Listener,
    Note,
    TrialDone,
    TuningStarted,
    counter,
    nobody,
)
from convsmith.figures.curves import history_figure, importance_figure
from convsmith.figures.style import save
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies import backends, own, study
from convsmith.studies.config import MOST_RUNS
from convsmith.studies.search import OPTUNA, Search, connected, optuna_module, read_search, record_of, spec_of
from convsmith.studies.trial_job import LOCK_WAIT, TrialJob
from convsmith.studies.tune_config import TuneConfig, base_of, space_of
from convsmith.training import setup
from convsmith.training.config import AUTO
from convsmith.training.own import NO_PARTS, Parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRIVATE = 0o600  # mode of optuna.json: the URL of the database may contain a password
TRIALS = "trials.csv"
FEWEST = 8  # complete trials from which the importance of parameters is estimated


@dataclass(frozen=True)
class TuningResult:
    """The results of the trials: `trials` has one record for each, by number, with the columns of trials.csv.

    `importances` maps each key to its share of the variance between complete trials; where it is empty, `unexplained`
    says why. `missing` trials are not done, for the reason in `failed`.
    """

    directory: Path
    metric: str
    keys: tuple[str, ...]  # the keys that were searched
    trials: Sequence[Mapping[str, Any]]
    importances: Mapping[str, float]
    unexplained: str
    missing: int = 0
    failed: str = ""

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """The complete trials, the best first."""
        return ranking(self.trials, self.metric)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best complete trial: number, value, values of the keys, ...; None where none is complete."""
        return next(iter(self.ranked), None)

    def table(self) -> list[dict[str, Any]]:
        """One row per trial, as in trials.csv."""
        return [_row(record, self.keys) for record in self.trials]

    def history(self) -> Figure:
        """The value of each trial against its number, and the best so far."""
        valued = [one for one in self.trials if one["state"] in ("complete", "pruned") and one["value"] is not None]
        points = [(one["number"], one["value"], one["state"] == "pruned") for one in valued]
        return history_figure(points, self.metric, not records.metric_of(self.metric).higher_is_better)

    def importance(self) -> Figure | None:
        """The share of the variance that each key explains; None where it cannot be estimated."""
        return importance_figure(self.importances, self.metric) if self.importances else None

    def __repr__(self) -> str:
        best = f"best {self.metric} {self.best['value']:.4f}" if self.best else "no trial is complete"
        return f"TuningResult({str(self.directory)!r}, {best}, {len(self.trials)} trials)"

    def _repr_html_(self) -> str:
        return study.as_html(self.directory, self.table())


def tune(
    config: TuneConfig,
    flags: Layer | None = None,
    parts: Parts = NO_PARTS,
    *,
    trials: int | None = None,
    jobs: int = 1,
    backend: str = "local",
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
) -> TuningResult:
    """Start the tuning study that a file or `tune_config.TuneConfig` describes, or continue the one with this name.

    `flags` change the base. `trials` replaces the study's number; a study that is done can be given more. With `parts`
    of the user's own, the trials run in this process, one at a time. Raises UserError for invalid input, and Stopped
    where a signal ended the study after everything was saved.
    """
    optuna_module()
    if trials is not None:
        study.within("trials", trials, 1, MOST_RUNS)
        config = config.model_copy(update={"trials": trials})
    study.refuse_jobs(jobs, backend)
    base = own.named(base_of(config, flags or {}), parts)
    study.refuse_without_val(base)
    space = space_of(config, base)
    own.refuse_unused(space, parts, "space")
    spec = spec_of(config, base, space) | own.optimizer_of(parts)
    run = _existing(runs_dir, name, spec, listener)
    if run is None:
        if config.storage:
            with connected(config.storage):
                pass  # a database that does not answer is refused before anything is written
        backends.runner_for(backend, parts)
        max_workers = min(own.workers(jobs, backend, parts, nobody), config.trials)
        prepared = setup.prepare(
            study.threads_for(base, max_workers),
            own.fresh(parts),
            counter(listener, "decoding"),
        )
        run = _create(config, base, spec, prepared, runs_dir, name)
        listener(_started(read_search(run), prepared, max_workers))
        for note in prepared.notes:
            listener(Note(note))
        own.note_weights(parts, listener)
    else:
        known = records.read(run.path / OPTUNA, records.Optuna)
        _keep(run, known | {"storage": config.storage})  # its password may have changed
    return resume(run, parts, jobs=jobs, backend=backend, listener=listener)


def resume(
    run: RunDir, parts: Parts = NO_PARTS, *, jobs: int = 1, backend: str = "local", listener: Listener = nobody
) -> TuningResult:
    """Run the trials that are not done yet, and write the results of all."""
    search = read_search(run)
    own.refuse_other(search.base, study.read_spec(run), parts, run.path)
    max_workers = min(own.workers(jobs, backend, parts, listener), search.spec.trials)
    if search.dataset(parts).of_hash(search.data_hash) is None:
        raise UserError(f"the data '{search.base.data.title}' has changed since '{run.path}' was started: start anew")
    with search.opened() as known:
        _await_savers(search, known)
        before = _finished(search, known)
        failed = _run_trials(search, before, max_workers, backend, parts, listener)
        left = search.spec.trials - len(_finished(search, known))
        return summarise(search, known, left, failed or "another process is running them" if left else "")


def summarise(search: Search, known: Any, missing: int, failed: str) -> TuningResult:
    """Write trials.csv, best.yaml, figures/history.png and figures/importance.png from Optuna's records."""
    trials = known.get_trials(deepcopy=False)
    result = results(search, known, missing, failed)
    metric = result.metric
    files.write_text(search.run.path / TRIALS, files.as_csv(result.table()))
    if (best := result.best) is None:
        return result
    config = validate(next(trial for trial in trials if trial.number == best["number"]).user_attrs["config"])
    config = config.with_values(track=search.base.track.model_dump(mode="json"))
    comment = (
        f"# The best of {len(trials)} trials of {search.run.path}: trial {best['number']}, "
        f"{metric} {best['value']:.4f}.\n"
        "# It was chosen for this value, which is therefore optimistic: cross-validate it, or use the test split.\n"
    )
    files.write_text(search.run.best, comment + config.to_yaml())
    search.run.figures.mkdir(exist_ok=True)
    save(result.history(), search.run.figures / "history.png")
    if figure := result.importance():
        save(figure, search.run.figures / "importance.png")
    return result


def results(search: Search, known: Any, missing: int = 0, failed: str = "") -> TuningResult:
    """What the trials have found, from Optuna's records. Nothing is written."""
    found = [record_of(trial, search.space) for trial in known.get_trials(deepcopy=False)]
    metric = search.spec.metric
    importances, unexplained = _importance(search, known, ranking(found, metric))
    return TuningResult(search.run.path, metric, tuple(search.space), found, importances, unexplained, missing, failed)


def ranking(trials: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    """The complete trials, the best value first; ties are broken by the lower number."""
    sign = records.metric_of(metric).sign
    complete = [trial for trial in trials if trial["state"] == "complete"]
    return sorted(complete, key=lambda trial: (-sign * trial["value"], trial["number"]))


def _create(
    config: TuneConfig,
    base: RunConfig,
    spec: Mapping[str, Any],
    prepared: setup.Prepared,
    runs_dir: Path,
    name: str | None,
) -> RunDir:
    # Only what is common to all trials is resolved; the rest (a layout, a size) depends on each trial's values.
    data, train = prepared.config.data, prepared.config.train
    settings = {"device": train.device, "threads": train.threads}
    if base.train.batch_size == AUTO:
        settings["batch_size"] = train.batch
    named = {"source": data.source, "labels": data.labels, "groups": data.groups}
    resolved = base.with_values(data=named, train=settings)
    if prepared.config.optim.is_own:
        resolved = resolved.model_copy(update={"optim": prepared.config.optim})
    optuna = {
        "study": f"{name or setup.default_name(base)}-{uuid.uuid4().hex[:8]}",
        "storage": config.storage,
        "data": data.model_dump(mode="json"),
        "hash": prepared.dataset.hash,
    }
    default_name = f"{setup.default_name(prepared.config)}-tuning"
    run = study.create(runs_dir, name, default_name, spec, resolved, {OPTUNA: (records.Optuna, optuna)})
    (run.path / OPTUNA).chmod(PRIVATE)
    return run


def _keep(run: RunDir, optuna: Mapping[str, Any]) -> None:
    records.write(run.path / OPTUNA, records.Optuna, optuna)
    (run.path / OPTUNA).chmod(PRIVATE)


def _run_trials(
    search: Search, done: list[dict[str, Any]], max_workers: int, backend: str, parts: Parts, listener: Listener
) -> str:
    """Run the trials that are missing beyond those `done`.

    If something other than a trial fails, this stops early and returns the reason. Raises Stopped where a signal came.
    """
    run, call, threads, metric = search.run, uuid.uuid4().hex, search.base.train.threads, search.spec.metric
    assert threads is not None, "the study's config.yaml names the threads"
    directory = str(run.path.resolve())
    jobs = [TrialJob(f"trial {number}", directory, threads, call) for number in range(len(done), search.spec.trials)]
    listener(JobsStarted(search.spec.trials, len(done), "trials"))
    if not jobs:
        return ""
    known, failed = list(done), ""
    runner = backends.runner_for(backend, parts)
    with Interrupts() as interrupts:
        for answer in runner(jobs, max_workers, run.path / "workers.log", interrupts):
            if answer.progress:
                listener(JobProgress(answer.index, answer.progress["epoch"] / answer.progress["epochs"]))
                continue
            if answer.record is None:
                failed = answer.failed or "a job ended without a result"
                break
            listener(JobDone(answer.index, jobs[answer.index].name, answer.record))
            if answer.record["number"] is not None:
                known.append(answer.record)
                listener(TrialDone(metric, answer.record, next(iter(ranking(known, metric)), None)))
                run.log(f"trial {answer.record['number']} {answer.record['state']}: {answer.record['values']}")
        backends.stop_if(interrupts, own.how_to_resume(run.path, parts))
    return failed


def _existing(runs_dir: Path, name: str | None, spec: dict[str, Any], listener: Listener) -> RunDir | None:
    """The study with this name if it was started before; it may be given more trials than at first."""
    if name is None or not RunDir(runs_dir / name).study.exists():
        return study.existing(runs_dir, name, spec, listener)
    before = study.read_spec(RunDir(runs_dir / name)).get("trials", spec["trials"])
    more = spec["trials"] > before
    run = study.existing(runs_dir, name, spec | {"trials": before} if more else spec)
    if more and run is not None:
        study.write_spec(run, spec)
    return run


def _finished(search: Search, known: Any) -> list[dict[str, Any]]:
    return [record_of(trial, search.space) for trial in known.get_trials(deepcopy=False) if trial.state.is_finished()]


def _await_savers(search: Search, known: Any) -> None:
    """Wait for workers of a call that was killed a moment ago, which may still be saving their trials."""
    until = time.monotonic() + LOCK_WAIT
    for trial in known.get_trials(deepcopy=False):
        if trial.state.name == "RUNNING" and search.trials.exists():
            try:
                with FileLock(search.lock(trial.number), timeout=max(0.0, until - time.monotonic())):
                    pass
            except Timeout:  # another command works on the same study
                return


def _started(search: Search, prepared: setup.Prepared, max_workers: int) -> TuningStarted:
    spec, dataset, train = search.spec, prepared.dataset, prepared.config.train
    assert prepared.seconds_per_epoch is not None
    assert train.threads is not None
    return TuningStarted(
        directory=search.run.path,
        question=spec.question,
        source=search.base.data.title,
        sealed=dataset.test_size,
        runs=spec.trials,
        max_workers=max_workers,
        seconds=prepared.seconds_per_epoch * train.epochs * spec.trials / max_workers,
        train=len(dataset.train),
        val=len(dataset.val),
        space=tuple(search.space),
        pruner=spec.pruner,
        seed=spec.seed,
        epochs=train.epochs,
        threads=train.threads,
        storage=spec.storage,
        name=search.name,
    )


def _row(record: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    row = {key: record[key] for key in ("number", "state", "value", "epochs", "seconds")}
    given = record["values"]
    return row | {key: json.dumps(v) if isinstance(v := given.get(key), list) else v for key in keys}


def _importance(search: Search, known: Any, ranked: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], str]:
    """Each key's share of the variance between complete trials (fANOVA, Hutter et al. 2014), or why there is none."""
    if len(search.space) < 2:
        return {}, "there is only one parameter"
    if len(ranked) < FEWEST:
        return {}, f"{len(ranked)} trials are complete, but {FEWEST} are needed"
    if ranked[0]["value"] == ranked[-1]["value"]:
        return {}, "all trials have the same value"
    importance = optuna_module().importance
    evaluator = importance.FanovaImportanceEvaluator(seed=search.spec.seed)
    return importance.get_param_importances(known, evaluator=evaluator), ""
