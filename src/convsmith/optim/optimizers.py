"""Builds optimisers and their parameter groups. Their names, default rates and keys are in config.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from convsmith.optim.config import OPTIMIZERS, OptimConfig, RegularizeConfig

Group = dict[str, Any]
DECAY, NO_DECAY = "decay", "no_decay"
LONG = 2  # columns / rows of a matrix from which its orthogonalisation is faster by square matrices alone


def parameter_groups(model: nn.Module) -> list[Group]:
    """Two named groups: `decay` (weights of convolutions and linear layers, to which penalties apply) and `no_decay`
    (biases and norms).

    Frozen parameters (without gradients) are in neither, and so get no optimiser state. Each group also lists the
    parameters of the network's head as `head`, for optimisers that update them by another rule.
    """
    head = list(module.parameters()) if isinstance(module := getattr(model, "head", None), nn.Module) else []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = [parameter for parameter in trained if parameter.ndim > 1]
    no_decay = [parameter for parameter in trained if parameter.ndim <= 1]
    return [
        {"name": name, "params": members, "head": head}
        for name, members in ((DECAY, decay), (NO_DECAY, no_decay))
        if members
    ]


def keep_base_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Store each group's learning rate as its `base_lr`, which schedules multiply.

    A group's `lr_factor` (lower rates for pretrained stages) is applied here, also to the user's own optimisers.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] = group["lr"] * group.get("lr_factor", 1.0)
    return optimizer


def build_optimizer(
    groups: list[Group], config: OptimConfig, regularize: RegularizeConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Build the optimiser that `config.name` names. L2 applies only to groups named `decay`.

    If the optimiser implements the configured mode of L2, its `weight_decay` is set and its groups are marked
    `applies_l2`. In all other groups, including those of the user's own optimisers, penalties.py applies L2.
    """
    name = "adamw" if config.name == "adam" and regularize.l2_mode == "decoupled" else config.name
    within = regularize.l2_mode in OPTIMIZERS[name].applies
    for group in groups:
        group["lr"] = default_lr(config) * (1.0 if group["name"] == DECAY else config.bias_lr_factor)
        group["weight_decay"] = regularize.l2 if within and group["name"] == DECAY else 0.0
        group["applies_l2"] = within
    return BUILDERS[name](groups, config, device.type in ("cpu", "cuda"))


def default_lr(config: OptimConfig) -> float:
    """The learning rate in `config`, or else the optimiser's default."""
    return OPTIMIZERS[config.name].lr if config.lr is None else config.lr


