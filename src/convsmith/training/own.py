"""Checks of a network and an optimiser of the user's own, made before a run starts; nothing of ours is built here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from convsmith.errors import UserError, first_line
from convsmith.optim.optimizers import DECAY, NO_DECAY, Group

OptimizerFactory = Callable[[list[Group]], torch.optim.Optimizer]


def refuse_unfit(module: nn.Module, channels: int, size: int, classes: int) -> None:
    """A UserError for a module of the user's own that cannot be trained on such images."""
    name = type(module).__name__
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"model {name} has no parameter to train")
    like = next(module.parameters())
    training = module.training
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(2, channels, size, size, device=like.device, dtype=like.dtype))
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"model {name} fails on images [2, {channels}, {size}, {size}]: {first_line(error)}") from error
    finally:
        module.train(training)
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != [2, classes]:
        raise UserError(
            f"model {name} gives {shape} for 2 images of {classes} classes: it must give logits [2, {classes}]"
        )


def own_optimizer(factory: OptimizerFactory, groups: list[Group]) -> torch.optim.Optimizer:
    """What the user's own factory makes of the groups; a UserError where schedules and penalties could not use it.

    The factory sees the groups by name alone and decides all rates. What `regularize` asks for is applied beside it, by
    `optim.penalties`; a weight decay that the optimiser has itself comes on top.
    """
    wanted = {id(parameter) for group in groups for parameter in group["params"]}
    if not callable(factory):
        raise UserError(
            "optimizer must be a function of parameter groups, such as lambda groups: torch.optim.SGD(groups, lr=0.1), "
            f"not {type(factory).__name__}"
        )
    optimizer = factory(groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer must return a torch optimiser, not {type(optimizer).__name__}")
    fix = "hand the groups on as they are, such as lambda groups: torch.optim.SGD(groups, lr=0.1)"
    if any(group.get("name") not in (DECAY, NO_DECAY) for group in optimizer.param_groups):
        raise UserError(
            f"optimizer: the groups of {type(optimizer).__name__} have lost their names, {DECAY} and {NO_DECAY}, "
            f"by which penalties apply: {fix}"
        )
    if wanted != {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}:
        raise UserError(f"optimizer: {type(optimizer).__name__} does not have the parameters that it was given: {fix}")
    return optimizer


def own_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What each group of the user's own optimiser is set to, as JSON values; without the rate that a schedule moves."""
    return [
        {key: _plain(value) for key, value in sorted(group.items()) if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def _plain(value: Any) -> Any:
    """A setting as JSON has it; words for what JSON has not."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    plain = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
