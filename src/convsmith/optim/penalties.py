"""L1 and L2 penalties on the groups named `decay`: gradients, steps, and values for the log. Builds no optimiser.

L2 of strength s is s/2 times the sum of squares, so that its gradient is s times the weight. Optimisers that
apply L2 themselves have groups marked `applies_l2`; for all others, including the user's own, it is applied here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from convsmith.optim.config import RegularizeConfig
from convsmith.optim.optimizers import DECAY, Group


def decayed(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Group, torch.Tensor]]:
    """Each penalised parameter that is not frozen, with its group, whose `lr` is the current learning rate."""
    for group in optimizer.param_groups:
        if group["name"] == DECAY:
            yield from ((group, parameter) for parameter in group["params"] if parameter.requires_grad)


@torch.no_grad()
def before_step(optimizer: torch.optim.Optimizer, config: RegularizeConfig) -> None:
    """Add the gradients of the penalties that are part of the gradient.

    L1: l1 x sign(w), a subgradient of l1 x sum |w| (0 at 0), which gives small weights, but rarely exact zeros.
    L2, if it is coupled and the optimiser does not apply it itself: l2 x w.
    """
    l1 = config.l1 if config.l1_mode == "subgradient" else 0.0
    l2 = config.l2 if config.l2_mode == "coupled" else 0.0
    for group, weight in decayed(optimizer):
        if weight.grad is None:  # the user's own module may have parameters that do not affect the output
            continue
        if l1:
            weight.grad.add_(weight.sign(), alpha=l1)
        if l2 and not group.get("applies_l2"):
            weight.grad.add_(weight, alpha=l2)


@torch.no_grad()
def after_step(optimizer: torch.optim.Optimizer, config: RegularizeConfig) -> None:
    """Apply decoupled L2, if the optimiser does not do so itself, and the proximal step of L1.

    Decoupled: w <- w (1 - lr x l2), Loshchilov and Hutter 2019. Proximal: w <- sign(w) max(|w| - lr x l1, 0),
    the soft threshold of ISTA, which gives exact zeros.
    """
    for group, weight in decayed(optimizer):
        if config.l2 and config.l2_mode == "decoupled" and not group.get("applies_l2"):
            weight.mul_(1 - group["lr"] * config.l2)
        if config.l1 and config.l1_mode == "proximal":
            weight.copy_(torch.nn.functional.softshrink(weight, group["lr"] * config.l1))


@torch.no_grad()
def penalty_values(optimizer: torch.optim.Optimizer, config: RegularizeConfig) -> dict[str, float]:
    """The current values of the penalties, without the data loss, and the fraction of weights that are exactly 0."""
    weights = [weight.double() if weight.device.type != "mps" else weight for _, weight in decayed(optimizer)]
    count = sum(weight.numel() for weight in weights)
    return {
        "l1_penalty": config.l1 * sum(float(weight.abs().sum()) for weight in weights),
        "l2_penalty": config.l2 / 2 * sum(float(weight.square().sum()) for weight in weights),
        "zero_weights": sum(int((weight == 0).sum()) for weight in weights) / max(count, 1),
    }
