"""Initialisation against the formulas and against torch.nn.init."""

from math import sqrt
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from convsmith.errors import UserError
from convsmith.nets import config as names
from convsmith.nets.blocks import ACTIVATIONS
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.nets.init import SCHEMES, initialise, whiten

FAN_IN = 64 * 3 * 3
FAN_OUT = 128 * 3 * 3


def conv(scheme: names.Init, activation: names.Activation = "relu") -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 128, 3)
    initialise(nn.Sequential(layer), scheme, activation)
    return layer


@pytest.mark.parametrize(
    ("scheme", "bound"),
    [
        ("default", 1 / sqrt(FAN_IN)),
        ("kaiming_uniform", sqrt(6 / FAN_IN)),
        ("xavier_uniform", sqrt(2) * sqrt(6 / (FAN_IN + FAN_OUT))),
    ],
)
def test_bounds_of_the_uniform_schemes(scheme, bound):
    weight = conv(scheme).weight
    assert weight.abs().max().item() <= bound
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert weight.std().item() == pytest.approx(bound / sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("scheme", "std"),
    [("kaiming_normal", sqrt(2 / FAN_IN)), ("xavier_normal", sqrt(2) * sqrt(2 / (FAN_IN + FAN_OUT)))],
)
def test_deviations_of_the_normal_schemes(scheme, std):
    weight = conv(scheme).weight
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=std / 50)
    assert weight.abs().max().item() > 3 * std


def test_with_dirac_the_first_channels_of_a_convolution_are_its_input_and_the_others_drawn() -> None:
    torch.manual_seed(0)
    layer, plain = nn.Conv2d(3, 5, 3, padding=1, bias=False), conv("default")
    initialise(nn.Sequential(layer), "dirac", "relu")
    images = torch.randn(2, 3, 6, 6)
    assert torch.equal(layer(images)[:, :3], images)
    assert layer.weight[3:].std() > 0.05
    assert torch.equal(conv("dirac").weight[64:], plain.weight[64:])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("scheme", ["kaiming_uniform", "kaiming_normal"])
def test_kaiming_is_torchs_own(scheme, activation):
    ours = conv(scheme, activation)
    torch.manual_seed(0)
    theirs = nn.Conv2d(64, 128, 3)
    slope = nn.LeakyReLU().negative_slope if activation == "leaky_relu" else 0
    getattr(nn.init, f"{scheme}_")(theirs.weight, a=slope, nonlinearity=activation)
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu"])
def test_gains_keep_the_second_moment(activation):
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-(z**2) / 2) / sqrt(2 * np.pi)
    values = ACTIVATIONS[activation].build()(torch.from_numpy(z)).numpy()
    moment = float((values**2 * density).sum() * (z[1] - z[0]))
    assert ACTIVATIONS[activation].gain == pytest.approx(1 / sqrt(moment), rel=1e-4)


def test_default_is_what_torch_draws():
    ours = conv("default")
    torch.manual_seed(0)
    theirs = nn.Conv2d(64, 128, 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_layers_are_drawn_and_the_head_has_no_gain(scheme):
    config = ModelConfig(name="convnet", blocks=(BlockConfig(channels=8),), hidden=(300,), norm="none", init=scheme)
    torch.manual_seed(0)
    model = build(config, 3, 16, 100)
    for name, layer in {"conv": model.blocks[0].conv, "hidden": model.hidden[0], "head": model.head}.items():
        gain = 1.0 if name == "head" else sqrt(2)
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        variance = 1 / fan_in if scheme.startswith("kaiming") else 2 / (fan_in + fan_out)
        assert layer.weight.std().item() == pytest.approx(gain * sqrt(variance), rel=0.15)
        assert not layer.bias.any()


def test_norms_keep_their_ones_and_zeros():
    model = build(ModelConfig(init="kaiming_normal"), 1, 8, 3)
    assert (model.blocks[0].norm.weight == 1).all()
    assert (model.blocks[0].norm.bias == 0).all()


def test_registries_hold_the_names_of_the_config():
    assert {"default", "dirac", *SCHEMES} == set(get_args(names.Init))


def test_whitening_makes_the_patches_uncorrelated_with_unit_variance():
    torch.manual_seed(0)
    mixing = torch.randn(3, 3)
    images = torch.einsum("dc,nchw->ndhw", mixing, torch.randn(200, 3, 9, 9))  # channels that vary together
    layer = nn.Conv2d(3, 24, 2)
    whiten(layer, images)
    outputs = layer(images).detach().permute(0, 2, 3, 1).reshape(-1, 24).double()
    moments = outputs[:, :12].T @ outputs[:, :12] / len(outputs)
    torch.testing.assert_close(moments, torch.eye(12, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(outputs[:, 12:], -outputs[:, :12], atol=1e-5, rtol=0)


def whitened(channels: int) -> ModelConfig:
    blocks = (BlockConfig(channels=channels, kernel=2, padding=0), BlockConfig(channels=8))
    return ModelConfig(name="convnet", blocks=blocks, whiten=True)


def test_whitening_filters_are_not_trained():
    model = build(whitened(24), 3, 8, 10)
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["blocks.0.conv.weight"]


def test_whitening_needs_two_channels_a_patch_value():
    with pytest.raises(UserError, match=r"needs 24 channels \(2 x 3 image channels x 2 x 2\), not 32"):
        build(whitened(32), 3, 8, 10)
