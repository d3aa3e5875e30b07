"""Blocks and poolings against slow twins and torch's own layers."""

import copy
from itertools import permutations
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convsmith.errors import UserError
from convsmith.nets import config as names
from convsmith.nets.blocks import ACTIVATIONS, NORMS, POOLS, ConvBlock, TMaxAvgPool2d, unsafe_channels_last
from convsmith.nets.build import build
from convsmith.nets.config import ORDER, BlockConfig, ModelConfig

DEFAULTS = ModelConfig()


def t_max_avg_reference(x, size, stride, t, k):
    """One window at a time, as the paper words it."""
    rows, columns = (x.shape[2] - size) // stride + 1, (x.shape[3] - size) // stride + 1
    result = torch.empty(*x.shape[:2], rows, columns, dtype=x.dtype)
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(d) for d in result.shape)).tolist():
        window = x[n, c, i * stride : i * stride + size, j * stride : j * stride + size]
        largest = sorted(window.flatten().tolist(), reverse=True)[:k]
        result[n, c, i, j] = largest[0] if all(v >= t for v in largest) else sum(largest) / k
    return result


@settings(max_examples=30)
@given(
    st.integers(1, 3).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size * size))),
    st.integers(1, 3),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_t_max_avg_is_its_definition(window, stride, t, seed):
    size, k = window
    x = torch.rand(2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(TMaxAvgPool2d(size, stride, t, k)(x), t_max_avg_reference(x, size, stride, t, k))


def test_t_max_avg_has_max_and_average_pooling_as_its_ends():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(TMaxAvgPool2d(2, 2, t=0.5, k=1)(x), nn.MaxPool2d(2)(x))
    assert torch.equal(TMaxAvgPool2d(2, 2, t=-100.0, k=4)(x), nn.MaxPool2d(2)(x))
    assert torch.allclose(TMaxAvgPool2d(2, 2, t=100.0, k=4)(x), nn.AvgPool2d(2)(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_t_max_avg_gradient(stride):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 5, 5, dtype=torch.float64, generator=generator).requires_grad_()
    pool = TMaxAvgPool2d(2, stride, t=0.7, k=2)
    reached = pool(x) == nn.MaxPool2d(2, stride)(x)
    assert reached.any()
    assert not reached.all()
    assert torch.autograd.gradcheck(pool, x)


def test_t_max_avg_keeps_the_layout():
    x = torch.randn(2, 3, 8, 8)
    pooled = TMaxAvgPool2d(2, 2, 0.7, 3)(x.contiguous(memory_format=torch.channels_last))
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, TMaxAvgPool2d(2, 2, 0.7, 3)(x))


def test_t_max_avg_of_more_values_than_the_window_has_is_refused():
    with pytest.raises(UserError, match=r"block 2 pool: model.pool_k 5 is more than the 4 values of a 2 x 2 window"):
        ConvBlock(3, BlockConfig(channels=4), ModelConfig(pool="t-max-avg", pool_k=5), "block 2")


def test_registries_hold_the_names_of_the_config():
    assert set(ACTIVATIONS) == set(get_args(names.Activation))
    assert set(NORMS) == set(get_args(names.Norm))
    assert set(POOLS) == set(names.POOLS)


@pytest.mark.parametrize("order", list(permutations(ORDER)), ids="-".join)
def test_every_order_runs_its_parts_in_that_order(order):
    block = ConvBlock(3, BlockConfig(channels=4, order=order, dropout=0.5), DEFAULTS).eval()
    assert tuple(name for name, _ in block.named_children()) == order
    x = y = torch.randn(2, 3, 8, 8)
    for part in order:
        y = getattr(block, part)(y)
    assert torch.equal(block(x), y)
    assert y.shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (6, 1), (16, 4), (18, 3), (24, 6), (32, 8), (64, 16), (512, 32)]
)
def test_group_norm_is_that_of_each_groups_values(channels, groups):
    norm = NORMS["group"].build(channels)
    assert norm.num_groups == groups
    x = torch.randn(3, channels, 5, 4) * 3 + 2
    apart = x.view(3, groups, -1)
    expected = (apart - apart.mean(-1, keepdim=True)) / (apart.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected.view_as(x))


