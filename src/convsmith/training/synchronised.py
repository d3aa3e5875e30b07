"""Batch norm over the images of all ranks (train.sync_batch_norm). Replaces no module of the network.

torch.nn.SyncBatchNorm computes the same on CUDA alone, and has to take the place of each batch norm, which networks of
libraries that subclass theirs do not survive. Here the call of `torch.nn.functional.batch_norm` is replaced while the
network runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convsmith.training.ranks import Ranks

SIGNATURE = inspect.signature(F.batch_norm)


class SynchronisedBatchNorm(TorchFunctionMode):
    """A context in which batch norm in training mode normalises by mean and variance over the images of all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            given = SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments["training"]:
                return batch_norm(self.ranks, **given.arguments)
        return func(*args, **(kwargs or {}))


def batch_norm(
    ranks: Ranks,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`torch.nn.functional.batch_norm` in training mode, of this rank's images [B, C, ...] among those of all ranks."""
    values = input.float()
    axes = [axis for axis in range(values.ndim) if axis != 1]
    with torch.no_grad():
        count, mean = values.numel() // values.shape[1], values.mean(axes)
        # Sums of squares about the common mean, since those about 0 cancel.
        total = ranks.sum(torch.cat([mean.double() * count, mean.new_tensor([count], dtype=torch.float64)]))
        images, mean = total[-1], (total[:-1] / total[-1]).float()
        squares = ranks.sum((values - _along(mean, values)).square().sum(axes).double())
        variance = squares / images
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (images - 1)).to(running_var.dtype), momentum)
    normal = _Normalise.apply(values, mean, (variance + eps).rsqrt().float(), images.float(), ranks)
    assert isinstance(normal, Tensor)
    if weight is not None and bias is not None:
        normal = normal * _along(weight, values) + _along(bias, values)
    return normal.to(input.dtype)


class _Normalise(torch.autograd.Function):
    """(x - mean) / std, where mean and std depend on the x of all ranks (Ioffe and Szegedy 2015, section 3)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mean: Tensor, scale: Tensor, images: Tensor, ranks: Ranks) -> Tensor:
        normal = (values - _along(mean, values)) * _along(scale, values)
        ctx.save_for_backward(normal, scale, images)
        ctx.ranks = ranks
        return normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale, images = ctx.saved_tensors
        axes = [axis for axis in range(normal.ndim) if axis != 1]
        sums = ctx.ranks.sum(torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])) / images
        centred = gradient - _along(sums[0], normal) - normal * _along(sums[1], normal)
        return centred * _along(scale, normal), None, None, None, None


def _along(channels: Tensor, values: Tensor) -> Tensor:
    """Values by channel [C], to be broadcast along [B, C, ...]."""
    return channels.view(1, -1, *[1] * (values.ndim - 2))
