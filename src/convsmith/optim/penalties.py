"""L1 and L2 on the group `weights`: their gradients, their steps, and their values for the log.

L2 of strength s is s/2 times the sum of squares, so that its gradient is s times the weight.
"""

from __future__ import annotations

import torch

from convsmith.optim.config import RegularizeConfig
from convsmith.optim.optimizers import weights_of


@torch.no_grad()
def add_l1_gradient(optimizer: torch.optim.Optimizer, config: RegularizeConfig) -> None:
    """Subgradient of l1 x sum |w|: l1 x sign(w), 0 at 0. Gives small weights, hardly ever exact zeros."""
    if config.l1 and config.l1_mode == "subgradient":
        for _, weights in weights_of(optimizer):
            for weight in weights:
                if weight.grad is not None:  # a module of the user's own may have what no image reaches
                    weight.grad.add_(weight.sign(), alpha=config.l1)


@torch.no_grad()
def after_step(optimizer: torch.optim.Optimizer, config: RegularizeConfig) -> None:
    """Decoupled L2 where the optimiser has none of its own, and the proximal step of L1.

    Decoupled: w <- w (1 - lr x l2), Loshchilov and Hutter 2019. Proximal: w <- sign(w) max(|w| - lr x l1, 0),
    the soft threshold of ISTA, which makes exact zeros.
    """
    for lr, weights in weights_of(optimizer):
        for weight in weights:
            if config.l2 and config.l2_mode == "decoupled" and not isinstance(optimizer, torch.optim.AdamW):
                weight.mul_(1 - lr * config.l2)
            if config.l1 and config.l1_mode == "proximal":
                weight.copy_(torch.nn.functional.softshrink(weight, lr * config.l1))


@torch.no_grad()
def penalty_values(optimizer: torch.optim.Optimizer, config: RegularizeConfig) -> dict[str, float]:
    """Present values of the penalties, apart from the data loss, and the share of weights that are exactly 0."""
    weights = [
        weight.double() if weight.device.type != "mps" else weight
        for _, group in weights_of(optimizer)
        for weight in group
    ]
    count = sum(weight.numel() for weight in weights)
    return {
        "l1_penalty": config.l1 * sum(float(weight.abs().sum()) for weight in weights),
        "l2_penalty": config.l2 / 2 * sum(float(weight.square().sum()) for weight in weights),
        "zero_weights": sum(int((weight == 0).sum()) for weight in weights) / max(count, 1),
    }
