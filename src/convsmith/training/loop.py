"""The epoch loop as a generator: it yields what happened, the caller decides what follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from convsmith.contracts import Batch
from convsmith.training.state import TrainState
from convsmith.training.step import Recipe, step


@dataclass(frozen=True)
class Progress:
    """The present epoch so far. `loss` is the mean data loss, `seconds` the time in training."""

    epoch: int
    position: int
    steps: int
    step: int
    loss: float
    accuracy: float
    images: int
    learning_rate: float
    seconds: float
    bad_step: int  # the first step whose loss was not finite, or -1

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class EpochResult(Progress):
    """A whole epoch of training, before its validation."""


P = TypeVar("P", bound=Progress)


def fit(
    state: TrainState,
    recipe: Recipe,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    epochs: int,
    steps: int,
    log_every: int,
    stop: Callable[[], bool],
) -> Iterator[Progress | EpochResult]:
    """Train from wherever `state` stands.

    `batches(epoch, position)` gives the batches of an epoch from a position on. Yields a Progress every
    `log_every` steps and when `stop()` turns true, and an EpochResult at each epoch's end, after which the
    caller validates and calls ``state.close_epoch()``. The time between two yields alone counts as training.
    """
    while state.epoch < epochs:
        state.training_mode()
        began = time.perf_counter()
        for batch in batches(state.epoch, state.position):
            step(state, batch, recipe)
            if state.position % log_every == 0 or stop():
                progress = _progress(state, steps, began, Progress)
                yield progress
                began = time.perf_counter()
        epoch = state.epoch
        yield _progress(state, steps, began, EpochResult)
        assert state.epoch == epoch + 1, "the caller closes each epoch"


def _progress(state: TrainState, steps: int, began: float, kind: type[P]) -> P:
    loss, accuracy, images, bad_step = state.counts.read()
    state.seconds += time.perf_counter() - began
    return kind(
        epoch=state.epoch + 1,
        position=state.position,
        steps=steps,
        step=state.step,
        loss=loss,
        accuracy=accuracy,
        images=images,
        learning_rate=state.learning_rate,
        seconds=state.seconds,
        bad_step=bad_step,
    )
