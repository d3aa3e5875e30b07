"""Initialises convolutions and fully connected layers. The gains of activations are in blocks.py."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from convsmith.nets.blocks import ACTIVATIONS
from convsmith.nets.config import Activation, Init


def _kaiming_std(weight: Tensor, gain: float) -> float:
    return gain / sqrt(weight[0].numel())  # weight[0] holds the fan_in weights of one output


def _kaiming_uniform(weight: Tensor, gain: float) -> None:
    bound = sqrt(3) * _kaiming_std(weight, gain)
    weight.uniform_(-bound, bound)


def _kaiming_normal(weight: Tensor, gain: float) -> None:
    weight.normal_(0, _kaiming_std(weight, gain))


def _xavier_uniform(weight: Tensor, gain: float) -> None:
    nn.init.xavier_uniform_(weight, gain)


def _xavier_normal(weight: Tensor, gain: float) -> None:
    nn.init.xavier_normal_(weight, gain)


SCHEMES: dict[str, Callable[[Tensor, float], None]] = {
    "kaiming_uniform": _kaiming_uniform,
    "kaiming_normal": _kaiming_normal,
    "xavier_uniform": _xavier_uniform,
    "xavier_normal": _xavier_normal,
}


@torch.no_grad()
def initialise(model: nn.Module, scheme: Init, activation: Activation) -> None:
    """Draw new weights for all convolutions and fully connected layers from torch's global generator.

    `default` keeps PyTorch's initialisation: weights and biases uniform within 1/sqrt(fan_in), where fan_in = input
    channels x kernel area. With the gain g of the activation (1 for the head, which has none), the others have

    - `kaiming`: standard deviation g / sqrt(fan_in); uniform within g sqrt(3/fan_in), sqrt(6/fan_in) for ReLU;
      He et al., "Delving Deep into Rectifiers" (ICCV 2015);
    - `xavier`: standard deviation g sqrt(2 / (fan_in + fan_out)); Glorot and Bengio (AISTATS 2010);

    and biases of zero. Norms keep their ones and zeros.

    `dirac` is PyTorch's initialisation, but the first filters of each convolution pass its input channels on, one each
    (Zagoruyko and Komodakis, "DiracNets" (2017), in the partial form of Keller Jordan's airbench94).
    """
    if scheme == "default":
        return
    if scheme == "dirac":
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight[: module.in_channels])
        return
    head = getattr(model, "head", None)
    of_head = set(head.modules()) if isinstance(head, nn.Module) else set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            SCHEMES[scheme](module.weight, 1.0 if module in of_head else ACTIVATIONS[activation].gain)
            if module.bias is not None:
                module.bias.zero_()


@torch.no_grad()
def whiten(conv: nn.Conv2d, images: Tensor) -> None:
    """Make `conv` whiten the patches that it sees in `images` [N, C, H, W]; its bias becomes zero.

    The patches' second moments have eigenvectors e and eigenvalues v; the filters are e / sqrt(v + 5e-4) and
    their negatives, since the activation that follows suppresses one sign: 2 x C x kernel x kernel channels.
    Source: David Page, "How to Train Your ResNet 8" (2019); Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds" (2024).
    """
    patches = unfold(images.float(), conv.kernel_size).transpose(1, 2).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values.clamp(min=0) + 5e-4).sqrt()).T.flip(0)  # the direction of largest variance first
    conv.weight.copy_(torch.cat([filters, -filters]).reshape(conv.weight.shape))
    if conv.bias is not None:
        conv.bias.zero_()
