"""The factor of each schedule on the learning rate, as a pure function of the step; only plateau has state.

The names, keys and descriptions of the schedules are in config.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from convsmith.optim.config import ScheduleConfig

#: (config, step after warm-up, steps per epoch, number of steps after warm-up) -> factor on the learning rate
Shape = Callable[[ScheduleConfig, int, int, int], float]


def constant(config: ScheduleConfig, step: int, per_epoch: int, total: int) -> float:
    return 1.0


def step_decay(config: ScheduleConfig, step: int, per_epoch: int, total: int) -> float:
    """gamma ** floor(epoch / step_epochs)."""
    return config.gamma ** (step // per_epoch // config.step_epochs)


def exponential(config: ScheduleConfig, step: int, per_epoch: int, total: int) -> float:
    """gamma ** epoch."""
    return config.gamma ** (step // per_epoch)


def cosine(config: ScheduleConfig, step: int, per_epoch: int, total: int) -> float:
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, without restarts)."""
    return _between(1.0, config.final, step / total, "cosine")


def one_cycle(config: ScheduleConfig, step: int, per_epoch: int, total: int) -> float:
    """Rise from `start` to 1 at the fraction `peak` of the run, then fall to `final` (Smith and Topin 2018).

    Only the learning rate changes; the momentum is constant.
    """
    last = max(total - 1, 1)
    top = config.peak * last
    if step <= top:
        return _between(config.start, 1.0, step / top, config.anneal)
    return _between(1.0, config.final, min((step - top) / (last - top), 1.0), config.anneal)


def _between(first: float, last: float, share: float, anneal: str) -> float:
    rise = (1 - math.cos(math.pi * share)) / 2 if anneal == "cosine" else share
    return first + (last - first) * rise


#: The factor of plateau is in Plateau, since it depends on the losses.
SHAPES: dict[str, Shape] = {
    "constant": constant,
    "step": step_decay,
    "exponential": exponential,
    "plateau": constant,
    "cosine": cosine,
    "one-cycle": one_cycle,
}


class Plateau:
    """Reduce by `factor` when val_loss has not improved by `threshold` for more than `patience` epochs."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.factor = 1.0
        self.best: float | None = None
        self.bad_epochs = 0

    def watch(self, val_loss: float) -> None:
        if self.best is None or val_loss < self.best * (1 - self.config.threshold):
            self.best, self.bad_epochs = val_loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.config.patience:
            self.factor, self.bad_epochs = self.factor * self.config.factor, 0


class Schedule:
    """The factor on every group's base learning rate at each optimiser step, including warm-up."""

    def __init__(self, config: ScheduleConfig, steps_per_epoch: int, epochs: int) -> None:
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.warmup = round(config.warmup_epochs * steps_per_epoch)
        self.total = max(epochs * steps_per_epoch - self.warmup, 1)
        self.plateau = Plateau(config)

    def factor(self, step: int) -> float:
        """The factor at `step`, counted from 0 over the whole run. In warm-up it is scaled by (step + 1) / warmup."""
        after = max(step - self.warmup, 0)
        rise = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        return (
            rise * self.plateau.factor * SHAPES[self.config.name](self.config, after, self.steps_per_epoch, self.total)
        )

    def epoch_ended(self, val_loss: float) -> None:
        if self.config.name == "plateau":
            self.plateau.watch(val_loss)

    def state(self) -> dict[str, Any]:
        return {"factor": self.plateau.factor, "best": self.plateau.best, "bad_epochs": self.plateau.bad_epochs}

    def load_state(self, state: dict[str, Any]) -> None:
        self.plateau.factor, self.plateau.best = state["factor"], state["best"]
        self.plateau.bad_epochs = state["bad_epochs"]
