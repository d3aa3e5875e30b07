"""The `train` section: epochs, batches, loss, and the choice of the best epoch. Imports no torch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from convsmith.contracts import Section, Size, hw, size_of
from convsmith.precision import FLOAT32
from convsmith.records import Monitor

AUTO, OFF = "auto", "off"
MOST_IMAGES = 65_536  # of a batch
#: Keys of the first edition, which are all there in a section that was written for a run or a study.
_WHOLE = {"epochs", "batch_size", "seed", "device", "threads", "layout", "loss", "focal_gamma", "class_weights"}
_WHOLE |= {"monitor", "patience", "min_delta", "ema", "log_every", "checkpoint_minutes"}


class TrainConfig(Section):
    uses: ClassVar = {"loss": {"cross-entropy": (), "focal": ("focal_gamma",)}}
    needs: ClassVar = {"min_delta": "patience"}

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training images")
    batch_size: int | Literal["auto"] = Field(
        128, description="images per step; auto: the default, halved until a step fits into memory"
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="of all that is random in a training; the splits have data.split_seed"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of torch; none: one per physical core, or one for tiny networks"
    )
    sizes: tuple[tuple[int, float], ...] = Field(
        (),
        description="smaller images at first: '[[20, 0.4], [24, 0.8]]' trains on 20 pixels (of the longer side) until "
        "0.4 of the epochs, on 24 until 0.8, and then on data.image_size",
    )
    layout: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto", description="memory format of images and weights; auto: the faster one, as measured"
    )
    compile: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] = Field(
        "auto",
        description="torch.compile of the steps, in one of its modes; auto: off, but on CUDA with deterministic false "
        "the fastest in sum, as measured, where the run is long enough",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="in which a training's forward and backward passes compute; weights, statistics, losses and "
        "scores are always float32. auto: bfloat16 where the device has instructions for it and is faster by it, as "
        "measured, else float32; float16 (with scaled losses) is for CUDA alone",
    )
    deterministic: bool = Field(
        True,
        description="on CUDA, only kernels that give the same bits each time; false: the fastest kernels, so that a "
        "resumed or repeated run differs in rounding. The CPU's always give the same bits",
    )
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    focal_gamma: float = Field(
        2.0, ge=0, le=10, description="of loss focal: how much images that are right already count less; 0: not at all"
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none",
        description="weights of classes in the loss; balanced: n / (classes x its number of images); or by name, "
        "'{cat: 2, dog: 0.5}', and 1 for the others",
    )
    monitor: Monitor = Field("val_accuracy", description="the metric for the best epoch and for early stopping")
    keep: Literal["best", "last"] = Field(
        "best", description="the epoch whose weights the run keeps: best, or last, so that val images choose nothing"
    )
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without improvement; none: never")
    min_delta: float = Field(0.0, ge=0, description="early stopping: the smallest change that counts as better")
    sync_batch_norm: bool = Field(
        False,
        description="under torchrun: batch norm over the images of all processes; false: over each process's own",
    )
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0: off")
    temperature: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="calibration: the logits of the kept weights are divided by this (in the head); auto sets it",
    )
    log_every: int = Field(50, ge=1, description="steps between two readings of the running loss and accuracy")
    checkpoint_minutes: float = Field(
        5.0, ge=0, description="minutes between checkpoints within an epoch, saved at the next log step"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_computed(cls, values: Any) -> Any:
        """A section that was written whole, before there was a choice of precisions, means float32."""
        if isinstance(values, dict) and "precision" not in values and values.keys() >= _WHOLE:
            return values | {"precision": FLOAT32}
        return values

    @property
    def batch(self) -> int:
        """The batch size of a resolved config."""
        assert isinstance(self.batch_size, int), "a resolved config has a number"
        return self.batch_size

    def size_in(self, epoch: int, image_size: Size) -> Size:
        """The size of the train images in an epoch (from 0), of the same shape as `image_size`."""
        longer = next((side for side, until in self.sizes if epoch < round(until * self.epochs, 6)), None)
        if longer is None:
            return image_size
        return size_of(*(max(1, round(side * longer / max(hw(image_size)))) for side in hw(image_size)))

    def sizes_of_last(self, epochs: int, image_size: Size) -> list[Size]:
        """The sizes of the train images in so many last epochs."""
        return [self.size_in(epoch, image_size) for epoch in range(self.epochs - epochs, self.epochs)]

    def full_sized(self, epochs: int, image_size: Size) -> float:
        """How many epochs of images of `image_size` have as many pixels as so many last epochs."""
        pixels = [math.prod(hw(size)) for size in self.sizes_of_last(epochs, image_size)]
        return sum(pixels) / math.prod(hw(image_size))

    @field_validator("sizes", mode="wrap")
    @classmethod
    def _in_order(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            sizes = handler(value)
            shares = [0.0, *(until for _, until in sizes), 1.0]
            right = all(side >= 4 for side, _ in sizes) and all(one < after for one, after in pairwise(shares))
        except ValidationError:
            right = False
        if not right:
            raise ValueError(
                "must be sizes of at least 4 pixels, each with a rising fraction of the epochs below 1, as "
                "'[[20, 0.4], [24, 0.8]]'"
            )
        return sizes

    @field_validator("class_weights", mode="before")
    @classmethod
    def _a_choice_or_weights(cls, value: Any) -> Any:
        if value in ("none", "balanced"):
            return value
        weights = value if isinstance(value, dict) else {}
        numbers = all(type(weight) in (int, float) and 0 < weight < math.inf for weight in weights.values())
        if not weights or not numbers:
            raise ValueError("must be none, balanced or numbers above 0 by class, as '{cat: 2, dog: 0.5}'")
        return {str(name): float(weight) for name, weight in weights.items()}

    @field_validator("batch_size", mode="wrap")
    @classmethod
    def _number_or_auto(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            size = handler(value)
        except ValidationError:
            size = 0
        if size != AUTO and not 1 <= size <= MOST_IMAGES:
            raise ValueError(f"must be auto or a whole number from 1 to {MOST_IMAGES:,}")
        return size
