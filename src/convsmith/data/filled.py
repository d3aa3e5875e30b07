"""Fills in what a data section leaves open, by what the source gives: sizes, fractions, tables, groups."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from convsmith.contracts import Size, covers, hw, size_of, size_word
from convsmith.data.config import DataConfig
from convsmith.data.expected import side
from convsmith.data.groups import Groups, read_groups, refuse_divided
from convsmith.data.native import Native
from convsmith.data.source import SPLITS, Source
from convsmith.data.tables import SUFFIXES as TABLES
from convsmith.data.tables import existing_table
from convsmith.errors import UserError

DEFAULT_SIZE = 64  # the image size for photographs


def scaled(size: Size, factor: float) -> Size:
    """The size times a factor, rounded up."""
    height, width = (math.ceil(side * factor) for side in hw(size))
    return size_of(height, width)


def sized(config: DataConfig, native: Native) -> DataConfig:
    """The config with an image size and a number of channels, which are those of the images where it names none."""
    size = config.image_size
    if size is None:
        size = side(native.size) or DEFAULT_SIZE
        if config.working_size is not None and not covers(config.working_size, size):
            working = size_word(config.working_size)
            raise UserError(f"data.working_size {working} is smaller than data.image_size {size}: set both")
    return config.model_copy(update={"image_size": size, "channels": config.channels or native.channels})


def refuse_unfit_statistics(config: DataConfig) -> None:
    """Raise UserError for a mean of other channels than the images will have."""
    if config.mean is not None and len(config.mean) != config.channels:
        raise UserError(
            f"data.mean and data.std have {len(config.mean)} values, but data.channels is {config.channels}"
        )


def with_tables(config: DataConfig) -> DataConfig:
    """The config with the absolute paths of the tables that data.labels and data.groups name."""
    update: dict[str, str] = {}
    for key in ("labels", "groups"):
        setting = getattr(config, key)
        if setting and (file := existing_table(setting, _folder(config))):
            update[key] = str(file)
        elif setting and key == "labels" and len(config.sources) == 1 and setting.lower().endswith(TABLES):
            update[key] = str(Path(config.sources[0]).expanduser().resolve() / setting)  # it lies in an archive
    return config.model_copy(update=update)


def _folder(config: DataConfig) -> Path | None:
    """The folder below which the ids of the source are paths, if it is one folder."""
    path = Path(config.sources[0]).expanduser()
    return path if len(config.sources) == 1 and path.is_dir() and not config.is_own else None


def groups_of(config: DataConfig, source: Source) -> Groups | None:
    """The groups of all images of the source."""
    if config.groups is None:
        return None
    groups = read_groups(config, source.ids, _folder(config))
    given = {split: np.flatnonzero(source.given == split) for split in SPLITS}
    refuse_divided(groups, given, f"move its images in {source.name} to one split, or leave data.groups out")
    return groups


def unused_fractions(config: DataConfig, given: set[str]) -> tuple[str, ...]:
    """Sentences on fractions that were set although the data itself defines val and test."""
    messages = []
    if config.val_fraction is not None and "val" in given:
        messages.append("data.val_fraction has no effect, since the data has its own val split")
    if config.test_fraction and given & {"val", "test"}:
        reason = "its own test split" if "test" in given else "a val split, and therefore gets no test split"
        messages.append(f"data.test_fraction has no effect, since the data has {reason}")
    return tuple(messages)


def with_fractions(config: DataConfig, source: Source, given: set[str]) -> DataConfig:
    """Fill in the fractions that have an effect, and leave the others as they are."""
    update: dict[str, float] = {}
    if "val" not in given and config.val_fraction is None:
        update["val_fraction"] = source.val_fraction
    if not given & {"val", "test"} and config.test_fraction is None:
        update["test_fraction"] = source.test_fraction
    config = config.model_copy(update=update)
    if "val" not in given and "test" not in given and (config.val_fraction or 0) + (config.test_fraction or 0) >= 1:
        raise UserError("data.val_fraction and data.test_fraction together leave nothing to train on")
    return config
