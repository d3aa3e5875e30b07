"""What the rooms share: the base of their configs, a batch, and two protocols. Imports no torch when it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, get_origin, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

if TYPE_CHECKING:
    from torch import Tensor, nn


#: Before the name of its class: a network or an optimiser of the user's own in a run's resolved config.
OWN = "own:"


class Section(BaseModel):
    """Base of every config section: frozen, typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: For a key that chooses something by name: the other keys of the section that each choice uses.
    uses: ClassVar[Mapping[str, Mapping[str, Collection[str]]]] = {}
    #: For a key that changes nothing while another key of the section has its default: that other key.
    needs: ClassVar[Mapping[str, str]] = {}

    def chosen(self, key: str) -> set[str]:
        """The choices of `key` that are in effect."""
        return {getattr(self, key)}

    def unused(self, section: str) -> Iterator[str]:
        """In words, the settings that differ from their defaults and yet change nothing; `section` is its name."""
        fields = type(self).model_fields
        changed = {key for key, field in fields.items() if getattr(self, key) != field.get_default()}
        for chooser, table in self.uses.items():
            used = {key for choice in self.chosen(chooser) for key in table.get(choice, ())}
            for key in sorted(changed & set().union(*table.values()) - used):
                yield f"{section}.{key} changes nothing: {section}.{chooser} is {getattr(self, chooser)}"
        for key, needed in self.needs.items():
            if key in changed and needed not in changed:
                yield f"{section}.{key} changes nothing without {section}.{needed}"

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """The word none is no value where a field may be without one; true and false are no numbers."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        kinds = get_args(annotation) or (annotation,)
        if isinstance(value, bool) and bool not in kinds and {int, float} & set(kinds):
            raise ValueError("must be a number")
        if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in kinds:
            return None if value.lower() not in _words(kinds) else value
        return value


def _words(kinds: tuple[Any, ...]) -> set[str]:
    """The choices of the Literals among the kinds of a field: of some, `none` is one."""
    return {word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}


@dataclass(frozen=True)
class Batch:
    """A batch as the net sees it: `images` float [B, C, S, S], `labels` int64 [B].

    Under mixup and cutmix each image is `weight` (at least 1/2, on the host) of its label and the rest of
    its entry in `others`; without them `others` is None. Where `features` is true, `images` holds what
    `Classifier.features` gave for them, float [B, F], and the head alone is left to run.
    """

    images: Tensor
    labels: Tensor
    others: Tensor | None = None
    weight: float | None = None
    features: bool = False


@dataclass(frozen=True)
class InputSpec:
    """The images that given weights were trained on; what the data section leaves open is taken from here.

    `mean` and `std` are per channel, of pixel values scaled to [0, 1]. `crop` is the side of the centre square that
    is kept, as a share, where `resize` is crop. Images smaller than the net's are enlarged to `smallest` at least.
    """

    size: int
    smallest: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    crop: float
    interpolation: str
    background: str | None = None
    range: tuple[float, float] | None = None  # of samples of more than 8 bits; none: the whole of their type


@runtime_checkable
class Classifier(Protocol):
    """A network that freezing, layer-wise learning rates and Grad-CAM can take apart.

    `stages` maps names to modules from the input to the last one before the head; the head maps
    what `features` returns to logits. Calling the module is ``head(features(x))``.
    """

    @property
    def stages(self) -> Mapping[str, nn.Module]: ...

    @property
    def head(self) -> nn.Module: ...

    def features(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> features [N, F]."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> logits [N, classes]."""
        ...


class Tracker(Protocol):
    """Where a run's numbers go. A tracker may lose what it is given; it never stops a run.

    `run_id` names the run there, for a resume; `where` says how to look at it: a URL, a command, or None.
    """

    @property
    def run_id(self) -> str | None: ...

    @property
    def where(self) -> str | None: ...

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """`values` by name (numbers, or what the tracker can draw) at the optimiser step `step`."""
        ...

    def close(self, summary: Mapping[str, Any], failed: bool = False) -> None: ...