class Muon(torch.optim.Optimizer):
    """Muon for the weights of hidden layers, AdamW for the rest: biases, norms and the head.

    With gradient g, momentum m <- b m + (1 - b) g and Nesterov's look-ahead u = b m + (1 - b) g, a matrix is updated
    by W <- W (1 - lr decay) - lr sqrt(max(1, rows / columns)) orthogonal(u). A convolution's kernels [O, I, K, K] form
    the matrix [O, I K K]. With `normalize`, W is first brought to the norm sqrt(rows), that of an orthogonal matrix.
    AdamW's rate is `adamw_lr_factor` x lr. Without an attribute `head`, a model's last layer counts as hidden.

    Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024). Its code iterates in
    bfloat16 and takes rows / columns of kernels from their last two axes, which gives 1; here the iteration is in
    float32, and rows / columns are those of the matrix. `normalize` is of his airbench94_muon (2024).
    """

    def __init__(
        self,
        groups: list[Group],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adamw_lr_factor: float = 0.05,
        normalize: bool = False,
        iterations: int = 5,
    ) -> None:
        values = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        of_muon = {"normalize": normalize, "iterations": iterations}
        super().__init__(groups, values | of_muon | {"adamw_lr_factor": adamw_lr_factor})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            head = {id(parameter) for parameter in group.get("head", ())}
            present = [parameter for parameter in group["params"] if parameter.grad is not None]
            hidden = [parameter for parameter in present if parameter.ndim > 1 and id(parameter) not in head]
            for parameter in hidden:
                self._move_orthogonally(parameter, group)
            updated = {id(parameter) for parameter in hidden}
            self._adamw([parameter for parameter in present if id(parameter) not in updated], group)

    def _move_orthogonally(self, weight: torch.Tensor, group: Group) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
        update = torch.lerp(weight.grad, momentum, group["momentum"]).flatten(1)
        rows, columns = update.shape
        if group["normalize"]:
            weight.mul_(rows**0.5 / weight.norm().clamp_min(1e-12))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(
            orthogonal(update, group["iterations"]).view(weight.shape),
            alpha=group["lr"] * max(1, rows / columns) ** 0.5,
        )

    def _adamw(self, parameters: list[torch.Tensor], group: Group) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"] * group["adamw_lr_factor"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """An approximation of U V^T, where U S V^T is the singular value decomposition of `matrix` [R, C].

    It takes steps X <- p(X X^T) X of a Newton-Schulz iteration, whose polynomial is steep at 0, so that small singular
    values grow fast. After five, the singular values of the result lie between about 0.7 and 1.2. Where X has many
    more columns than rows, the polynomials are multiplied with each other first, and each next X X^T is made of them.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    if wide.shape[1] > LONG * wide.shape[0]:
        square = wide @ wide.T
        product = polynomial = _polynomial(square)
        for _ in range(iterations - 1):
            square = polynomial @ square @ polynomial
            polynomial = _polynomial(square)
            product = polynomial @ product
        wide = product @ wide
    else:
        for _ in range(iterations):
            wide = _polynomial(wide @ wide.T) @ wide
    result: torch.Tensor = wide.T if matrix.shape[0] > matrix.shape[1] else wide
    return result.contiguous()


def _polynomial(square: torch.Tensor) -> torch.Tensor:
    """3.4445 - 4.7750 S + 2.0315 S^2 of a symmetric matrix S."""
    result = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
    result.diagonal().add_(3.4445)
    return result


def _sgd(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(
        groups,
        default_lr(config),
        momentum=config.momentum,
        dampening=config.dampening,
        nesterov=config.nesterov,
        fused=fused,
    )
    if fused and config.momentum:
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


@torch.no_grad()
def _begin_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give parameters that have just been unfrozen the momentum after which their first step is one.

    torch's fused kernel takes the parameters of a group to be equally old, and fails for those without momentum. The
    first step sets the momentum to the gradient: m b + (1 - dampening) g = g for b = g dampening / m.
    """
    for group in optimizer.param_groups:
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        new = [parameter for parameter in trained if optimizer.state[parameter].get("momentum_buffer") is None]
        if len(new) < len(trained):
            for parameter in new:
                gradient = torch.empty_like(parameter).copy_(parameter.grad)
                gradient.add_(parameter, alpha=group["weight_decay"]).mul_(group["dampening"] / group["momentum"])
                optimizer.state[parameter]["momentum_buffer"] = gradient


def _adam(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, default_lr(config), betas=config.betas, eps=config.eps, fused=fused)


def _adamw(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, default_lr(config), betas=config.betas, eps=config.eps, fused=fused)


def _rmsprop(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, default_lr(config), alpha=config.alpha, eps=config.eps, momentum=config.momentum)


def _adagrad(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, default_lr(config), eps=config.eps)


def _muon(groups: list[Group], config: OptimConfig, fused: bool) -> torch.optim.Optimizer:
    return Muon(
        groups,
        default_lr(config),
        config.muon_momentum,
        config.betas,
        config.eps,
        adamw_lr_factor=config.adamw_lr_factor,
        normalize=config.muon_normalize,
        iterations=config.muon_steps,
    )


#: (groups with their rates and L2, section, whether torch has a fused kernel for the device) -> optimiser
BUILDERS: dict[str, Callable[[list[Group], OptimConfig, bool], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "muon": _muon,
}
