"""One fold as a job: an ordinary run on the fold's own division, then one look at the images held out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convsmith import rundir
from convsmith.config import RunConfig, validate
from convsmith.data.dataset import HELD_OUT
from convsmith.errors import UserError
from convsmith.events import EpochEnd, FeatureExtractionProgress, Finished, StepProgress
from convsmith.files import read_json, write_json
from convsmith.prediction.evaluate import evaluate_split
from convsmith.prediction.model_file import load_model
from convsmith.records import metric_values
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.training import setup
from convsmith.training.experiment import epochs

RECORD = "fold.json"  # in the fold's directory: its scores; it is there when, and only when, the fold is done
LOCK_WAIT = 30.0  # seconds that a fold waits for a process that is still writing to its directory

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class FoldJob:
    """What a worker needs to run one fold, here or on another machine that sees the same folders.

    `config` is resolved. `folds_file` is the study's folds.json and `index` the place in it. `choices` are
    configs (each a layer of sections) tried in short runs on the inner validation part; the best of them goes
    into the config of the fold's own run.
    """

    name: str
    directory: str
    folds_file: str
    index: int
    config: dict[str, Any]
    data_hash: str
    choices: tuple[dict[str, Any], ...] = ()
    choice_epochs: int = 0

    def message(self) -> dict[str, Any]:
        return {"kind": "fold", **asdict(self)}

    @property
    def threads(self) -> int:
        return int(self.config["train"]["threads"])

    @property
    def divisible(self) -> bool:
        return True

    @property
    def done(self) -> bool:
        return (Path(self.directory) / RECORD).exists()

    def record(self) -> dict[str, Any]:
        """What a fold that is done found."""
        return dict(read_json(Path(self.directory) / RECORD))


def perform(message: dict[str, Any], report: Report) -> dict[str, Any] | None:
    """Run a FoldJob to its record, going on with what is there; None where a signal stopped it (and it was saved).

    RunFailed where the loss is not finite, UserError where the data has changed.
    """
    job = FoldJob(**{key: value for key, value in message.items() if key != "kind"})
    directory = Path(job.directory)
    if job.done:
        return job.record()
    entry = read_json(Path(job.folds_file))
    fold = entry["divisions"][job.index]
    ids = entry["pool"]
    splits = {part: [ids[at] for at in fold[part]] for part in ("train", "val", HELD_OUT)}
    splits["test"] = entry["test"]
    config = validate(job.config)
    with Interrupts() as interrupts:
        chosen: dict[str, Any] = {}
        spent = 0.0
        best = -math.inf
        for number, layer in enumerate(job.choices, start=1):
            short = config.with_values(**layer).with_values(train={"epochs": job.choice_epochs})
            tried = directory.with_name(f"{directory.name}-choice-{number}")
            if not RunDir(tried).summary.exists() and not _train(
                tried, short, splits, job.data_hash, interrupts, report
            ):
                return None
            _drop_checkpoints(tried)
            summary = read_json(RunDir(tried).summary)
            spent += summary["seconds"]
            score = summary["val"]["accuracy"]
            if score > best:
                best, chosen = score, layer
        outcome = _train(directory, config.with_values(**chosen), splits, job.data_hash, interrupts, report)
        if outcome is None:
            return None
        experiment, end = outcome
        model, card = load_model(experiment.run.model, experiment.device)
        scores, _ = evaluate_split(
            model, card, experiment.dataset.held_out(), experiment.device, experiment.run, HELD_OUT
        )
    record = {
        "fold": fold["number"],
        "repeat": fold["repeat"],
        "seed": config.train.seed,
        "n": scores["n"],
        "seconds": end.summary["seconds"] + spent,
        **metric_values(scores),
        "best_epoch": end.summary["best_epoch"],
        "epochs": end.summary["epochs"],
        "chosen": chosen,
    }
    write_json(directory / RECORD, record)
    _drop_checkpoints(directory)
    return record


def _train(
    directory: Path,
    config: RunConfig,
    splits: dict[str, list[str]],
    data_hash: str,
    interrupts: Interrupts,
    report: Report,
) -> tuple[setup.Experiment, Finished] | None:
    """The run in `directory` from where it stands to its end."""
    if directory.exists():
        with RunDir(directory).lock(LOCK_WAIT):
            return _follow(setup.resume(RunDir(directory)), interrupts, report)
    prepared = setup.prepare(config, splits=splits, measured=True)
    if prepared.dataset.hash != data_hash:
        raise UserError(f"the data '{config.data.source}' has changed since the study was started: start a new study")
    started = setup.start(prepared, directory.parent, directory.name)
    with started.run.lock():
        return _follow(started, interrupts, report)


def _follow(
    experiment: setup.Experiment, interrupts: Interrupts, report: Report
) -> tuple[setup.Experiment, Finished] | None:
    for event in epochs(experiment, interrupts):
        if isinstance(event, StepProgress | EpochEnd):
            report({"epoch": experiment.state.step / experiment.steps, "epochs": experiment.config.train.epochs})
        elif isinstance(event, FeatureExtractionProgress):
            report({"features": event.total})
        elif isinstance(event, Finished):
            return experiment, event
    return None


def _drop_checkpoints(directory: Path) -> None:
    """A finished fold has nothing to resume, and the checkpoints of a whole study would fill a disk."""
    shutil.rmtree(rundir.RunDir(directory).checkpoints, ignore_errors=True)
