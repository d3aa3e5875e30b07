"""One trial of a tuning study as a job: it is started (or resumed if its process was killed) and reported to Optuna."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convsmith.config import RunConfig
from convsmith.errors import RunFailed, UserError
from convsmith.events import EpochEnd, Finished
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies.own import fresh
from convsmith.studies.search import Search, optuna_module, read_search, record_of, suggest
from convsmith.tracking import csv
from convsmith.training import restore, setup
from convsmith.training.experiment import Experiment
from convsmith.training.loop import epochs
from convsmith.training.own import NO_PARTS, Parts

LOCK_WAIT = 30.0  # seconds that a trial waits for a process that is still writing to its directory
DEATHS = 2  # how many workers may die in one epoch of a trial before it counts as failed

Message = dict[str, Any]


@dataclass(frozen=True)
class TrialJob:
    """The next trial of a study; which one that is is decided when a worker starts it.

    `call` distinguishes the command that creates the jobs from others that work on the same study.
    """

    name: str
    directory: str
    threads: int
    call: str

    @property
    def preemptible(self) -> bool:
        return False  # a trial that was stopped is resumed by the next job of the study, whichever that is

    def message(self) -> dict[str, Any]:
        return {"kind": "trials", **asdict(self)}


def perform(
    message: Message, interrupts: Interrupts, parts: Parts = NO_PARTS
) -> Generator[Message, None, dict[str, Any] | None]:
    """Run the next trial and return its record; None where a signal stopped it after it was saved.

    Yields ``{"progress": ...}`` on the way. The record's `number` is None where all trials have already been started. A
    loss that is not finite and a network that cannot be built are results of the trial; a UserError (data gone, disk
    full) leaves it to be resumed.
    """
    search = read_search(RunDir(Path(message["directory"])))
    with search.opened() as study:
        claimed = _claim(search, study)
        if claimed is None:
            return {"number": None}
        trial, lock = claimed
        try:
            return (yield from _run(search, study, trial, message["call"], interrupts, fresh(parts)))
        finally:
            lock.release()


def _claim(search: Search, study: Any) -> tuple[Any, FileLock] | None:
    """A trial that no process works on, and its lock; None where there is none and enough have been started."""
    optuna = optuna_module()
    state = optuna.trial.TrialState
    running = (state.RUNNING,)
    search.trials.mkdir(exist_ok=True)
    with FileLock(search.lock("ask")):
        for left in study.get_trials(deepcopy=False, states=running):
            lock = FileLock(search.lock(left.number), timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            # Its process may have reported its result between the two lines above.
            if any(other.number == left.number for other in study.get_trials(deepcopy=False, states=running)):
                study.sampler = search.sampler(left.number)
                trial = optuna.trial.Trial(study, left._trial_id)
                suggest(trial, search.space)
                return trial, lock
            lock.release()
        started = sum(trial.state != state.WAITING for trial in study.get_trials(deepcopy=False))
        if started >= search.spec.trials:
            return None
        trial = study.ask()
        lock = FileLock(search.lock(trial.number), timeout=0)
        lock.acquire()
        study.sampler = search.sampler(trial.number)
        suggest(trial, search.space)  # while no other process asks, so that each sees what the others try
        return trial, lock


def _run(
    search: Search, study: Any, trial: Any, call: str, interrupts: Interrupts, parts: Parts
) -> Generator[Message, None, dict[str, Any] | None]:
    """Run the trial to its end from wherever it stands, and report to Optuna; None where a signal stopped it."""
    state = optuna_module().trial.TrialState
    values = suggest(trial, search.space)
    reported = next(one for one in study.get_trials(deepcopy=False) if one.number == trial.number).intermediate_values
    experiment, value, message = None, None, ""
    try:
        _refuse_deadly(trial, call, len(reported))
        experiment = _experiment(search, trial.number, values, parts)
        with experiment.run.lock(LOCK_WAIT):
            ended = yield from _train(search, trial, experiment, set(reported), interrupts)
        if ended is None:
            return None
        value, message = ended
        end = state.PRUNED if value is None else state.COMPLETE
    except RunFailed as error:
        message, end = str(error), state.FAIL
    trial.set_user_attr("message", message)
    if experiment is not None:
        trial.set_user_attr("epochs", experiment.state.epoch)
        trial.set_user_attr("seconds", experiment.state.total_seconds)
        trial.set_user_attr("config", experiment.config.model_dump(mode="json"))
    finished = study.tell(trial, value, end)
    if experiment is not None and end != state.FAIL:
        # Nothing is left to resume, and the checkpoints of a whole study would fill a disk.
        shutil.rmtree(experiment.run.checkpoints, ignore_errors=True)
    return record_of(finished, search.space)


def _refuse_deadly(trial: Any, call: str, epoch: int) -> None:
    """A RunFailed where the trial kills its worker each time, as one that needs too much memory does.

    Deaths are counted within one call and one epoch: a study that is killed again and again loses no trial.
    """
    here = [call, epoch]
    before = trial.user_attrs.get("begun", [None, None, 0])
    times = before[2] + 1 if before[:2] == here else 1
    trial.set_user_attr("begun", [*here, times])
    if times > DEATHS:
        raise RunFailed(f"its worker died {DEATHS} times in epoch {epoch + 1} (of too little memory?)")


def _experiment(search: Search, number: int, values: dict[str, Any], parts: Parts) -> Experiment:
    """The trial's run, new or resumed. RunFailed where no run can be made of these values."""
    directory = search.directory(number)
    if directory.exists():
        return restore.resume(RunDir(directory), parts)
    try:
        prepared = setup.prepare(_config(search, values), parts)
    except UserError as error:
        search.dataset(parts)  # raises where the data is at fault and not the trial
        raise RunFailed(str(error)) from None
    return setup.start(prepared, search.trials, str(number), parts)


