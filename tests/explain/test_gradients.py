"""Gradients by layer against autograd by hand, and vanishing where they must."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convsmith.explain.activations import gradient_rms


def test_the_values_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    found = gradient_rms(model, images, labels)
    weights = [model[0].weight, model[3].weight]
    by_hand = torch.autograd.grad(-model(images).log_softmax(1)[range(5), labels].mean(), weights)
    assert list(found) == ["0", "3"]
    for value, gradient in zip(found.values(), by_hand, strict=True):
        assert value == pytest.approx(float(gradient.pow(2).mean().sqrt()), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_vanish_with_sigmoid_and_not_with_relu() -> None:
    shares = {}
    for activation in (nn.Sigmoid, nn.ReLU):
        torch.manual_seed(0)
        layers = [layer for _ in range(8) for layer in (nn.Linear(32, 32), activation())]
        for layer in layers[::2]:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        model = nn.Sequential(*layers, nn.Linear(32, 3))
        found = list(gradient_rms(model, torch.randn(64, 32), torch.randint(3, (64,))).values())
        shares[activation] = found[0] / found[-1]
    assert shares[nn.Sigmoid] < shares[nn.ReLU] / 20
