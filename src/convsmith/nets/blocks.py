"""Activations, norms, poolings, and the block that combines them. Whole networks are in other modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsmith.errors import UserError
from convsmith.nets.config import BlockConfig, ModelConfig, Part
from convsmith.nets.shapes import fitted_size


class TMaxAvgPool2d(nn.Module):
    """T-Max-Avg pooling: the maximum of a window if its K largest values all reach T, else the mean of those K values.

    With the K largest values of a window, v1 >= v2 >= ... >= vK::

        y = v1                      if vi >= T for every i <= K (that is, if vK >= T)
        y = (v1 + ... + vK) / K     otherwise

    Source: L. Zhao and Z. Zhang, "A improved pooling method for convolutional neural networks",
    Scientific Reports 14, 1589 (2024), doi:10.1038/s41598-024-51258-6. T is a constant here and is compared
    with the unscaled activations; windows are not padded. K = 1 gives max pooling for any T; a T that no
    value reaches gives Avg-TopK pooling (Ozdemir 2023), and average pooling if K is the whole window.

    [N, C, H, W] -> [N, C, H', W'] by the size equation. The gradient flows to the maximum (the first of
    equal values) or in equal parts to the K largest values; none flows through the comparison with T.
    """

    def __init__(self, kernel_size: int, stride: int, t: float, k: int) -> None:
        super().__init__()
        assert 1 <= k <= kernel_size**2, "a window has fewer than k values"
        self.kernel_size, self.stride, self.t, self.k = kernel_size, stride, t, k

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, self.kernel_size, self.stride).unfold(3, self.kernel_size, self.stride)
        top = windows.flatten(-2).topk(self.k, dim=-1).values
        pooled = torch.where(top[..., -1] >= self.t, top[..., 0], top.mean(dim=-1))
        # unfold loses the memory layout, and the layers that follow would run in another one.
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return pooled.contiguous(memory_format=torch.channels_last) if channels_last else pooled

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, t={self.t}, k={self.k}"


@dataclass(frozen=True)
class Activation:
    """An activation: how it is built, its gain, and how it combines with max pooling.

    `gain` is the factor on a layer's weights at initialisation for which the activation f preserves the scale of the
    signal. PyTorch defines none for gelu and silu; here they are 1 / sqrt(E[f(z)^2]) for standard normal z, which is
    also the origin of ReLU's sqrt(2). `after_max_pool`: f and a max pooling that follows it may be swapped, with
    values and gradients that are equal to the last bit.
    """

    build: Callable[[], nn.Module]
    gain: float
    after_max_pool: bool = False


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(nn.ReLU, nn.init.calculate_gain("relu"), after_max_pool=True),
    "leaky_relu": Activation(nn.LeakyReLU, nn.init.calculate_gain("leaky_relu", 0.01)),
    "sigmoid": Activation(nn.Sigmoid, nn.init.calculate_gain("sigmoid")),
    "tanh": Activation(nn.Tanh, nn.init.calculate_gain("tanh")),
    "gelu": Activation(nn.GELU, 1.5335),
    "silu": Activation(nn.SiLU, 1.6765),
}


@dataclass(frozen=True)
class Norm:
    """A norm: how it is built for a number of channels, and whether it subtracts the mean of each channel, so that a
    convolution before it needs no bias."""

    build: Callable[[int], nn.Module]
    removes_bias: bool = False


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm (Wu and He 2018): mean and variance per image, over the channels of a group and all positions.

    The number of groups is the largest one that divides the channels evenly, with at most 32 groups, as in the paper,
    and at least 4 channels per group.
    """
    most = max(1, min(32, channels // 4))
    return nn.GroupNorm(max(count for count in range(1, most + 1) if channels % count == 0), channels)


def layer_norm(channels: int) -> nn.GroupNorm:
    """Layer norm (Ba et al. 2016): mean and variance per image, over channels and positions, C x H x W values.

    It is a group norm with one group. Scale and shift are per channel, so that the map may have any size. The layer
    norm of ConvNeXt, over the channels of each position, is a different one.
    """
    return nn.GroupNorm(1, channels)


NORMS: dict[str, Norm] = {
    "batch": Norm(nn.BatchNorm2d, removes_bias=True),
    "group": Norm(group_norm),
    "layer": Norm(layer_norm),
    "none": Norm(nn.Identity),
}

#: (size, stride, the model's settings) -> module; the settings that each uses are listed in config.py
POOLS: dict[str, Callable[[int, int, ModelConfig], nn.Module]] = {
    "max": lambda size, stride, _: nn.MaxPool2d(size, stride),
    "average": lambda size, stride, _: nn.AvgPool2d(size, stride),
    "t-max-avg": lambda size, stride, config: TMaxAvgPool2d(size, stride, config.pool_t, config.pool_k),
    "none": lambda size, stride, _: nn.Identity(),
}


def _pool_first(order: list[Part]) -> list[Part]:
    """Swap the activation and the pooling if the pooling directly follows the activation.

    ReLU and max pooling give the same values and gradients in either order, since ReLU is monotone; pooling first
    needs only a fraction of the memory traffic.
    """
    at = order.index("activation")
    return order if order[at + 1 : at + 2] != ["pool"] else [*order[:at], "pool", "activation", *order[at + 2 :]]


class ConvBlock(nn.Module):
    """Convolution, norm, activation, pooling and dropout in `config.order`, each a submodule with its own name.

    Settings that `config` leaves unset are taken from `defaults`; parts that are none are left out. The norm has as
    many channels as its input. The convolution has no bias if a norm that would remove it comes
    next. Dropout applies to single values, not to whole channels. `name` is the block's name in error messages.
    """

    def __init__(self, in_channels: int, config: BlockConfig, defaults: ModelConfig, name: str = "block") -> None:
        super().__init__()
        self.name, self.in_channels, self.config = name, in_channels, config
        norm, pool = config.norm or defaults.norm, config.pool or defaults.pool
        activation = ACTIVATIONS[config.activation or defaults.activation]
        dropout = defaults.dropout if config.dropout is None else config.dropout
        if pool == "t-max-avg" and defaults.pool_k > config.pool_size**2:
            raise UserError(
                f"{name} pool: model.pool_k {defaults.pool_k} is more than the {config.pool_size**2} values "
                f"of a {config.pool_size} x {config.pool_size} window; use a smaller pool_k or a larger pool_size"
            )
        absent = {"norm": norm == "none", "pool": pool == "none", "dropout": dropout == 0}
        order = [part for part in config.order if not absent.get(part)]
        conv = order.index("conv")
        norm_channels = in_channels if "norm" in order[:conv] else config.channels
        make: dict[Part, Callable[[], nn.Module]] = {
            "conv": lambda: nn.Conv2d(
                in_channels,
                config.channels,
                config.kernel,
                config.stride,
                config.padding,
                bias=not (order[conv + 1 : conv + 2] == ["norm"] and NORMS[norm].removes_bias),
            ),
            "norm": lambda: NORMS[norm].build(norm_channels),
            "activation": activation.build,
            "pool": lambda: POOLS[pool](config.pool_size, config.pool_stride or config.pool_size, defaults),
            "dropout": lambda: nn.Dropout(dropout),
        }
        for part in order:
            self.add_module(part, make[part]())
        self._pools = "pool" in order
        self._training_order = _pool_first(order) if activation.after_max_pool and pool == "max" else order

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, config.channels, H', W']."""
        y = x
        for part in self._training_order if self.training else self._modules:
            y = getattr(self, part)(y)
        return x + y if self.config.residual else y

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for those of the input; raises UserError if a window does not fit."""
        config, result = self.config, size
        for part in config.order:
            if part == "conv":
                fix = "use a smaller kernel, more padding or a larger image"
                result = fitted_size(f"{self.name} conv", result, config.kernel, config.padding, config.stride, fix)
            elif part == "pool" and self._pools:
                fix = "use a smaller pool_size, pool: none or a larger image"
                stride = config.pool_stride or config.pool_size
                result = fitted_size(f"{self.name} pool", result, config.pool_size, 0, stride, fix)
        before, after = (self.in_channels, *size), (config.channels, *result)
        if config.residual and before != after:
            raise UserError(
                f"{self.name} residual: its input {before} and its output {after} (channels, height, width) differ; "
                "keep channels and size (pool: none, stride 1, padding (kernel - 1)/2) or turn residual off"
            )
        return result


def unsafe_channels_last(model: nn.Module) -> list[str]:
    """Names of the convolutions whose inputs and weights must not be in channels_last on the CPU.

    oneDNN issue 6035: on AVX2 the weight gradient of a 1 x 1 convolution with stride 2 and fewer than 8
    input channels is wrong or corrupts the memory (torch 2.14.1 crashes with 2 to 7 channels). All strides
    above 1 are included.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels < 8
    ]
