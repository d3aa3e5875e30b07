"""Muon against a transcription of its published rule in NumPy's float64, the exact SVD, and torch's own Muon."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.optim.config import OptimConfig, RegularizeConfig
from convsmith.optim.optimizers import Muon, build_optimizer, orthogonal, parameter_groups

CPU = torch.device("cpu")
Array = np.ndarray


def newton_schulz(g: Array, iterations: int = 5) -> Array:
    """zeropower_via_newtonschulz5 of https://kellerjordan.github.io/posts/muon/, in float64."""
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(iterations):
        aa = x @ x.T
        x = a * x + (b * aa + c * aa @ aa) @ x
    return x.T if g.shape[0] > g.shape[1] else x


class Published:
    """The rule for one parameter: Muon for a matrix, AdamW for anything else."""

    def __init__(self, value: Array, matrix: bool, lr: float, decay: float, adamw_factor: float) -> None:
        self.value, self.matrix, self.decay = value.copy(), matrix, decay
        self.lr = lr if matrix else lr * adamw_factor
        self.first, self.second, self.steps = np.zeros_like(value), np.zeros_like(value), 0

    def step(self, gradient: Array) -> None:
        self.steps += 1
        self.value *= 1 - self.lr * self.decay
        if self.matrix:
            self.first = 0.95 * self.first + 0.05 * gradient
            looked_ahead = (0.95 * self.first + 0.05 * gradient).reshape(len(gradient), -1)
            rows, columns = looked_ahead.shape
            update = newton_schulz(looked_ahead) * max(1, rows / columns) ** 0.5
        else:
            self.first = 0.9 * self.first + 0.1 * gradient
            self.second = 0.999 * self.second + 0.001 * gradient**2
            first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
            update = first / (np.sqrt(second) + 1e-8)
        self.value -= self.lr * update.reshape(self.value.shape)


def net() -> nn.Module:
    torch.manual_seed(0)
    return build(ModelConfig(name="simple-cnn", hidden=(7,)), 1, 8, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_muon_follows_the_published_rule_and_adamw_takes_biases_norms_and_the_head(l2: float, layout) -> None:
    model = net().to(memory_format=layout)
    regularize = RegularizeConfig(l2=l2, l2_mode="decoupled")
    optimizer = build_optimizer(parameter_groups(model), OptimConfig(name="muon", lr=0.1), regularize, CPU)
    rules = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and not name.startswith("head")
        decay = l2 if parameter.ndim > 1 else 0.0
        rules[name] = Published(parameter.detach().double().numpy(), matrix, 0.1, decay, 0.05)
    assert sum(rule.matrix for rule in rules.values()) == 3  # two convolutions and the hidden layer
    draw = torch.Generator().manual_seed(1)
    for _ in range(4):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw).contiguous(
                memory_format=torch.contiguous_format
            )
            rules[name].step(parameter.grad.double().numpy())
        optimizer.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), rules[name].value, atol=2e-5, err_msg=name)


def test_normalized_weights_follow_airbench_with_the_exact_orthogonal_factor() -> None:
    """Against the SVD: after each step a weight is W sqrt(rows) / |W| - lr U V^T, to the iteration's accuracy."""
    model = net()
    config = OptimConfig(name="muon", lr=0.1, muon_momentum=0.6, muon_normalize=True, muon_steps=12)
    optimizer = build_optimizer(parameter_groups(model), config, RegularizeConfig(), CPU)
    weight, buffer = model.blocks[1].conv.weight, 0.0
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        before = weight.detach().double().numpy().copy()
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        gradient = weight.grad.double().numpy()
        buffer = 0.6 * buffer + gradient  # as airbench94_muon accumulates it, to a factor
        left, _, right = np.linalg.svd((gradient + 0.6 * buffer).reshape(len(gradient), -1), full_matrices=False)
        optimizer.step()
        moved = weight.detach().double().numpy() - before * len(before) ** 0.5 / np.linalg.norm(before)
        exact = -0.1 * (left @ right).reshape(before.shape)
        assert np.linalg.norm(moved - exact) < 0.3 * np.linalg.norm(exact)
        assert (moved * exact).sum() > 0.98 * np.linalg.norm(moved) * np.linalg.norm(exact)


def test_more_iterations_lift_small_singular_values_further() -> None:
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    smallest = [torch.linalg.svdvals(orthogonal(matrix, count)).min() for count in (1, 2, 3)]
    assert smallest == sorted(smallest)


@given(st.integers(1, 12), st.integers(1, 60), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=30)
def test_square_matrices_alone_give_what_the_iteration_does(rows, columns, iterations, seed) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    ours = orthogonal(torch.from_numpy(matrix), iterations).numpy()
    np.testing.assert_allclose(ours, newton_schulz(matrix.astype(np.float64), iterations), atol=3e-5)


@given(st.integers(1, 24), st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=30)
def test_the_iteration_keeps_the_singular_vectors_and_brings_the_singular_values_near_1(rows, columns, seed) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    result = orthogonal(torch.from_numpy(matrix)).numpy()
    in_its_basis = left.T @ result @ right.T
    np.testing.assert_allclose(in_its_basis, np.diag(np.diag(in_its_basis)), atol=1e-6)
    well_conditioned = values > 0.05 * np.linalg.norm(values)
    assert (np.abs(np.diag(in_its_basis)[well_conditioned] - 1) < 0.35).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 and later have Muon")
def test_a_linear_layer_moves_as_with_torchs_muon() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(12, 30, bias=False), nn.Linear(12, 30, bias=False)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    first = Muon(parameter_groups(ours), 0.02)
    second = torch.optim.Muon(theirs.parameters(), lr=0.02, weight_decay=0.0)
    for _ in range(3):
        ours.weight.grad = torch.randn(30, 12)
        theirs.weight.grad = ours.weight.grad.clone()
        first.step()
        second.step()
    moved, expected = ours.weight - before, theirs.weight - before
    assert torch.linalg.norm(moved - expected) < 0.02 * torch.linalg.norm(expected)  # theirs iterates in bfloat16


def test_muon_goes_on_from_its_tensors_to_the_very_same_weights() -> None:
    model = net()
    optimizer = build_optimizer(parameter_groups(model), OptimConfig(name="muon"), RegularizeConfig(), CPU)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.linspace(-1, 1, 320).view(5, 1, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    train(model, optimizer)
    again = copy.deepcopy(model)
    resumed = build_optimizer(parameter_groups(again), OptimConfig(name="muon"), RegularizeConfig(), CPU)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert all(isinstance(value, torch.Tensor) for value in optimizer.state[ours].values())
        resumed.state[theirs] = {key: value.clone() for key, value in optimizer.state[ours].items()}
    train(model, optimizer)
    train(again, resumed)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_frozen_weight_stays_and_gets_no_state() -> None:
    model = net()
    frozen = model.blocks[0].conv.weight
    optimizer = Muon(parameter_groups(model), 0.1)
    frozen.requires_grad_(False)
    before = frozen.clone()
    model(torch.randn(3, 1, 8, 8)).sum().backward()
    optimizer.step()
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state
