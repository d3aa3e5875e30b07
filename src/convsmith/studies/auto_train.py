"""One training of a race: an ordinary run on a division of its own, until it ends, is stopped, or loses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsmith.config import RunConfig
from convsmith.data.dataset import HELD_OUT, Subset
from convsmith.events import EpochEnd, Interrupted, StepProgress
from convsmith.prediction.evaluate import batches_of, logits_of
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.training import restore, setup
from convsmith.training.experiment import Experiment
from convsmith.training.loop import epochs
from convsmith.training.own import Parts

Splits = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Trained:
    """Logits of the inner validation and, where there are such, held-out images: float [N, K].

    `seconds` is all the time that it took; `lost` says after how many epochs the training was stopped, as it would have
    lost.
    """

    val: NDArray[np.floating[Any]]
    held_out: NDArray[np.floating[Any]] | None
    seconds: float
    trained: float  # of them in epochs
    lost: str = ""


def start_or_resume(config: RunConfig, parts: Parts, splits: Splits, directory: Path) -> Experiment:
    """The training in `directory`, from wherever it stands."""
    if directory.exists():
        return restore.resume(RunDir(directory), parts)
    prepared = setup.prepare(config, parts, splits=splits, measured=True)
    return setup.start(prepared, directory.parent, directory.name, parts)


def train_on(
    config: RunConfig,
    parts: Parts,
    splits: Splits,
    directory: Path,
    interrupts: Interrupts,
    loses: Callable[[float, float], bool],
    progress: Callable[[float], None],
) -> Trained | None:
    """Train in `directory`, from wherever it stands, and remove it; None where a signal came, after it was saved.

    ``loses(accuracy, share)`` is asked after each epoch whether to go on, with the accuracy on the inner validation
    images and the share of epochs that are done.
    """
    began = time.monotonic()
    experiment = start_or_resume(config, parts, splits, directory)
    last, lost = experiment.config.train.epochs, ""
    training = epochs(experiment, interrupts)
    if experiment.state.epoch < last:
        for event in training:
            if isinstance(event, Interrupted):
                return None
            if isinstance(event, StepProgress):
                progress(experiment.state.step / (experiment.steps * last))
            if isinstance(event, EpochEnd):
                done = event.row["epoch"]
                if done == last:
                    break
                if loses(event.row["val_accuracy"], done / last):
                    lost = f"by epoch {done}"
                    break
    training.close()  # what `finish` would write is of no use here

    def logits(subset: Subset) -> NDArray[np.floating[Any]]:
        found = logits_of(
            experiment.state.evaluated, batches_of(subset, experiment.device), experiment.to_input, experiment.device
        )
        assert found is not None
        return found

    held_out = logits(experiment.dataset.held_out()) if HELD_OUT in splits and not lost else None
    result = Trained(
        logits(experiment.dataset.val), held_out, time.monotonic() - began, experiment.state.total_seconds, lost
    )
    shutil.rmtree(directory, ignore_errors=True)
    return result
