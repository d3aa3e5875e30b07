"""`convnet` (blocks, fully connected layers and a head) and `simple-cnn`. The block itself is in blocks.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from convsmith.contracts import Size, hw
from convsmith.errors import UserError
from convsmith.nets.blocks import ACTIVATIONS, ConvBlock
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.nets.mirror import averaged

GLOBAL_POOLS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "average": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.AdaptiveMaxPool2d(1),
}


class ScaledLinear(nn.Linear):
    """A linear layer whose outputs are multiplied by a constant: ``scale * (W x + b)``."""

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class ConvNet(nn.Module):
    """Blocks, optional global pooling, fully connected layers, head: a `contracts.Classifier`.

    It is built for images of one size, since the first fully connected layer depends on it. Raises UserError if
    the sizes do not fit. The stages are ``blocks.0``, ``blocks.1``..., then ``hidden`` if there are fully
    connected layers.
    """

    def __init__(self, config: ModelConfig, channels: int, image_size: Size, classes: int) -> None:
        super().__init__()
        if not config.blocks:
            raise UserError("model 'convnet' needs model.blocks: give at least one, such as '[{channels: 32}]'")
        blocks, width, size = [], channels, hw(image_size)
        for number, block_config in enumerate(config.blocks, start=1):
            block = ConvBlock(width, block_config, config, name=f"block {number}")
            blocks.append(block)
            width, size = block_config.channels, block.output_size(size)
        self.mirror = config.mirror
        self.blocks = nn.Sequential(*blocks)
        if config.whiten:
            _fits_whitening(config.blocks[0], channels)
            self.first_convolution.weight.requires_grad_(False)
        self.global_pool = GLOBAL_POOLS[config.global_pool]()
        self.flatten = nn.Flatten()
        features = width if config.global_pool != "none" else width * math.prod(size)
        self.hidden = nn.Sequential()
        for index, neurons in enumerate(config.hidden or ()):
            # Only the linear layers are numbered, so that their names do not depend on the dropout.
            self.hidden.add_module(str(index), nn.Linear(features, neurons))
            self.hidden.add_module(f"activation{index}", ACTIVATIONS[config.activation].build())
            if config.hidden_dropout:
                self.hidden.add_module(f"dropout{index}", nn.Dropout(config.hidden_dropout))
            features = neurons
        self.head = ScaledLinear(features, classes, config.logit_scale)

    @property
    def first_convolution(self) -> nn.Conv2d:
        convolution = self.blocks[0].conv
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        hidden = {"hidden": self.hidden} if len(self.hidden) else {}
        return {f"blocks.{name}": block for name, block in self.blocks.named_children()} | hidden

    def features(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> features [N, F]."""
        averages = self.mirror and not self.training
        return averaged(self._of_one_view, images) if averages else self._of_one_view(images)

    def _of_one_view(self, images: Tensor) -> Tensor:
        features: Tensor = self.hidden(self.flatten(self.global_pool(self.blocks(images))))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _fits_whitening(block: BlockConfig, channels: int) -> None:
    wanted = 2 * channels * block.kernel**2
    if block.channels != wanted:
        raise UserError(
            f"with model.whiten, block 1 needs {wanted} channels (2 x {channels} image channels x {block.kernel} x "
            f"{block.kernel}), not {block.channels}; set them or turn model.whiten off"
        )


def simple_cnn(config: ModelConfig, channels: int, image_size: Size, classes: int) -> ConvNet:
    """Two 3 x 3 convolutions with 32 and 64 channels, each pooled by 2, and 200 neurons; for sizes from 4 pixels."""
    filled = {
        "blocks": (BlockConfig(channels=32), BlockConfig(channels=64)),
        "hidden": (200,) if config.hidden is None else config.hidden,
    }
    return ConvNet(config.model_copy(update=filled), channels, image_size, classes)
