"""Builds the network that the `model` section describes. The settings that each network uses are in config.py."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

import torch
from torch import nn

from convsmith import memory
from convsmith.contracts import Size
from convsmith.errors import UserError
from convsmith.nets.backbones import Backbone, timm_backbone, torchvision_backbone
from convsmith.nets.config import MODELS, ModelConfig, refuse_unknown
from convsmith.nets.convnet import ConvNet
from convsmith.nets.init import initialise
from convsmith.nets.resnet import SmallResNet

Network: TypeAlias = ConvNet | SmallResNet | Backbone

# name after the slash, channels, image size, classes -> network
_BACKBONES: dict[str, Callable[[str, int, Size, int], Backbone]] = {
    "torchvision": torchvision_backbone,
    "timm": timm_backbone,
}


def build(config: ModelConfig, channels: int, image_size: Size, classes: int) -> Network:
    """An untrained `contracts.Classifier` for images [N, channels, *hw(image_size)].

    The weights are drawn from torch's global generator, so that the same seed gives the same weights. Raises UserError
    for an unknown name, for a setting that the model does not use, and for sizes that do not fit.
    """
    if config.is_library:
        library, _, name = config.name.partition("/")
        _refuse_unused(config, frozenset())
        return _BACKBONES[library](name, channels, image_size, classes)
    refuse_unknown(config.name)
    entry = MODELS[config.name]
    _refuse_unused(config, entry.uses)
    module, constructor = entry.build.split(".")
    construct = getattr(import_module(f"convsmith.nets.{module}"), constructor)
    with torch.device("meta"):  # sizes without memory and without random numbers
        _refuse_oversized(construct(config, channels, image_size, classes))
    model: ConvNet | SmallResNet = construct(config, channels, image_size, classes)
    initialise(model, config.init, config.activation)
    return model


def _refuse_oversized(model: nn.Module) -> None:
    """Raise UserError for weights that exceed the free memory: some systems end the process instead of refusing."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    there = memory.available()
    if there is not None and weights > there:
        largest, name = max((parameter.nbytes, name) for name, parameter in model.named_parameters())
        raise UserError(
            f"the network's weights need {memory.as_text(weights)}, of which {name} {memory.as_text(largest)}, but "
            f"{memory.as_text(there)} of memory are available: lower model.width, the channels of model.blocks, "
            "model.hidden or data.image_size"
        )


def _refuse_unused(config: ModelConfig, used: frozenset[str]) -> None:
    """Raise UserError for a setting that the model does not use, since a study of it would compare equal models."""
    for key, field in ModelConfig.model_fields.items():
        value = getattr(config, key)
        if key != "name" and key not in used and value != field.default:
            raise UserError(
                f"model.{key} = {value} has no effect on '{config.name}': leave it at its default "
                f"({field.default}) or choose a model that uses it. Settings of '{config.name}': "
                f"{', '.join(sorted(used)) or 'none'}"
            )
