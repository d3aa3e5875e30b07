"""Optimisers by name, over parameter groups that say what each parameter is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from convsmith.optim.config import DEFAULT_LR, OptimConfig, OptimizerName, RegularizeConfig

Group = dict[str, Any]


def parameter_groups(model: nn.Module) -> list[Group]:
    """Two groups: `weights` (of convolutions and linear layers: penalties apply) and `others` (biases, norms).

    Frozen parameters (no gradient) are in neither and so get no optimiser state.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    return [
        {"name": name, "params": members} for name, members in (("weights", weights), ("others", others)) if members
    ]


def keep_base_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Note each group's learning rate as its `base_lr`, which schedules multiply.

    A group's `lr_factor` (lower rates for pretrained stages) is applied here, to the user's own optimisers too.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] = group["lr"] * group.get("lr_factor", 1.0)
    return optimizer


def weights_of(optimizer: torch.optim.Optimizer) -> list[tuple[float, list[torch.Tensor]]]:
    """The penalised parameters that train at present, with their present learning rates."""
    return [
        (group["lr"], [parameter for parameter in group["params"] if parameter.requires_grad])
        for group in optimizer.param_groups
        if group["name"] == "weights"
    ]


def build_optimizer(
    groups: list[Group], config: OptimConfig, regularize: RegularizeConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser that `config.name` names; L2 goes to groups named `weights` alone.

    Coupled L2 is torch's `weight_decay` (added to the gradient). Decoupled L2 is AdamW's own for adam and
    adamw; for the others `penalties.shrink` applies it.
    """
    name: OptimizerName = config.name
    if name == "adam" and regularize.l2_mode == "decoupled":
        name = "adamw"
    within = regularize.l2_mode == "coupled" or name == "adamw"
    for group in groups:
        group["lr"] = default_lr(config) * (1.0 if group["name"] == "weights" else config.bias_lr_factor)
        group["weight_decay"] = regularize.l2 if within and group["name"] == "weights" else 0.0
    return OPTIMIZERS[name](groups, config, device.type in ("cpu", "cuda"))


def default_lr(config: OptimConfig) -> float:
    return DEFAULT_LR[config.name] if config.lr is None else config.lr


def _sgd(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups,
        default_lr(config),
        momentum=config.momentum,
        dampening=config.dampening,
        nesterov=config.nesterov,
        fused=fused,
    )


def _adam(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, default_lr(config), betas=config.betas, eps=config.eps, fused=fused)


def _adamw(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, default_lr(config), betas=config.betas, eps=config.eps, fused=fused)


def _rmsprop(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, default_lr(config), alpha=config.alpha, eps=config.eps, momentum=config.momentum)


def _adagrad(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, default_lr(config), eps=config.eps)


OPTIMIZERS: dict[OptimizerName, Callable[[list[Group], OptimConfig, bool], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
}