def _config(search: Search, values: dict[str, Any]) -> RunConfig:
    layer: dict[str, dict[str, Any]] = {"track": {"group": search.base.track.group or search.run.name}}
    for key, value in values.items():
        section, name = key.split(".")
        layer.setdefault(section, {})[name] = value
    return search.base.with_values(**layer)


def _train(
    search: Search,
    trial: Any,
    experiment: Experiment,
    reported: Collection[int],
    interrupts: Interrupts,
) -> Generator[Message, None, tuple[float | None, str] | None]:
    """The trial's value (None where it was pruned) and why it ended; just None where a signal stopped it."""
    metric, run, total = search.spec.metric, experiment.run, experiment.config.train.epochs

    def hopeless(row: dict[str, Any]) -> bool:
        """Report an epoch to Optuna; returns whether it would prune the trial. Pruning the last epoch saves nothing."""
        if row["epoch"] not in reported:
            trial.report(row[metric], row["epoch"])
        return row["epoch"] < total and bool(trial.should_prune())

    # A process that was killed may have saved an epoch without reporting it.
    rows = [dict(row) for row in csv.read(run.metrics)] if run.metrics.exists() else []
    given_up = [hopeless(row) for row in rows][-1:] == [True]
    with closing(epochs(experiment, interrupts)) as events:
        while not given_up:
            event = next(events, None)
            if event is None:
                return None
            if isinstance(event, EpochEnd):
                yield {"progress": {"trial": trial.number, "epoch": event.row["epoch"], "epochs": total}}
                given_up = hopeless(event.row)
                rows.append(event.row)
            elif isinstance(event, Finished):
                best = next(row for row in rows if row["epoch"] == event.summary["best_epoch"])
                return best[metric], event.summary["stopped_because"]
    message = f"pruned after epoch {rows[-1]['epoch']}: the median trial had done better by then"
    run.log(message)
    return None, message
