"""One fold as a job: an ordinary run on the fold's own division, then one evaluation on the images held out."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convsmith import records
from convsmith.config import RunConfig, validate
from convsmith.data.dataset import HELD_OUT
from convsmith.events import EpochEnd, FeatureExtractionProgress, Finished, StepProgress
from convsmith.prediction.evaluate import evaluate_split
from convsmith.prediction.model_file import load_model
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies.own import fresh
from convsmith.training import restore, setup
from convsmith.training.experiment import Experiment
from convsmith.training.loop import epochs
from convsmith.training.own import NO_PARTS, Parts

RECORD = "fold.json"  # in the fold's directory: its scores; the file exists if and only if the fold is done
LOCK_WAIT = 30.0  # seconds that a fold waits for a process that is still writing to its directory

Message = dict[str, Any]


@dataclass(frozen=True)
class FoldJob:
    """What a worker needs to run one fold, here or on another machine that sees the same folders.

    `config` is resolved. `folds_file` is the study's folds.json and `index` the position in it. `choices` are
    configs (each a layer of sections) that are tried in short runs, scored on the inner validation part; the one with
    the best `metric` there (ties are broken by the lower loss) goes into the config of the fold's own run.
    """

    name: str
    directory: str
    folds_file: str
    index: int
    config: dict[str, Any]
    data_hash: str
    choices: tuple[dict[str, Any], ...] = ()
    choice_epochs: int = 0
    metric: str = "accuracy"

    def message(self) -> dict[str, Any]:
        return {"kind": "fold", **asdict(self)}

    @property
    def threads(self) -> int:
        return int(self.config["train"]["threads"])

    @property
    def preemptible(self) -> bool:
        return True

    @property
    def done(self) -> bool:
        return (Path(self.directory) / RECORD).exists()

    def record(self) -> dict[str, Any]:
        """The record of a fold that is done."""
        return records.read(Path(self.directory) / RECORD, records.Fold)


def perform(
    message: Message, interrupts: Interrupts, parts: Parts = NO_PARTS
) -> Generator[Message, None, dict[str, Any] | None]:
    """Run a FoldJob to its record, continuing from what exists; None where a signal stopped it after it was saved.

    Yields ``{"progress": ...}`` on the way (see `runner.Answer`). RunFailed where the loss is not finite, UserError
    where the data have changed.
    """
    job = FoldJob(**{key: value for key, value in message.items() if key != "kind"})
    directory = Path(job.directory)
    if job.done:
        return job.record()
    entry = records.read(Path(job.folds_file), records.Folds)
    fold = entry["divisions"][job.index]
    ids = entry["pool"]
    splits = {part: [ids[at] for at in fold[part]] for part in ("train", "val", HELD_OUT)}
    splits["test"] = entry["test"]
    config = validate(job.config)
    chosen: dict[str, Any] = {}
    best: Mapping[str, Any] | None = None
    spent = 0.0
    for number, layer in enumerate(job.choices, start=1):
        short = config.with_values(**layer).with_values(train={"epochs": job.choice_epochs})
        tried = directory.with_name(f"{directory.name}-choice-{number}")
        if not RunDir(tried).summary.exists():
            ended = yield from _train(tried, short, splits, job.data_hash, interrupts, fresh(parts))
            if ended is None:
                return None
        _drop_checkpoints(tried)
        summary = records.read(RunDir(tried).summary, records.Summary)
        spent += summary["seconds"]
        row = {f"val_{metric}": value for metric, value in (summary["val"] or {}).items()}
        if records.is_better(f"val_{job.metric}", row, best):
            best, chosen = row, layer
    given = fresh(parts)
    outcome = yield from _train(directory, config.with_values(**chosen), splits, job.data_hash, interrupts, given)
    if outcome is None:
        return None
    experiment, end = outcome
    model, card = load_model(experiment.run.model, experiment.device, given.module)
    scores, _ = evaluate_split(model, card, experiment.dataset.held_out(), experiment.device, experiment.run, HELD_OUT)
    record = {
        "fold": fold["number"],
        "repeat": fold["repeat"],
        "seed": config.train.seed,
        "n": scores["n"],
        "seconds": end.summary["seconds"] + spent,
        **records.metric_values(scores),
        "best_epoch": end.summary["best_epoch"],
        "epochs": end.summary["epochs"],
        "chosen": chosen,
    }
    record = records.write(directory / RECORD, records.Fold, record)
    _drop_checkpoints(directory)
    return record


def _train(
    directory: Path,
    config: RunConfig,
    splits: dict[str, list[str]],
    data_hash: str,
    interrupts: Interrupts,
    parts: Parts,
) -> Generator[Message, None, tuple[Experiment, Finished] | None]:
    """Train the run in `directory` to its end, from wherever it stands."""
    if directory.exists():
        with RunDir(directory).lock(LOCK_WAIT):
            return (yield from _follow(restore.resume(RunDir(directory), parts), interrupts))
    prepared = setup.prepare(config, parts, splits=splits, measured=True, data_hash=data_hash)
    started = setup.start(prepared, directory.parent, directory.name, parts)
    with started.run.lock():
        return (yield from _follow(started, interrupts))


def _follow(
    experiment: Experiment, interrupts: Interrupts
) -> Generator[Message, None, tuple[Experiment, Finished] | None]:
    for event in epochs(experiment, interrupts):
        if isinstance(event, StepProgress | EpochEnd):
            done = experiment.state.step / experiment.steps
            yield {"progress": {"epoch": done, "epochs": experiment.config.train.epochs}}
        elif isinstance(event, FeatureExtractionProgress):
            yield {"progress": {"features": event.total}}
        elif isinstance(event, Finished):
            return experiment, event
    return None


def _drop_checkpoints(directory: Path) -> None:
    """Remove the checkpoints: a finished fold is not resumed, and those of a whole study would fill a disk."""
    shutil.rmtree(RunDir(directory).checkpoints, ignore_errors=True)
