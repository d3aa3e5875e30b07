"""The learning-rate range test (Smith 2017, "Cyclical learning rates for training neural networks", section 3.3).

Starting from a run's initial weights, the learning rate rises exponentially, by one step per batch. The losses of the
batches show which rates learn, and at which rate the training diverges. Everything else is as in `train`: data, order,
augmentation, loss, optimiser and its settings. No schedule is applied, so the rate found is the one that it scales.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convsmith import files, rundir
from convsmith.config import RunConfig
from convsmith.contracts import Batch
from convsmith.errors import RunFailed, Stopped, UserError
from convsmith.events import JobProgress, JobsStarted, Listener, LrFindStarted, counter, nobody
from convsmith.figures.curves import lr_curve
from convsmith.figures.style import save
from convsmith.memory import explain_memory_errors
from convsmith.optim.config import ScheduleConfig
from convsmith.optim.schedules import Schedule
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies.own import fresh
from convsmith.studies.study import as_html
from convsmith.training import footprint, setup
from convsmith.training.experiment import Experiment
from convsmith.training.feed import train_batches
from convsmith.training.own import NO_PARTS, Parts
from convsmith.training.setup import Prepared
from convsmith.training.state import RunningMetrics, TrainState
from convsmith.training.step import Recipe, step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHING = 0.9  # weight of the past in the running mean of the losses
SETTLING = 10  # steps until that mean forgets its first batches: 1 / (1 - SMOOTHING)
MOST_STEPS = 100_000  # each is a point of the curve, and of lr_find.csv
DIVERGED = 4.0  # times the lowest smoothed loss: the test ends there
RISEN = 1.5  # times the first loss, within the first batches: even the lowest rate is too high
NOISE = 2.5  # standard deviations of the first batches' losses that a fall must exceed
LEAST_FALL = 0.05  # the share of their mean that it must exceed as well: the loss of a net that learns falls far more
LARGEST_RATE = 100.0  # of `optim.lr`


class Point(NamedTuple):
    """One step of the test: its rate, the loss of its batch before the update, and the smoothed loss so far."""

    step: int
    learning_rate: float
    loss: float
    smoothed: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.smoothed)


@dataclass(frozen=True)
class Sweep:
    """The learning rates from `low` to `high`: `steps` of them, evenly spaced on a logarithmic scale."""

    low: float = 1e-6
    high: float = 10.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= LARGEST_RATE:
            raise UserError(
                f"lr-find needs 0 < --low < --high <= {LARGEST_RATE:g}, but got --low {self.low:g} --high {self.high:g}"
            )
        if self.steps < 3 * SETTLING:
            raise UserError(f"lr-find: --steps must be at least {3 * SETTLING}, but got {self.steps}")
        if self.steps > MOST_STEPS:
            raise UserError(f"lr-find: --steps must be at most {MOST_STEPS:,}, but got {self.steps}")

    def rates(self) -> list[float]:
        return [float(rate) for rate in np.geomspace(self.low, self.high, self.steps)]


@dataclass(frozen=True)
class Advice:
    """The suggested rate and the reason; or None, the reason why there is no suggestion, and a sweep to try instead."""

    rate: float | None
    reason: str
    again: Sweep | None = None


@dataclass(frozen=True)
class LrFindResult:
    """The curve of a range test and the rate that it suggests.

    `points` are the steps whose smoothed loss is finite; `ended` says in words where the test stopped; `lr` is the
    config's own learning rate, which stays as it is.
    """

    directory: Path
    points: list[Point]
    ended: str
    advice: Advice
    lr: float

    @property
    def suggestion(self) -> float | None:
        """The suggested learning rate; None where the curve allows no suggestion, for the reason in `advice`."""
        return self.advice.rate

    def table(self) -> list[dict[str, Any]]:
        """One row per step, as in lr_find.csv: step, learning_rate, loss, smoothed."""
        return [point._asdict() for point in self.points]

    def curve(self) -> Figure:
        """The smoothed loss against the learning rate, with the suggestion marked."""
        return _curve(self.points, self.advice)

    def __repr__(self) -> str:
        rate = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.2g}"
        return f"LrFindResult({str(self.directory)!r}, {rate})"

    def _repr_html_(self) -> str:
        rate = "no suggestion" if self.suggestion is None else f"{self.suggestion:.2g} is suggested"
        return as_html(self.directory, [{"lr": rate, "because": self.advice.reason, "ended": self.ended}])


def lr_find(
    config: RunConfig,
    parts: Parts = NO_PARTS,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    listener: Listener = nobody,
) -> LrFindResult:
    """Run the range test of a config, from the rate `low` to `high` in `steps` batches, into a directory of its own.

    A network of the user's own in `parts` is copied first, and keeps its weights. Raises UserError for invalid input,
    RunFailed where the very first losses are not finite, and Stopped where a signal came; then nothing is written.
    """
    sweep = Sweep(low, high, steps)
    rundir.refuse_taken(runs_dir, name)
    given = fresh(parts)
    prepared = setup.prepare(config, given, counter(listener, "decoding"))
    return find(prepared, runs_dir, sweep, name, given, listener)


def find(
    prepared: Prepared,
    runs_dir: Path,
    sweep: Sweep,
    name: str | None = None,
    parts: Parts = NO_PARTS,
    listener: Listener = nobody,
) -> LrFindResult:
    """Run the test and write ``<name>/``: lr_find.csv, figures/lr_find.svg and .png, log.txt, and the config as it is.

    The default name is made of data, model, ``lr-find`` and a number. The test split is not read. `prepared` cannot be
    used again: its network has been trained. Raises what `lr_find` raises.
    """
    rundir.refuse_taken(runs_dir, name)
    resolved = prepared.config
    listener(
        LrFindStarted(
            model=resolved.model.name,
            source=resolved.data.title,
            optimizer=resolved.optim.name,
            batch_size=resolved.train.batch,
            **asdict(sweep),
        )
    )
    listener(JobsStarted(sweep.steps, 0, "steps"))
    explained = explain_memory_errors("in the range test", footprint.fix(resolved))
    with explained, rundir.draft(runs_dir) as run, Interrupts() as interrupts:
        experiment = _start(prepared, run, parts)
        state, lr = experiment.state, experiment.config.optim.lr
        if lr is None:  # an optimiser of the user's own sets its rates itself
            lr = float(state.optimizer.param_groups[0]["base_lr"])
        taken: list[Point] = []
        for point in range_test(state, experiment.recipe, _batches(experiment), sweep.rates(), lr):
            taken.append(point)
            listener(JobProgress(point.step - 1, 1.0))
            if interrupts.received:
                raise Stopped(interrupts.received, "interrupted: nothing was written")
        points = [point for point in taken if point.finite]
        if len(points) < 2:
            raise RunFailed(
                f"the loss is not a finite number at step {taken[-1].step}, although the learning rate is only "
                f"{taken[-1].learning_rate:.3g}: look at the data (convsmith data check) and at the network"
            )
        ended = _ended(taken, sweep)
        advice = advise(points, sweep)
        files.write_text(run.lr_find, files.as_csv(point._asdict() for point in points))
        run.figures.mkdir()
        figure = _curve(points, advice)
        for ending in ("svg", "png"):
            save(figure, run.figures / f"lr_find.{ending}")
        run.log(f"range test from {sweep.low:g} to {sweep.high:g}: {ended}")
        run.log(advice.reason if advice.rate is None else f"suggested: {advice.rate:.2g}; {advice.reason}")
        published = rundir.publish(run, name, f"{setup.default_name(prepared.config)}-lr-find")
    return LrFindResult(published.path, points, ended, advice, lr)


def range_test(
    state: TrainState, recipe: Recipe, batches: Iterator[Batch], rates: Sequence[float], lr: float
) -> Iterator[Point]:
    """Train `state` for one step per rate, until the smoothed loss is not finite or exceeds four times its minimum.

    The smoothed loss is an exponential moving average with bias correction (as in Adam, Kingma and Ba 2015). A group
    whose base rate is a multiple of `lr`, the run's own rate, keeps that multiple.
    """
    state.training_mode()
    state.schedule = Schedule(ScheduleConfig(name="constant"), steps_per_epoch=1, epochs=1)
    multiples = [group["base_lr"] / lr for group in state.optimizer.param_groups]
    mean, lowest = 0.0, math.inf
    for number, (rate, batch) in enumerate(zip(rates, batches, strict=False), start=1):
        for group, multiple in zip(state.optimizer.param_groups, multiples, strict=True):
            group["base_lr"] = multiple * rate
        state.metrics = RunningMetrics(state.device)
        step(state, batch, recipe)
        loss = state.metrics.read()[0]
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        point = Point(number, rate, loss, mean / (1 - SMOOTHING**number))
        lowest = min(lowest, point.smoothed)
        yield point
        if not point.finite or point.smoothed > DIVERGED * lowest:
            return


def advise(points: Sequence[Point], sweep: Sweep) -> Advice:
    """Suggest a learning rate from the curve of smoothed losses, whose `points` are all finite.

    There are two usual rules of thumb (fastai's `lr_find` has both): the rate at which the loss falls most steeply over
    log(rate), and a tenth of the rate at which it is lowest. The smaller of the two is suggested. There is no
    suggestion where the loss rises from the first steps on, where it is lowest at the last rate, or where no fall
    stands out from the noise of the batches.
    """
    rates = np.array([point.learning_rate for point in points])
    smoothed = np.array([point.smoothed for point in points])
    first = np.array([point.loss for point in points[:SETTLING]])
    if len(points) <= 2 * SETTLING or smoothed[:SETTLING].max() > RISEN * first[0]:
        return Advice(
            None,
            f"the loss rose at once: even the lowest rate, {sweep.low:.2g}, may be too high",
            replace(sweep, low=sweep.low / 1000),
        )
    level = float(first.mean())
    lowest = SETTLING + int(smoothed[SETTLING:].argmin())
    fall = level - float(smoothed[lowest])
    needed = max(NOISE * float(first.std(ddof=1)), LEAST_FALL * abs(level))
    if points[-1].step == sweep.steps and len(points) - 1 - lowest < SETTLING // 2:
        wider = min(100 * sweep.high, LARGEST_RATE)
        return Advice(
            None,
            f"the loss is lowest near {rates[-1]:.2g}, the highest rate tried: a good rate may lie there or above",
            replace(sweep, high=wider) if wider > sweep.high else replace(sweep, steps=3 * sweep.steps),
        )
    if fall < needed:
        return Advice(
            None,
            f"no rate lowered the loss by {needed:.2g}, the least that stands out from the noise of the batches: try "
            "more steps or larger batches; if the loss still does not fall, check the data, the labels and the network",
            replace(sweep, steps=3 * sweep.steps),
        )
    # Until the loss has left its first level for good, its slopes are only noise.
    left = int(np.flatnonzero(smoothed[:lowest] >= level - fall / 4).max(initial=SETTLING))
    slopes = np.gradient(smoothed, np.log(rates))
    steepest = float(rates[left + int(slopes[left : lowest + 1].argmin())])
    tenth = max(float(rates[lowest]) / 10, sweep.low)
    reason = (
        f"the loss falls most steeply at {steepest:.2g}; it is lowest at {rates[lowest]:.2g}, a cautious tenth of "
        f"which is {tenth:.2g}. The smaller of the two is taken: too high a rate breaks a training, and too low a rate "
        "only slows it"
    )
    return Advice(min(steepest, tenth), reason)


def _start(prepared: Prepared, run: RunDir, parts: Parts) -> Experiment:
    """What `train` would start from, with its files in `run`, but without checkpoints: a test is not resumed."""
    experiment = setup.start(prepared, run.path, "started", parts)
    for path in experiment.run.path.iterdir():
        if path.is_file():
            path.rename(run.path / path.name)
    shutil.rmtree(experiment.run.path)
    experiment.run = run
    return experiment


def _batches(experiment: Experiment) -> Iterator[Batch]:
    """The batches of a training in order, epoch after epoch, endlessly."""
    of_epoch = train_batches(experiment)
    return (batch for epoch in itertools.count() for batch in of_epoch(epoch, 0))


def _ended(taken: Sequence[Point], sweep: Sweep) -> str:
    last, lowest = taken[-1], min(point.smoothed for point in taken if point.finite)
    if not last.finite:
        return f"at {last.learning_rate:.2g} (step {last.step}) the loss was not a finite number"
    if last.smoothed > DIVERGED * lowest:
        return f"at {last.learning_rate:.2g} (step {last.step}) the loss had risen above {DIVERGED:g} times its lowest"
    return f"all {sweep.steps} steps were done"


def _curve(points: Sequence[Point], advice: Advice) -> Figure:
    return lr_curve([point.learning_rate for point in points], [point.smoothed for point in points], advice.rate)
