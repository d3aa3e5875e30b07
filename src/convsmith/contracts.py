"""Types that the rooms share: the base of config sections, a batch, and two protocols. Imports no torch at run time."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from convsmith.errors import UserError, nearest
from convsmith.files import BITS, fits

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn


#: Of an image, in pixels: the side of a square, or (height, width).
Size = int | tuple[int, int]

SHOWN = 10  # problems of a config that are told at once

#: In a resolved config, the prefix of the class name of the user's own network or optimiser.
OWN = "own:"


def own_name(part: object) -> str:
    """The name of the user's own network or optimiser in a resolved config."""
    return OWN + type(part).__name__


class Section(BaseModel):
    """Base of all config sections: frozen, typed, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: For a key that selects something by name: the other keys of the section that each choice uses.
    uses: ClassVar[Mapping[str, Mapping[str, Collection[str]]]] = {}
    #: For a key that has no effect while another key of the section has its default: that other key.
    needs: ClassVar[Mapping[str, str]] = {}

    def chosen(self, key: str) -> set[str]:
        """The choices of `key` that are in effect."""
        return {getattr(self, key)}

    def unused(self, section: str) -> Iterator[str]:
        """Sentences on settings that differ from their defaults without effect; `section` is the section's name."""
        fields = type(self).model_fields
        changed = {key for key, field in fields.items() if getattr(self, key) != field.get_default()}
        for chooser, table in self.uses.items():
            used = {key for choice in self.chosen(chooser) for key in table.get(choice, ())}
            for key in sorted(changed & set().union(*table.values()) - used):
                yield f"{section}.{key} has no effect, since {section}.{chooser} is {getattr(self, chooser)}"
        for key, needed in self.needs.items():
            if key in changed and needed not in changed:
                yield f"{section}.{key} has no effect without {section}.{needed}"

    @field_validator("*", mode="before")
    @classmethod
    def _normalised(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn the word none into None for optional fields, and refuse true and false as numbers."""
        assert info.field_name is not None
        if isinstance(value, str):
            refuse_unwritable(value)
        annotation = cls.model_fields[info.field_name].annotation
        kinds = get_args(annotation) or (annotation,)
        if isinstance(value, bool) and bool not in kinds and {int, float} & set(kinds):
            raise ValueError("must be a number")
        if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in kinds:
            return None if value.lower() not in _words(kinds) else value
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _fits_files(cls, value: Any) -> Any:
        """Refuse integers that the readers of our files do not have, wherever no bound of the field does."""
        if isinstance(value, int) and not fits(value):
            raise ValueError(f"must be an integer of at most {BITS} bits")
        return value


def refuse_unwritable(text: str) -> None:
    """Raise ValueError for text that no file system takes as a path, and no file of ours as text."""
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character: remove it") from None
    if b"\0" in encoded:
        raise ValueError("must not contain a NUL character")


def hw(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def size_of(height: int, width: int) -> Size:
    """The size as it is written everywhere: a square as a single number, as it was before there were others."""
    return height if height == width else (height, width)


def covers(size: Size, other: Size) -> bool:
    """Whether nothing of `other` is larger."""
    return all(ours >= theirs for ours, theirs in zip(hw(size), hw(other), strict=True))


def size_word(size: Size) -> str:
    """A size as it is set: ``32`` or ``[32, 48]``."""
    return str(size if isinstance(size, int) else list(size))


def size_text(size: Size) -> str:
    """Height x width, for people: ``32 x 32``."""
    return " x ".join(map(str, hw(size)))


def channels_text(channels: int) -> str:
    """What the channels of an image are, for people."""
    return {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")


def seen_channels(channels: int) -> str:
    """A sentence on what pictures show of images with this number of channels; none where they show all."""
    if channels in (1, 3):
        return ""
    return f"Pictures show the first {'three ' if channels > 3 else ''}of {channels} channels."


def gray_or_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """What can be shown of pixels [..., H, W, C]: [..., H, W] of one or two channels, else the first three."""
    return pixels[..., 0] if pixels.shape[-1] < 3 else pixels[..., :3]


Kind = TypeVar("Kind", bound=Section)


def checked(kind: type[Kind], values: Mapping[str, Any], what: str) -> Kind:
    """`values` as a `kind`; a UserError names `what` and each key that is unknown or wrong."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{what}: {problems(error, lambda item: unknown(item, kind) or wrong(item))}") from None