def test_layer_norm_is_torchs_over_channels_and_positions():
    norm = NORMS["layer"].build(6)
    x = torch.randn(3, 6, 5, 4) * 3 + 2
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    theirs = nn.LayerNorm([6, 5, 4], elementwise_affine=False)(x)
    torch.testing.assert_close(norm(x), theirs * norm.weight.view(6, 1, 1) + norm.bias.view(6, 1, 1))


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("name", ["simple-cnn", "small-resnet"])
def test_with_group_or_layer_norm_an_image_does_not_depend_on_the_others_of_its_batch(name, norm):
    model = build(ModelConfig(name=name, norm=norm, hidden_dropout=0.3 if name == "small-resnet" else 0.0), 3, 16, 5)
    images = torch.randn(4, 3, 16, 16)
    model.train()
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "norm", "bias"),
    [
        (ORDER, "group", True),  # a group's mean does not take a channel's bias away
        (ORDER, "layer", True),
        (ORDER, "batch", False),
        (ORDER, "none", True),
        (("conv", "activation", "norm", "pool", "dropout"), "batch", True),
        (("norm", "activation", "conv", "pool", "dropout"), "batch", True),
        (("conv", "dropout", "norm", "activation", "pool"), "batch", False),  # there is no dropout here
    ],
)
def test_only_a_convolution_before_a_batch_norm_has_no_bias(order, norm, bias):
    block = ConvBlock(3, BlockConfig(channels=4, order=order, norm=norm), DEFAULTS)
    assert (block.conv.bias is not None) == bias


def test_what_a_block_leaves_open_comes_from_the_model():
    model = ModelConfig(activation="tanh", norm="none", pool="average", dropout=0.25)
    block = ConvBlock(3, BlockConfig(channels=4), model)
    assert isinstance(block.activation, nn.Tanh)
    assert isinstance(block.pool, nn.AvgPool2d)
    assert block.dropout.p == 0.25
    assert not hasattr(block, "norm")
    block = ConvBlock(3, BlockConfig(channels=4, activation="silu", norm="batch", pool="none", dropout=0), model)
    assert [type(part) for part in block.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.SiLU]


@settings(max_examples=60)
@given(
    st.builds(
        BlockConfig,
        channels=st.just(3),
        kernel=st.integers(1, 6),
        stride=st.integers(1, 3),
        padding=st.integers(0, 3),
        pool=st.sampled_from(["max", "average", "none"]),
        pool_size=st.integers(1, 5),
        pool_stride=st.none() | st.integers(1, 3),
        residual=st.booleans(),
        order=st.permutations(ORDER).map(tuple),
    ),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_sizes_are_told_or_refused_as_the_forward_pass_would(config, size):
    block = ConvBlock(3, config, DEFAULTS, "block 1").eval()
    x = torch.zeros(1, 3, *size)
    try:
        told = block.output_size(size)
    except UserError as error:
        assert str(error).startswith("block 1 ")  # noqa: PT017
        # Adding would broadcast a single pixel over the image; we refuse it.
        if "residual" not in str(error):
            with pytest.raises(RuntimeError):
                block(x)
    else:
        assert block(x).shape == (1, 3, *told)


def test_residual_adds_the_input():
    config = BlockConfig(channels=3, pool="none", residual=True)
    block = ConvBlock(3, config, DEFAULTS).eval()
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(block(x), x + block.activation(block.norm(block.conv(x))))


@pytest.mark.parametrize("config", [{"channels": 4, "pool": "none"}, {"channels": 3}])
def test_residual_of_another_shape_is_refused(config):
    block = ConvBlock(3, BlockConfig(residual=True, **config), DEFAULTS, "block 7")
    with pytest.raises(UserError, match=r"^block 7 residual: its input \(3, 8, 8\) and its output"):
        block.output_size((8, 8))


def test_convolutions_unsafe_in_channels_last_are_named():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1, stride=2),
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, stride=2),
    )
    assert unsafe_channels_last(model) == ["0"]


@pytest.mark.parametrize(
    "order", [("conv", "norm", "activation", "pool", "dropout"), ("conv", "activation", "pool", "norm", "dropout")]
)
def test_pooling_before_relu_in_training_changes_no_bit(order):
    torch.manual_seed(0)
    block = ConvBlock(3, BlockConfig(channels=8, order=order), ModelConfig())
    plain = copy.deepcopy(block)
    plain._training_order = [part for part in order if part in dict(plain.named_children())]
    assert block._training_order != plain._training_order
    images = torch.randn(4, 3, 8, 8)
    for one in (block, plain):
        one.train()(images).square().sum().backward()
    assert torch.equal(block(images), plain(images))
    for ours, theirs in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
