"""Builds the network that the `model` section describes. The settings that each network uses are in config.py."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

from convsmith.errors import UserError, choose
from convsmith.nets.backbones import Backbone, timm_backbone, torchvision_backbone
from convsmith.nets.config import LIBRARIES, MODELS, ModelConfig
from convsmith.nets.convnet import ConvNet
from convsmith.nets.init import initialise
from convsmith.nets.resnet import SmallResNet

Network: TypeAlias = ConvNet | SmallResNet | Backbone

# name after the slash, channels, image size, classes -> network
_BACKBONES: dict[str, Callable[[str, int, int, int], Backbone]] = {
    "torchvision": torchvision_backbone,
    "timm": timm_backbone,
}


def build(config: ModelConfig, channels: int, image_size: int, classes: int) -> Network:
    """An untrained `contracts.Classifier` for images [N, channels, image_size, image_size].

    The weights are drawn from torch's global generator, so that the same seed gives the same weights. Raises UserError
    for an unknown name, for a setting that the model does not use, and for sizes that do not fit.
    """
    library, slash, name = config.name.partition("/")
    if slash and library in LIBRARIES:
        _refuse_unused(config, frozenset())
        return _BACKBONES[library](name, channels, image_size, classes)
    refuse_unknown(config.name)
    entry = MODELS[config.name]
    _refuse_unused(config, entry.uses)
    module, constructor = entry.build.split(".")
    model: ConvNet | SmallResNet = getattr(import_module(f"convsmith.nets.{module}"), constructor)(
        config, channels, image_size, classes
    )
    initialise(model, config.init, config.activation)
    return model


def refuse_unknown(name: str) -> None:
    """Raise UserError for a name that is neither our network nor of the form library/architecture."""
    library, slash, _ = name.partition("/")
    if name not in MODELS and not (slash and library in LIBRARIES):
        raise choose("model", name, [*MODELS, *(f"{library}/<architecture>" for library in LIBRARIES)])


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