def problems(error: ValidationError, sentence: Callable[[Any], str]) -> str:
    """The first problems of a file or of flags, each as the `sentence` that tells it, and how many more there are."""
    found = error.errors()
    listed = [sentence(item) for item in found[:SHOWN]]
    return "; ".join([*listed, *([f"and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else [])])


def unknown(error: Any, kind: type[BaseModel]) -> str | None:
    """A sentence about a key that the section has not, with its nearest match; None where `error` is another one."""
    *above, key = map(str, error["loc"])
    if error["type"] != "extra_forbidden":
        return None
    for name in above:  # down to the section that the key is in
        kinds = [kind.model_fields[name].annotation] if name in kind.model_fields else []
        inner = [one for one in (*kinds, *get_args(*kinds)) if isinstance(one, type) and issubclass(one, BaseModel)]
        kind = inner[0] if inner else kind
    known = ", ".join(kind.model_fields)
    return f"unknown key '{'.'.join([*above, key])}'.{nearest(key, kind.model_fields)} Keys: {known}"


def wrong(error: Any) -> str:
    """A sentence about a value that its key cannot have, from what pydantic says of it."""
    path, value = [str(part) for part in error["loc"]], error.get("input")
    key = ".".join(path)
    if error["type"] == "literal_error":
        names = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{key}: '{value}' is not a choice.{nearest(str(value), names)} Choices: {', '.join(names)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        message = "must be a list, for example '[0.9, 0.99]' or '[64, 32]'"
    elif error["type"] in ("model_type", "dict_type"):
        message = "must contain keys, for example '{key: value}'"
    if error["type"] == "value_error" and not path[1:]:
        return message
    given = f", but got '{value}'" if isinstance(value, str | int | float) else ""
    return f"{key}: {message[0].lower()}{message[1:]}{given}"


def _words(kinds: tuple[Any, ...]) -> set[str]:
    """The choices of the Literals among the types of a field; `none` may be one of them."""
    return {word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}


@dataclass(frozen=True)
class Share:
    """What a batch is of a larger one that several processes divide.

    `weight` is the part of the whole batch's loss that its mean loss counts for, and `images` the size of the whole
    batch.
    """

    weight: float
    images: int


@dataclass(frozen=True)
class Batch:
    """A batch of network inputs: `images` float [B, C, H, W], `labels` int64 [B].

    With mixup and cutmix, each image belongs to its label with `weight` (at least 1/2, on the host) and to its entry
    in `others` with 1 - `weight`; otherwise `others` is None. With a `rest`, `images` holds what the network below it
    has computed, such as the output of `Classifier.features`, float [B, F], for the head; None: all is to be run.
    `share` is None for a whole batch.
    """

    images: Tensor
    labels: Tensor
    others: Tensor | None = None
    weight: float | None = None
    rest: nn.Module | None = None
    share: Share | None = None


@dataclass(frozen=True)
class InputSpec:
    """The input that pretrained weights expect; settings that the data section does not set are taken from here.

    `mean` and `std` are per channel, for pixel values scaled to [0, 1]. With `resize` crop, `crop` is the side of the
    centre square that is kept, as a fraction of the shorter side. Small images are enlarged to at least `smallest`.
    """

    size: Size
    smallest: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    crop: float
    interpolation: str
    background: str | None = None
    range: tuple[float, float] | None = None  # of samples of more than 8 bits; None: the full range of their type
    is_size_alone: bool = False  # the weights are random, so that only the network itself asks for a size


@runtime_checkable
class Classifier(Protocol):
    """A network whose parts are accessible to freezing, layer-wise learning rates and Grad-CAM.

    `stages` maps names to modules, from the input to the last one before the head; the head maps
    the output of `features` to logits. Calling the module gives ``head(features(x))``.
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
    """Receives a run's numbers. A tracker may lose values, but must never stop a run.

    `run_id` identifies the run in the tracker, for a resume; `where` is a URL or a command that shows it, or None.
    """

    @property
    def run_id(self) -> str | None: ...

    @property
    def where(self) -> str | None: ...

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log `values` by name (numbers, or objects that the tracker can draw) at the optimiser step `step`."""
        ...

    def close(self, summary: Mapping[str, Any], failed: bool = False) -> None: ...
