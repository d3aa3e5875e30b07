"""The CIFAR ResNet against the paper's layer and parameter counts."""

import pytest
import torch
from torch import nn

from convsmith.nets.blocks import unsafe_channels_last
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.nets.resnet import BasicBlock


@pytest.mark.parametrize(("depth", "layers", "millions"), [(3, 20, 0.27), (5, 32, 0.46), (9, 56, 0.85)])
def test_layers_and_parameters_are_those_of_the_paper(depth, layers, millions):
    model = build(ModelConfig(name="small-resnet", depth=depth), 3, 32, 10)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == layers
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_the_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros():
    block = BasicBlock(2, 4, 2, ModelConfig()).eval()
    nn.init.zeros_(block.norm2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 2, 5, 5)
    expected = torch.zeros(1, 4, 3, 3)
    expected[:, :2] = nn.MaxPool2d(1, stride=2)(x)
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("size", [1, 7, 8, 15, 32])
def test_any_image_size_works_in_both_layouts(size):
    model = build(ModelConfig(name="small-resnet", depth=1, width=4), 3, size, 5).eval().double()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-12)


def test_no_convolution_is_unsafe_in_channels_last():
    assert unsafe_channels_last(build(ModelConfig(name="small-resnet", depth=2, width=4), 1, 32, 5)) == []


def test_without_norm_the_convolutions_have_biases():
    model = build(ModelConfig(name="small-resnet", depth=1, norm="none", activation="gelu"), 3, 8, 5)
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.Conv2d))
    assert not any(isinstance(module, nn.BatchNorm2d | nn.ReLU) for module in model.modules())
