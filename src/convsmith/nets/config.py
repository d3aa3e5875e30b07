"""The `model` section and the tables of poolings and models. Imports no torch; the layers are in other modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator

from convsmith.contracts import OWN, Section
from convsmith.errors import UserError, choose

Activation = Literal["relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"]
Norm = Literal["batch", "group", "layer", "none"]
Init = Literal["default", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "dirac"]
Part = Literal["conv", "norm", "activation", "pool", "dropout"]
WIDEST = 65_536  # units of a fully connected layer
ORDER: tuple[Part, ...] = ("conv", "norm", "activation", "pool", "dropout")

#: The poolings, each with the keys of this section that it uses; `blocks.POOLS` builds them.
POOLS: dict[str, tuple[str, ...]] = {"max": (), "average": (), "t-max-avg": ("pool_t", "pool_k"), "none": ()}

if TYPE_CHECKING:
    Pool: TypeAlias = str
else:  # the table is the only place that lists the names
    Pool = Literal[tuple(POOLS)]


class BlockConfig(Section):
    """One block of a convnet. Settings that are none are taken from the `model` section."""

    channels: int = Field(ge=1, le=8192, description="output channels of the convolution")
    kernel: int = Field(default=3, ge=1, le=64)
    stride: int = Field(default=1, ge=1, le=64)
    padding: int = Field(default=1, ge=0, le=64)
    norm: Norm | None = None
    activation: Activation | None = None
    pool: Pool | None = None
    pool_size: int = Field(default=2, ge=1, le=64)
    pool_stride: int | None = Field(default=None, ge=1, le=64, description="none: pool_size")
    dropout: float | None = Field(default=None, ge=0, lt=1)
    residual: bool = Field(default=False, description="add the block's input to its output (shapes must agree)")
    order: tuple[Part, ...] = ORDER

    @field_validator("order")
    @classmethod
    def _each_once(cls, order: tuple[Part, ...]) -> tuple[Part, ...]:
        if sorted(order) != sorted(ORDER):
            raise ValueError(f"must name each of {', '.join(ORDER)} once")
        return order


@dataclass(frozen=True)
class ModelEntry:
    """The description of a network, without torch.

    `build` is its constructor, ``module.name`` within `convsmith.nets`: (ModelConfig, channels, image size, classes) ->
    `contracts.Classifier`. `uses` names the keys of the section that it uses besides `name`.
    """

    description: str
    build: str
    uses: frozenset[str]


_COMMON = frozenset({"activation", "norm", "init", "logit_scale", "mirror"})
_CONVNET = _COMMON | {"hidden", "global_pool", "pool", "pool_t", "pool_k", "dropout", "hidden_dropout"}

MODELS: dict[str, ModelEntry] = {
    "simple-cnn": ModelEntry("two convolutions and a hidden layer", "convnet.simple_cnn", _CONVNET),
    "convnet": ModelEntry("blocks of your own", "convnet.ConvNet", _CONVNET | {"blocks", "whiten"}),
    "small-resnet": ModelEntry(
        "the residual network for 32 x 32 pixels", "resnet.SmallResNet", _COMMON | {"width", "depth"}
    ),
}
LIBRARIES = ("torchvision", "timm")  # a name of theirs stands after a slash: timm/resnet18


class ModelConfig(Section):
    uses: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {"pool": POOLS}

    name: str = Field(
        default="simple-cnn",
        description="; ".join(
            [
                *(f"{name}: {entry.description}" for name, entry in MODELS.items()),
                *(f"{library}/<architecture>" for library in LIBRARIES),
            ]
        ),
    )
    blocks: tuple[BlockConfig, ...] | None = Field(
        default=None, description="convnet only: its blocks, e.g. '[{channels: 32}, {channels: 64, pool: average}]'"
    )
    hidden: tuple[int, ...] | None = Field(
        default=None, description="widths of the fully connected layers before the head (simple-cnn: [200])"
    )
    global_pool: Literal["none", "average", "max"] = Field(
        default="none", description="pools the last feature map to one value per channel instead of flattening it"
    )
    activation: Activation = "relu"
    norm: Norm = Field(default="batch", description="after each convolution; layer: over all values of an image")
    pool: Pool = Field(default="max", description="after each block's activation")
    pool_t: float = Field(default=0.7, ge=0, le=1, description="t-max-avg: threshold T")
    pool_k: int = Field(default=3, ge=1, le=64, description="t-max-avg: how many of the largest values are averaged")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after each block")
    hidden_dropout: float = Field(default=0.3, ge=0, lt=1, description="after each fully connected layer")
    logit_scale: float = Field(default=1.0, gt=0, le=100, description="constant factor on the logits")
    mirror: bool = Field(
        default=False,
        description="outside training, the features are the mean of those of the image and of its mirror image, which "
        "takes twice the time",
    )
    init: Init = Field(default="default", description="initialisation of convolutions and fully connected layers")
    whiten: bool = Field(
        default=False, description="convnet: the first convolution whitens the train images' patches and stays fixed"
    )
    width: int = Field(default=16, ge=1, le=1024, description="small-resnet: channels of the first stage")
    depth: int = Field(
        default=3, ge=1, le=50, description="small-resnet: residual blocks per stage (6 x depth + 2 layers)"
    )

    @property
    def is_library(self) -> bool:
        """Whether the network is one of torchvision's or timm's."""
        library, slash, _ = self.name.partition("/")
        return bool(slash) and library in LIBRARIES

    @property
    def is_own(self) -> bool:
        """Whether the network is a module of the user's own."""
        return self.name.startswith(OWN)

    def chosen(self, key: str) -> set[str]:
        """The choices in effect, including those of single blocks."""
        return super().chosen(key) | {value for block in self.blocks or () if (value := getattr(block, key, None))}

    @field_validator("hidden")
    @classmethod
    def _positive(cls, hidden: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if hidden and not 1 <= min(hidden) <= max(hidden) <= WIDEST:
            raise ValueError(f"widths must be at least 1 and at most {WIDEST:,}")
        return hidden


def refuse_unknown(name: str) -> None:
    """Raise UserError for a name that is neither our network nor of the form library/architecture."""
    library, slash, _ = name.partition("/")
    if name in MODELS or (slash and library in LIBRARIES):
        return
    if not slash and (found := in_libraries(name)):
        raise UserError(f"model '{name}' is the name of a network of a library: write --model {' or '.join(found)}")
    raise choose("model", name, [*MODELS, *(f"{library}/<architecture>" for library in LIBRARIES)])


def in_libraries(name: str) -> list[str]:
    """The networks of this name, each with its library."""
    import timm
    from torchvision import models

    has = {"torchvision": name in models.list_models(module=models), "timm": timm.is_model(name)}
    return [f"{library}/{name}" for library in LIBRARIES if has[library]]
