"""The `data` and `augment` sections, and the preprocessing that travels with a model. Opens no data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from convsmith.contracts import InputSpec, Section, Size, checked, covers, hw, refuse_unwritable, size_of, size_word
from convsmith.errors import UserError
from convsmith.files import parse_json

Resize = Literal["stretch", "pad", "crop"]
Interpolation = Literal["bilinear", "bicubic"]
Deviation = Annotated[float, Field(gt=0)]
Limits = tuple[float, float]

SIDES = {"image_size": (4, 2048), "working_size": (4, 4096)}  # the least and the most pixels of a side
MAX_CHANNELS = 16  # of an image
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]

ARRAYS = "arrays"  # the value of data.source for arrays in memory
#: The keys that name columns of a table, or of Parquet and Arrow.
COLUMN_KEYS = ("image_column", "label_column", "split_column")
#: The keys that say where the labels are.
LABELLING = ("labels", *COLUMN_KEYS)
#: The keys that say where labelled images lie and how they are read; the others say what is made of them.
READING = ("source", "classes", "labels", *COLUMN_KEYS, "on_error", "cache")


class MinImages(Section):
    """A rule for classes: those with at least this many images."""

    min_images: int = Field(ge=1)


class DataConfig(Section):
    source: str | tuple[str, ...] = Field(
        "digits",
        description="digits, cifar10, cifar100, mnist, fashion-mnist, svhn, hf:NAME (of the Hugging Face hub), or a "
        "path: a folder or an archive of images, Parquet, or WebDataset shards, as 'train-{000..099}.tar' (also by an "
        "address, https://...); several are joined",
    )
    classes: tuple[str, ...] | MinImages | None = Field(
        None, description="the classes to use, as '[cat, dog]', or 'min_images: 5'; none: all"
    )
    image_size: Size | None = Field(
        None,
        description="pixels of the network's input: the side of a square, or '[height, width]'; none: that of the "
        "data, else 64",
    )
    working_size: Size | None = Field(
        None, description="pixels of the cached images; none: image_size, or 1.15 x that with random_resized_crop"
    )
    channels: int | None = Field(
        None,
        ge=1,
        le=MAX_CHANNELS,
        description="1 (gray), 3 (RGB) or, of images that have them, any number up to 16; none: that of the data",
    )
    resize: Resize = Field(
        "stretch",
        description="stretch (all pixels, distorted), pad (all pixels, with bars) or crop (the centre square)",
    )
    crop: float = Field(
        1.0, gt=0, le=1, description="crop: side of the square that is kept, as a fraction of the image's shorter side"
    )
    interpolation: Interpolation = Field("bilinear", description="antialiased filter for resizing")
    mean: tuple[float, ...] | None = Field(
        None, description="mean of each channel, for values in [0, 1]; none: that of the weights or the train images"
    )
    std: tuple[Deviation, ...] | None = Field(
        None, description="standard deviation of each channel, for values in [0, 1]; none: as for mean"
    )
    range: Literal["full", "auto"] | Limits = Field(
        "full",
        description="values that become black and white in images of more than 8 bits: full (the range of their type), "
        "auto (the lowest and the highest value of the train images) or '[low, high]'",
    )
    background: str = Field("white", description="colour of bars and behind transparent pixels: a name or #rrggbb")
    val_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="fraction for validation if the data has no val split; none: 0.15 (named sets: 0.1); "
        "0: train on all, with no early stopping and no best epoch",
    )
    test_fraction: float | None = Field(
        None, ge=0, lt=1, description="fraction for testing if the data has no splits; none: 0.15 (digits: 0.2)"
    )
    labels: str | None = Field(
        None,
        description=r"classes of images in no class folders: a CSV or TSV file with columns for image and label, or a "
        r"pattern such as (cat|dog)\.\d+",
    )
    label_column: str | None = Field(
        None, description="column of the classes, in the table of data.labels or in Parquet; none: found by its name"
    )
    image_column: str | None = Field(
        None, description="column of the images, or of their paths, in a table or in Parquet; none: found"
    )
    split_column: str | None = Field(
        None,
        description="column of train, val and test, in the table of data.labels or in Parquet; none: found, if any",
    )
    groups: str | None = Field(
        None,
        description=r"images to keep in one split: a CSV or TSV file with columns for image and group, or a pattern "
        r"such as (patient\d+)_",
    )
    group_column: str | None = Field(None, description="column of the groups in the table of data.groups; none: found")
    split_seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="seed of the splits, the folds and the limit; train.seed does not affect them",
    )
    limit: int | None = Field(None, ge=2, description="keep this many of the train and val images, stratified")
    sampling: Literal["shuffle", "balanced"] = Field(
        "shuffle", description="shuffle (each image once an epoch) or balanced (each class equally often)"
    )
    stream: bool | None = Field(
        None,
        description="decode train images anew each epoch and keep none on disk; none: for shards; false: decode them "
        "once, into the cache",
    )
    shuffle_buffer: int = Field(
        1_000,
        ge=1,
        le=10_000_000,
        description="stream: images that wait, encoded, for the random draw of the next one",
    )
    on_error: Literal["stop", "skip"] = Field("stop", description="what train does with files that cannot be decoded")
    cache: str | None = Field(None, description="cache folder; none: CONVSMITH_CACHE or the platform's default")

    @property
    def sources(self) -> tuple[str, ...]:
        """The names and paths of all sources."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def title(self) -> str:
        """All sources, for a sentence."""
        return ", ".join(self.sources)

    @property
    def short_name(self) -> str:
        """The last part of the path of each source, for a name."""
        return "+".join(Path(source).name or "data" for source in self.sources)

    @property
    def is_own(self) -> bool:
        """Whether the data are arrays of the user's own."""
        return self.source == ARRAYS

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        sources = value if isinstance(value, list | tuple) else [value]
        if not sources or not all(isinstance(source, str) and source for source in sources):
            raise ValueError("must be a name or a path, or a list of them")
        for source in sources:
            refuse_unwritable(source)
            if sources.count(source) > 1:
                raise ValueError(f"names '{source}' twice")
        return tuple(sources) if len(sources) > 1 else sources[0]

    @field_validator("classes", mode="before")
    @classmethod
    def _names_or_rule(cls, value: Any) -> Any:
        if isinstance(value, MinImages | None) or value in ("none", "null"):
            return value
        if isinstance(value, Mapping):
            if value.keys() != {"min_images"} or type(value["min_images"]) is not int or value["min_images"] < 1:
                raise ValueError("must be names or a rule, '[cat, dog]' or 'min_images: 5'")
            return dict(value)
        names = [str(name) for name in value] if isinstance(value, list | tuple) else []
        if len(set(names)) < 2:
            raise ValueError("must name two or more classes, as '[cat, dog]', or be a rule, 'min_images: 5'")
        return tuple(names)

    @field_validator("image_size", "working_size", mode="before")
    @classmethod
    def _side_or_two(cls, value: Any, info: ValidationInfo) -> Any:
        least, most = SIDES[str(info.field_name)]
        if isinstance(value, str):
            with suppress(ValueError):
                value = parse_json(value)
        if value is None:
            return None
        sides = list(value) if isinstance(value, list | tuple) else [value, value]
        whole = all(isinstance(side, int) and not isinstance(side, bool) and least <= side <= most for side in sides)
        if not whole or len(sides) != 2:
            raise ValueError(
                f"must be a whole number from {least} to {most}, the side of a square, or '[height, width]' of two such"
            )
        return size_of(*sides)

    @field_validator("range", mode="before")
    @classmethod
    def _full_auto_or_limits(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("full", "auto"):
            with suppress(ValueError):
                value = parse_json(value)
        limits = value if isinstance(value, list | tuple) else ()
        numbers = all(isinstance(limit, int | float) and not isinstance(limit, bool) for limit in limits)
        if value not in ("full", "auto") and not (len(limits) == 2 and numbers and limits[0] < limits[1]):
            raise ValueError("must be full, auto or '[low, high]' with low below high")
        return value

    @model_validator(mode="after")
    def _room_for_both(self) -> DataConfig:
        if self.image_size and self.working_size and not covers(self.working_size, self.image_size):
            working, image = (size_word(size) for size in (self.working_size, self.image_size))
            raise ValueError(f"data.working_size {working} is smaller than data.image_size {image}")
        if (self.val_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError("data.val_fraction and data.test_fraction together leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> DataConfig:
        if self.crop < 1 and self.resize != "crop":
            raise ValueError(f"data.crop {self.crop:g} needs data.resize crop, but data.resize is {self.resize}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("data.mean and data.std belong together: give both or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(
                f"data.mean has {len(self.mean)} values and data.std has {len(self.std)}: give one for each channel"
            )
        return self


def reading(settings: Mapping[str, Any]) -> DataConfig:
    """The `data` section of images for a trained model, from `settings` of the keys of READING alone.

    Raises UserError for other keys, since the model's own preprocessing decides the rest, and without a source.
    """
    if "source" not in settings:
        raise UserError(f"data.{next(iter(settings))} says how the images of --data are read: give --data, too")
    if other := [key for key in settings if key not in READING and key in DataConfig.model_fields]:
        raise UserError(
            f"data.{other[0]} cannot be set for a trained model, which prepares and divides images as in its training: "
            f"leave it out. Keys that say how --data is read: {', '.join(READING)}"
        )
    return checked(DataConfig, settings, "data")


class AugmentConfig(Section):
    """Each augmentation is off at 0 (or false). All of them work on whole batches, and in training only."""

    needs: ClassVar = {"shift_fill": "shift", "rand_magnitude": "rand_ops"}

    hflip: bool | Literal["alternating"] = Field(
        False,
        description="mirror left-right with probability 1/2; alternating: that in the first epoch, and then each image "
        "in every other epoch",
    )
    shift: int | float = Field(
        0, ge=0, le=512, description="shift by up to this many pixels each way; below 1: a fraction of the image's side"
    )
    shift_fill: Literal["reflect", "zero"] = Field("reflect", description="what fills the border that a shift uncovers")
    cutout: int = Field(0, ge=0, le=1024, description="side in pixels of a square set to the mean")
    rotation: float = Field(0.0, ge=0, le=180, description="rotate by up to this many degrees either way")
    brightness: float = Field(0.0, ge=0, le=1, description="scale brightness by 1 +- this")
    contrast: float = Field(0.0, ge=0, le=1, description="scale contrast by 1 +- this")
    saturation: float = Field(0.0, ge=0, le=1, description="scale saturation by 1 +- this (RGB only)")
    random_resized_crop: float = Field(
        0.0, ge=0, lt=1, description="smallest area of a random crop, as a fraction of the image, for example 0.35"
    )
    trivial: bool = Field(False, description="TrivialAugment: one operation per image, of random strength")
    rand_ops: int = Field(0, ge=0, le=14, description="RandAugment: operations per image, for example 2")
    rand_magnitude: int = Field(9, ge=0, le=30, description="RandAugment: strength of its operations, out of 30")
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of mixup's Beta(alpha, alpha)")
    cutmix: float = Field(0.0, ge=0, le=10, description="alpha of cutmix's Beta(alpha, alpha)")

    @model_validator(mode="after")
    def _one_policy(self) -> AugmentConfig:
        if self.trivial and self.rand_ops:
            raise ValueError("augment.trivial and augment.rand_ops are two policies: choose one")
        return self

    @field_validator("hflip", mode="wrap")
    @classmethod
    def _mirrored(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError("must be true, false or alternating") from None

    @field_validator("shift")
    @classmethod
    def _pixels_or_share(cls, shift: float) -> float:
        if shift > 1 and shift != int(shift):
            raise ValueError("must be whole pixels, or a fraction of the image's side below 1")
        return int(shift) if shift >= 1 else shift

    @property
    def active(self) -> dict[str, Any]:
        """The augmentations that are on, with their details; details of those that are off are left out."""
        values = self.model_dump()
        return {key: value for key, value in values.items() if value and values[self.needs.get(key, key)]}

    def shift_pixels(self, side: int) -> int:
        """The largest shift of an image with this side, in pixels."""
        return int(self.shift) if self.shift >= 1 else round(self.shift * side)


class DecodeRules(Section):
    """How an image is decoded: to `working_size` (none: its own size) and a number of channels.

    Gray (1) and RGB (3) are made of each other. Any other number is that of the image, whose samples stay as they are.
    `range` holds the sample values that become 0 and 255 in gray images of more than 8 bits per sample. Models that
    were trained before it existed do not store it, which means full.
    """

    working_size: Size | None = None
    channels: Channels = 3
    resize: Resize = "stretch"
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"
    background: str = "white"
    range: Literal["full"] | Limits = "full"

    @classmethod
    def of(cls, settings: BaseModel) -> DecodeRules:
        """The fields of this class, taken by their names from a resolved `data` section or a whole preprocessing."""
        return cls.model_validate({name: getattr(settings, name) for name in cls.model_fields})


class Preprocessing(DecodeRules):
    """How a file becomes the network's input: the same in training, evaluation, prediction and export.

    All of the decoding rules must be given, and the steps that follow: the size of the network's input in pixels,
    and `mean` and `std` per channel, for pixel values scaled to [0, 1].
    """

    working_size: Size
    channels: Channels
    resize: Resize
    interpolation: Interpolation
    background: str
    image_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _as_a_data_section_allows(self) -> Preprocessing:
        settings = {name: getattr(self, name) for name in type(self).model_fields}
        checked(DataConfig, settings, "as settings of data")
        if len(self.mean) != self.channels:
            raise ValueError(f"there are {self.channels} channels, but {len(self.mean)} means")
        return self

    @property
    def prepared_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a prepared image."""
        return (*hw(self.working_size), self.channels)

    def input_spec(self) -> InputSpec:
        """What weights that were trained with this preprocessing expect: images of this size, prepared in this way."""
        names = ("channels", "mean", "std", "resize", "crop", "interpolation", "background")
        same = {name: getattr(self, name) for name in names}
        limits = None if self.range == "full" else self.range
        return InputSpec(size=self.image_size, smallest=max(hw(self.image_size)), range=limits, **same)
