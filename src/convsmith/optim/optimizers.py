"""Optimisers by name and the parameter groups that they update; what they are called and use stands in config.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from convsmith.optim.config import OPTIMIZERS, OptimConfig, RegularizeConfig

Group = dict[str, Any]
DECAY, NO_DECAY = "decay", "no_decay"


def parameter_groups(model: nn.Module) -> list[Group]:
    """Two groups by name: `decay` (weights of convolutions and linear layers: penalties apply) and `no_decay`
    (biases, norms).

    Frozen parameters (no gradient) are in neither and so get no optimiser state.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = [parameter for parameter in trained if parameter.ndim > 1]
    no_decay = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"name": name, "params": members} for name, members in ((DECAY, decay), (NO_DECAY, no_decay)) if members]


def keep_base_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Note each group's learning rate as its `base_lr`, which schedules multiply.

    A group's `lr_factor` (lower rates for pretrained stages) is applied here, to the user's own optimisers too.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] = group["lr"] * group.get("lr_factor", 1.0)
    return optimizer


def build_optimizer(
    groups: list[Group], config: OptimConfig, regularize: RegularizeConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser that `config.name` names; L2 goes to groups named `decay` alone.

    Coupled L2 is torch's `weight_decay` (added to the gradient). Decoupled L2 is AdamW's own for adam and
    adamw; for the others `penalties.after_step` applies it. A group whose `applies_l2` is true has its L2 within
    the optimiser; to all others, those of the user's own optimisers too, the penalties apply it.
    """
    name = "adamw" if config.name == "adam" and regularize.l2_mode == "decoupled" else config.name
    within = regularize.l2_mode == "coupled" or name == "adamw"
    for group in groups:
        group["lr"] = default_lr(config) * (1.0 if group["name"] == DECAY else config.bias_lr_factor)
        group["weight_decay"] = regularize.l2 if within and group["name"] == DECAY else 0.0
        group["applies_l2"] = within
    return BUILDERS[name](groups, config, device.type in ("cpu", "cuda"))


def default_lr(config: OptimConfig) -> float:
    """The learning rate that `config` asks for, or else the optimiser's usual one."""
    return OPTIMIZERS[config.name].lr if config.lr is None else config.lr


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


#: groups with their rates and L2, the section, whether torch has a fused kernel for the device -> optimiser
BUILDERS: dict[str, Callable[[list[Group], OptimConfig, bool], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
}
