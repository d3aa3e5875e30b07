"""`small-resnet`, the residual network of He et al. for 32 x 32 pixels. Those for ImageNet are in backbones.py."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from convsmith.contracts import Size
from convsmith.nets.blocks import ACTIVATIONS, NORMS
from convsmith.nets.config import ModelConfig
from convsmith.nets.convnet import ScaledLinear
from convsmith.nets.mirror import averaged


def _conv3x3(in_channels: int, channels: int, stride: int, config: ModelConfig) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=not NORMS[config.norm].removes_bias)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters: y = f(x' + norm(conv(f(norm(conv(x)))))).

    If the stride is 2 or channels are added, x' is x at every second pixel, padded with channels of
    zeros (option A of the paper); otherwise it is x. [N, in_channels, H, W] -> [N, channels, ceil(H/S), ceil(W/S)].
    """

    def __init__(self, in_channels: int, channels: int, stride: int, config: ModelConfig) -> None:
        super().__init__()
        self.stride, self.added_channels = stride, channels - in_channels
        self.conv1 = _conv3x3(in_channels, channels, stride, config)
        self.norm1 = NORMS[config.norm].build(channels)
        self.activation1 = ACTIVATIONS[config.activation].build()
        self.conv2 = _conv3x3(channels, channels, 1, config)
        self.norm2 = NORMS[config.norm].build(channels)
        self.activation2 = ACTIVATIONS[config.activation].build()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.added_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.added_channels))
        result: Tensor = self.activation2(x + y)
        return result


class SmallResNet(nn.Module):
    """6 `depth` + 2 layers in three stages of `width`, 2 `width` and 4 `width` channels: a `contracts.Classifier`.

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016),
    section 4.2; depth 3 and width 16 give its ResNet-20. The second and the third stage halve the size; any image
    size works. The stages are ``stem``, ``stage1``, ``stage2`` and ``stage3``.
    """

    def __init__(self, config: ModelConfig, channels: int, image_size: Size, classes: int) -> None:
        super().__init__()
        width, self.mirror = config.width, config.mirror
        self.stem = nn.Sequential()
        self.stem.add_module("conv", _conv3x3(channels, width, 1, config))
        self.stem.add_module("norm", NORMS[config.norm].build(width))
        self.stem.add_module("activation", ACTIVATIONS[config.activation].build())

        def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            first = BasicBlock(in_channels, out_channels, stride, config)
            rest = (BasicBlock(out_channels, out_channels, 1, config) for _ in range(config.depth - 1))
            return nn.Sequential(first, *rest)

        self.stage1 = stage(width, width, 1)
        self.stage2 = stage(width, 2 * width, 2)
        self.stage3 = stage(2 * width, 4 * width, 2)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = ScaledLinear(4 * width, classes, config.logit_scale)

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        return {"stem": self.stem, "stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}

    def features(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> features [N, 4 width]."""
        averages = self.mirror and not self.training
        return averaged(self._of_one_view, images) if averages else self._of_one_view(images)

    def _of_one_view(self, images: Tensor) -> Tensor:
        maps = self.stage3(self.stage2(self.stage1(self.stem(images))))
        features: Tensor = self.flatten(self.global_pool(maps))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits
