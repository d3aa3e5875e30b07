"""The epoch loop as a generator: it yields what happened, the caller decides what follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from convsmith.contracts import Batch
from convsmith.events import StepProgress
from convsmith.training.state import TrainState
from convsmith.training.step import Recipe, step


@dataclass(frozen=True)
class EpochResult(StepProgress):
    """A whole epoch of training, before its validation."""


P = TypeVar("P", bound=StepProgress)


def fit(
    state: TrainState,
    recipe: Recipe,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    epochs: int,
    steps: int,
    log_every: int,
    stop: Callable[[], bool],
) -> Iterator[StepProgress | EpochResult]:
    """Train from wherever `state` stands.

    `batches(epoch, position)` gives the batches of an epoch from a position on. Yields a StepProgress every
    `log_every` steps and when `stop()` turns true, and an EpochResult at each epoch's end, after which the
    caller validates and calls ``state.close_epoch()``. The time between two yields alone counts as training.
    """
    while state.epoch < epochs:
        state.training_mode()
        began = time.perf_counter()
        for batch in batches(state.epoch, state.position):
            step(state, batch, recipe)
            if state.position % log_every == 0 or stop():
                progress = _progress(state, steps, began, StepProgress)
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
