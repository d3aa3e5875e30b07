"""Optimisers and penalties against torch's own classes on the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from convsmith.errors import UserError
from convsmith.optim.config import OPTIMIZERS, OptimConfig, RegularizeConfig
from convsmith.optim.optimizers import BUILDERS, build_optimizer, parameter_groups
from convsmith.optim.penalties import after_step, before_step, penalty_values
from convsmith.training.own import own_optimizer

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    # No bias before the batch norm: its gradient is rounding noise, which Adam would magnify.
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, regularize: RegularizeConfig | None = None) -> None:
    torch.manual_seed(1)
    for _ in range(4):
        loss = model(torch.randn(5, 1, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if regularize:
            before_step(optimizer, regularize)
        optimizer.step()
        if regularize:
            after_step(optimizer, regularize)


def same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


def two_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


ORACLES = {
    "sgd": (
        OptimConfig(name="sgd", lr=0.1, momentum=0.8, nesterov=True),
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True),
    ),
    "sgd dampened": (
        OptimConfig(name="sgd", lr=0.1, momentum=0.8, dampening=0.3),
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, dampening=0.3),
    ),
    "adam": (
        OptimConfig(name="adam", lr=0.01, betas=(0.8, 0.99), eps=1e-6),
        lambda groups: torch.optim.Adam(groups, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
    ),
    "adamw": (OptimConfig(name="adamw", lr=0.01), lambda groups: torch.optim.AdamW(groups, lr=0.01)),
    "rmsprop": (
        OptimConfig(name="rmsprop", lr=0.01, alpha=0.9, momentum=0.5),
        lambda groups: torch.optim.RMSprop(groups, lr=0.01, alpha=0.9, momentum=0.5),
    ),
    "adagrad": (OptimConfig(name="adagrad", lr=0.05), lambda groups: torch.optim.Adagrad(groups, lr=0.05, eps=1e-8)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_optimizer_with_coupled_l2_equals_torch(name: str) -> None:
    config, oracle = ORACLES[name]
    ours, theirs = net(), net()
    train(ours, build_optimizer(parameter_groups(ours), config, RegularizeConfig(l2=0.1), CPU))
    train(theirs, oracle(two_groups(theirs, 0.1)))
    same(ours, theirs)


def test_every_optimizer_of_the_config_has_an_oracle() -> None:
    assert {key.split()[0] for key in ORACLES} | {"muon"} == set(OPTIMIZERS) == set(BUILDERS)


def test_adam_with_decoupled_l2_is_adamw() -> None:
    regularize = RegularizeConfig(l2=0.1, l2_mode="decoupled")
    ours, theirs = net(), net()
    optimizer = build_optimizer(parameter_groups(ours), OptimConfig(name="adam", lr=0.01), regularize, CPU)
    train(ours, optimizer, regularize)
    train(theirs, torch.optim.AdamW(two_groups(theirs, 0.1), lr=0.01))
    same(ours, theirs)


def test_decoupled_l2_of_plain_sgd_shrinks_weights_alone() -> None:
    regularize = RegularizeConfig(l2=0.5, l2_mode="decoupled")
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.0)
    model = net()
    before = copy.deepcopy(model)
    optimizer = build_optimizer(parameter_groups(model), config, regularize, CPU)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after_step(optimizer, regularize)
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(now, then * 0.95 if now.ndim > 1 else then, msg=name)


@pytest.mark.parametrize(("name", "mode"), [("sgd", "coupled"), ("sgd", "decoupled"), ("adam", "coupled")])
def test_l2_reaches_an_optimiser_of_the_users_own_as_it_does_ours(name: str, mode: str) -> None:
    regularize = RegularizeConfig(l2=0.1, l2_mode=mode)
    classes = {"sgd": lambda groups: torch.optim.SGD(groups, 0.05, 0.9), "adam": lambda g: torch.optim.Adam(g, 1e-3)}
    ours, own = net(), net()
    train(ours, build_optimizer(parameter_groups(ours), OptimConfig(name=name), regularize, CPU), regularize)
    train(own, own_optimizer(classes[name], parameter_groups(own)), regularize)
    same(ours, own)
    unpenalised = net()
    train(unpenalised, own_optimizer(classes[name], parameter_groups(unpenalised)))
    assert not torch.allclose(unpenalised[3].weight, own[3].weight, rtol=1e-4)


def test_groups_by_other_names_would_get_no_penalty_and_are_refused() -> None:
    with pytest.raises(
        UserError, match="lost their names, decay and no_decay, which the penalties need: pass on the gr"
    ):
        own_optimizer(
            lambda groups: torch.optim.SGD([{**g, "name": "mine"} for g in groups], 0.1), [*parameter_groups(net())]
        )


def test_l1_subgradient_equals_autograd_of_the_penalty() -> None:
    regularize = RegularizeConfig(l1=0.3)
    ours, theirs = net(), net()
    images = torch.randn(5, 1, 8, 8)
    optimizer = build_optimizer(parameter_groups(ours), OptimConfig(name="sgd"), regularize, CPU)
    ours(images).square().mean().backward()
    before_step(optimizer, regularize)
    penalty = 0.3 * sum(p.abs().sum() for p in theirs.parameters() if p.ndim > 1)
    (theirs(images).square().mean() + penalty).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_proximal_l1_makes_exact_zeros_and_the_subgradient_hardly_any() -> None:
    zeros = {}
    for mode in ("subgradient", "proximal"):
        regularize = RegularizeConfig(l1=0.05, l1_mode=mode)
        model = net()
        optimizer = build_optimizer(
            parameter_groups(model), OptimConfig(name="sgd", lr=0.1, momentum=0.0), regularize, CPU
        )
        for _ in range(10):
            train(model, optimizer, regularize)
        zeros[mode] = penalty_values(optimizer, regularize)["zero_weights"]
    assert zeros["proximal"] > 0.5
    assert zeros["subgradient"] < 0.01


def test_penalty_values_are_the_sums_they_name() -> None:
    model = net()
    regularize = RegularizeConfig(l1=0.2, l2=0.3)
    optimizer = build_optimizer(parameter_groups(model), OptimConfig(), regularize, CPU)
    weights = torch.cat([p.flatten() for p in model.parameters() if p.ndim > 1]).double()
    values = penalty_values(optimizer, regularize)
    assert values["l1_penalty"] == pytest.approx(0.2 * weights.abs().sum().item())
    assert values["l2_penalty"] == pytest.approx(0.15 * weights.square().sum().item())
    assert values["zero_weights"] == 0


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if "eps" in entry.uses])
def test_the_smallest_eps_leaves_weights_without_a_gradient_as_they_are(name: str) -> None:
    with pytest.raises(ValueError, match="must be at least 1e-37, since float32"):
        OptimConfig(eps=1e-50)
    model = net()
    before = copy.deepcopy(model)
    optimizer = build_optimizer(parameter_groups(model), OptimConfig(name=name, eps=1e-37), RegularizeConfig(), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)


def test_frozen_parameters_are_in_no_group() -> None:
    model = net()
    model[0].requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(model) for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}


def test_biases_and_norms_may_learn_at_a_rate_of_their_own() -> None:
    ours, theirs = net(), net()
    train(
        ours,
        build_optimizer(
            parameter_groups(ours), OptimConfig(name="sgd", lr=0.01, bias_lr_factor=8), RegularizeConfig(), CPU
        ),
    )
    groups = two_groups(theirs, 0.0)
    groups[1]["lr"] = 0.08
    train(theirs, torch.optim.SGD(groups, lr=0.01, momentum=0.9))
    same(ours, theirs)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_momentum_of_unfrozen_parameters_begins_as_that_of_the_others_did(dampening: float) -> None:
    """The fused kernel against torch's plain one, where a parameter of a group is first trained in the second step."""
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.9, dampening=dampening)
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        old, new = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        group = {"params": [old, new], "weight_decay": 0.1}
        optimizer = BUILDERS["sgd"]([group], config, fused)
        for step in range(3):
            old.grad = torch.randn(3)
            new.grad = torch.randn(3) if step else None
            optimizer.step()
        weights.append(torch.stack([old.detach(), new.detach()]))
    torch.testing.assert_close(weights[0], weights[1])
