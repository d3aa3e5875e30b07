"""From the `model` section to a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from convsmith.errors import UserError, choose
from convsmith.nets.backbones import Backbone, timm_backbone, torchvision_backbone
from convsmith.nets.config import ModelConfig
from convsmith.nets.convnet import ConvNet, simple_cnn
from convsmith.nets.init import initialise
from convsmith.nets.resnet import SmallResNet

Network: TypeAlias = ConvNet | SmallResNet | Backbone


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and which settings of the `model` section it heeds besides its name."""

    build: Callable[[ModelConfig, int, int, int], ConvNet | SmallResNet]
    settings: frozenset[str]


_COMMON = frozenset({"activation", "norm", "init", "logit_scale"})
_CONVNET = _COMMON | {"hidden", "global_pool", "pool", "pool_t", "pool_k", "dropout", "hidden_dropout"}

MODELS: dict[str, Architecture] = {
    "simple-cnn": Architecture(simple_cnn, _CONVNET),
    "convnet": Architecture(ConvNet, _CONVNET | {"blocks", "whiten"}),
    "small-resnet": Architecture(SmallResNet, _COMMON | {"width", "depth"}),
}

# name after the slash, channels, image size, classes -> network
LIBRARIES: dict[str, Callable[[str, int, int, int], Backbone]] = {
    "torchvision": torchvision_backbone,
    "timm": timm_backbone,
}


def build(config: ModelConfig, channels: int, image_size: int, classes: int) -> Network:
    """An untrained `contracts.Classifier` for images [N, channels, image_size, image_size].

    Weights come from torch's global generator: the same seed before gives the same weights. UserError for an
    unknown name, a setting that the model would not heed, and sizes that do not fit.
    """
    library, slash, name = config.name.partition("/")
    if slash and library in LIBRARIES:
        _refuse_unheeded(config, frozenset())
        return LIBRARIES[library](name, channels, image_size, classes)
    refuse_unknown(config.name)
    architecture = MODELS[config.name]
    _refuse_unheeded(config, architecture.settings)
    model = architecture.build(config, channels, image_size, classes)
    initialise(model, config.init, config.activation)
    return model


def refuse_unknown(name: str) -> None:
    """UserError for what is neither a network of ours nor of a library, whose own names are its business."""
    library, slash, _ = name.partition("/")
    if name not in MODELS and not (slash and library in LIBRARIES):
        raise choose("model", name, [*MODELS, *(f"{library}/<architecture>" for library in LIBRARIES)])


def _refuse_unheeded(config: ModelConfig, settings: frozenset[str]) -> None:
    """A setting that changes nothing would make a study compare a model with itself."""
    for key, field in ModelConfig.model_fields.items():
        value = getattr(config, key)
        if key != "name" and key not in settings and value != field.default:
            raise UserError(
                f"model.{key} = {value} changes nothing in '{config.name}': leave it at its default "
                f"({field.default}) or choose a model that heeds it. Settings of '{config.name}': "
                f"{', '.join(sorted(settings)) or 'none'}"
            )
