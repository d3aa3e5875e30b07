"""Objects of the user's own (data, network, optimiser), and checks of them before a run starts. Builds none of ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convsmith.contracts import Size, hw
from convsmith.data.sources import Source
from convsmith.errors import UserError, first_line
from convsmith.optim.optimizers import DECAY, NO_DECAY, Group

OptimizerFactory = Callable[[list[Group]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Parts:
    """Objects that Python users may pass in instead of a name in the config."""

    source: Source | None = None
    module: nn.Module | None = None
    optimizer: OptimizerFactory | None = None


NO_PARTS = Parts()


def refuse_unfit(module: nn.Module, channels: int, size: Size, classes: int) -> None:
    """Raise UserError if the user's own module cannot be trained on such images."""
    name = type(module).__name__
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"model {name} has no trainable parameters: set requires_grad on some")
    like = next(module.parameters())
    training = module.training
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(2, channels, *hw(size), device=like.device, dtype=like.dtype))
    except Exception as error:  # whatever the user's code raises
        images = [2, channels, *hw(size)]
        raise UserError(f"model {name} fails on images {images}: {first_line(error)}") from error
    finally:
        module.train(training)
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != [2, classes]:
        raise UserError(
            f"model {name} returns {shape} for 2 images of {classes} classes: it must return logits [2, {classes}]"
        )


def own_optimizer(factory: OptimizerFactory, groups: list[Group]) -> torch.optim.Optimizer:
    """The optimiser that the user's factory makes of the groups; UserError if schedules or penalties cannot use it.

    The factory gets groups with names but without rates, and decides all rates. `optim.penalties` applies the
    `regularize` section separately; the optimiser's own weight decay comes on top of it.
    """
    wanted = {id(parameter) for group in groups for parameter in group["params"]}
    if not callable(factory):
        raise UserError(
            "optimizer must be a function of parameter groups, e.g. lambda groups: torch.optim.SGD(groups, lr=0.1), "
            f"not {type(factory).__name__}"
        )
    optimizer = factory(groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer must return a torch optimiser, not {type(optimizer).__name__}")
    fix = "pass on the groups unchanged, e.g. lambda groups: torch.optim.SGD(groups, lr=0.1)"
    if any(group.get("name") not in (DECAY, NO_DECAY) for group in optimizer.param_groups):
        raise UserError(
            f"optimizer: the groups of {type(optimizer).__name__} have lost their names, {DECAY} and {NO_DECAY}, "
            f"which the penalties need: {fix}"
        )
    if wanted != {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}:
        raise UserError(f"optimizer: {type(optimizer).__name__} does not have the parameters of its groups: {fix}")
    return optimizer


def own_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each group of the user's own optimiser as JSON values, without the scheduled rate."""
    return [
        {key: _plain(value) for key, value in sorted(group.items()) if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def _plain(value: Any) -> Any:
    """A setting as a JSON value, or as text if JSON has no such type."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    plain = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
