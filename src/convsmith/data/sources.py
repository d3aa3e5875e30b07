"""Opens a data source by its name or path; new kinds of sources are added here. Decodes nothing."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convsmith.data.archives import archive_of, exists, open_archive
from convsmith.data.arrow import ARROW, PARQUET
from convsmith.data.config import ARRAYS, COLUMN_KEYS, MAX_CHANNELS, DataConfig
from convsmith.data.folders import open_folder
from convsmith.data.hub import PREFIX, open_hub
from convsmith.data.joined import join
from convsmith.data.labels import open_labelled
from convsmith.data.named import open_digits, open_named
from convsmith.data.native import array_channels
from convsmith.data.npz import NPZ, read_npz
from convsmith.data.parquet import column_files, open_parquet, open_parquet_at
from convsmith.data.places import absolute, is_address, is_pattern, local, places
from convsmith.data.shards import CLS, is_shard, open_shards
from convsmith.data.source import SPLITS, File, Source, numbered_ids, unused_files, walk
from convsmith.errors import UserError, choose
from convsmith.files import nearest_path, siblings

__all__ = ["ARRAYS", "SOURCES", "Source", "cache_folder", "from_arrays", "open_source", "with_absolute_paths"]

SOURCES: dict[str, Callable[[Path], Source]] = {  # each function takes the cache folder
    "digits": open_digits,
    "cifar10": partial(open_named, "cifar10"),
    "cifar100": partial(open_named, "cifar100"),
    "mnist": partial(open_named, "mnist"),
    "fashion-mnist": partial(open_named, "fashion-mnist"),
    "svhn": partial(open_named, "svhn"),
}


def cache_folder(config: DataConfig) -> Path:
    """Where decoded images and downloads are kept: `data.cache`, CONVSMITH_CACHE, or the platform's default."""
    named = config.cache or os.environ.get("CONVSMITH_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("convsmith")


def open_source(config: DataConfig, fewest_classes: int = 2) -> Source:
    """The source that `config.source` names: one of SOURCES, else a folder of images or Parquet, or a Parquet file.

    Several are joined. A folder that shares its name with one of SOURCES is reached as ``./name``. Raises UserError.
    """
    if config.is_own:
        raise UserError(
            "the data are arrays that were passed in from Python: pass them in again, data=(images, labels)"
        )
    opened = [_open(name, config) for name in config.sources]
    source = opened[0] if len(opened) == 1 else join(opened, config.sources)
    return source.of_classes(fewest_classes)


def with_absolute_paths(config: DataConfig) -> DataConfig:
    """The same section with the absolute path of each source that is a file or a folder."""
    found = [
        absolute(name)
        if is_pattern(name)
        else str(Path(name).expanduser().resolve())
        if name not in SOURCES and exists(Path(name).expanduser())
        else name
        for name in config.sources
    ]
    return config.model_copy(update={"source": found[0] if len(found) == 1 else tuple(found)})


def _open(name: str, config: DataConfig) -> Source:
    cache = cache_folder(config)
    if name in SOURCES:
        _refuse_unread(config, name)
        return SOURCES[name](cache)
    if name.startswith(PREFIX) and not is_address(name):
        _refuse_unread(config, name, *COLUMN_KEYS)
        return open_hub(name, cache, config)
    if is_pattern(name):
        return _open_pattern(name, cache, config)
    path = Path(name).expanduser()
    if path.is_dir():
        tree = walk(path)
        if tree.files and all(is_shard(file.path) for file in tree.files):
            return open_shards(name, [local(path / file.path) for file in tree.files], cache, config)
        parquet = column_files(path, tree)
        if config.labels is not None and len(tree.files) > len(parquet):
            return open_labelled(path, tree, path.joinpath, config)
        if not parquet:
            _refuse_unread(config, f"the class folders of '{path}'")
            return open_folder(path, tree, path.joinpath)
        _refuse_unread(config, f"'{path}'", *COLUMN_KEYS)
        others = sorted(set(tree.files).difference(parquet))
        source = open_parquet(path, parquet, cache, config)
        unused = unused_files(tree.ignored, {"not Parquet": [file.path for file in others]}, source.unused)
        return replace(source, unused=unused)
    if (archive := archive_of(path)) is not None:
        return _open_archive(path, *archive, config)
    if path.suffix.lower() in NPZ and path.is_file():
        _refuse_unread(config, f"'{path}'")
        stored = read_npz(path)
        return replace(from_arrays(stored.images, stored.labels, given=stored.given, fewest_classes=1), name=str(path))
    if path.is_file():
        if path.suffix.lower() not in (*PARQUET, *ARROW):
            raise UserError(
                f"data.source '{path}' is a file: give a folder or an archive of images, or Parquet, Arrow or .npz"
            )
        _refuse_unread(config, f"'{path}'", *COLUMN_KEYS)
        return open_parquet(path.parent, [File.at(path, path.parent)], cache, config)
    if len(path.parts) > 1 or path.suffix:
        near = nearest_path(path)
        raise UserError(f"data.source '{name}' was not found: there is no such file or folder{near and f'.{near}'}")
    raise UserError(f"{choose('data.source', name, SOURCES, siblings(path))}, or the path of a folder or of Parquet")


def _open_pattern(pattern: str, cache: Path, config: DataConfig) -> Source:
    """The samples of the shards, or the rows of the Parquet files, that a pattern or an address names."""
    found = places(pattern)
    kinds = [is_shard(place.name) or place.name.lower().endswith(PARQUET) for place in found]
    if not all(kinds):
        other = found[kinds.index(False)].name
        raise UserError(f"data.source '{pattern}' names '{other}', which is neither a .tar of WebDataset nor Parquet")
    if all(is_shard(place.name) for place in found):
        return open_shards(pattern, found, cache, config)
    if any(is_shard(place.name) for place in found):
        raise UserError(f"data.source '{pattern}' names .tar files and Parquet: name one of them")
    _refuse_unread(config, f"'{pattern}'", *COLUMN_KEYS)
    return open_parquet_at(pattern, found, cache, config)


def _open_archive(path: Path, archive: Path, folder: str, config: DataConfig) -> Source:
    tree, read = open_archive(archive, cache_folder(config), folder)
    if is_shard(archive.name) and not folder and any(file.path.endswith(f".{CLS}") for file in tree.files):
        return open_shards(str(path), [local(archive)], cache_folder(config), config)
    if config.labels is not None:
        return open_labelled(path, tree, read, config)
    if files := column_files(path, tree):
        raise UserError(f"'{archive}' holds '{files[0].path}': unpack it, since Parquet and Arrow are read from files")
    _refuse_unread(config, f"the class folders of '{path}'")
    return open_folder(path, tree, read)


def _refuse_unread(config: DataConfig, what: str, *read: str) -> None:
    """Raise UserError for a setting on tables other than `read` that a source, which `what` names, has no use for."""
    if config.labels is not None:
        raise UserError(
            f"data.labels is for images in folders and archives, but {what} has labels of its own: leave it out"
        )
    for key in COLUMN_KEYS:
        if getattr(config, key) is not None and key not in read and not (key == "image_column" and config.groups):
            raise UserError(f"data.{key} needs a table, but {what} has none: set --data.labels to one, or leave it out")


def from_arrays(
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: Sequence[str] | None = None,
    given: Sequence[str] | None = None,
    fewest_classes: int = 2,
) -> Source:
    """A source of arrays in memory.

    `images` uint8 [N, H, W] or [N, H, W, C] with up to 16 channels, of which four are RGBA; `labels` [N] are class
    names, or integers that index `classes`. Without `classes`, the classes are the distinct labels, sorted. `given` [N]
    holds 'train', 'val', 'test', or '' where no split is given. Raises UserError.
    """
    try:
        images, values = np.asarray(images), np.asarray(labels)
    except ValueError:  # rows of different lengths
        raise UserError("images and labels must be arrays, with all images of one size and one label each") from None
    shaped = images.ndim in (3, 4) and 1 <= math.prod(images.shape[3:]) <= MAX_CHANNELS
    if images.dtype != np.uint8 or not shaped:
        raise UserError(
            f"images must be uint8 [N, H, W] or [N, H, W, C] with up to {MAX_CHANNELS} channels, not "
            f"{images.dtype} {list(images.shape)}"
        )
    if values.dtype == object:  # strings from pandas
        values = np.array(values.tolist())
    splits = np.array([""] * len(images) if given is None else list(given), dtype="<U5")
    if values.shape != (len(images),):
        raise UserError(f"there are {len(images)} images, but labels of shape {list(values.shape)}: give one for each")
    if len(splits) != len(images):
        raise UserError(f"there are {len(images)} images, but {len(splits)} splits: give one for each")
    if unknown := sorted(set(splits.tolist()) - {*SPLITS, ""}):
        raise choose("split", unknown[0], SPLITS)
    names, coded = _encode(values, classes)
    digest = hashlib.sha256(repr((images.shape, names)).encode())
    for array in (images, coded, splits):
        digest.update(np.ascontiguousarray(array).data)
    return Source(
        name=ARRAYS,
        classes=names,
        ids=numbered_ids(splits),
        labels=coded,
        given=splits,
        fingerprint=digest.hexdigest(),
        read=lambda index: images[index],
        native_size=(images.shape[1], images.shape[2]),
        native_channels=array_channels(images.shape[3:]),
    ).of_classes(fewest_classes)


def _encode(values: npt.NDArray[Any], classes: Sequence[str] | None) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Class names, and labels that index them."""
    if values.dtype.kind not in "iuU":
        raise UserError(f"labels must be integers or strings, not {values.dtype}")
    if classes is None:
        distinct, coded = np.unique(values, return_inverse=True)
        return tuple(str(value) for value in distinct), coded.astype(np.int64)
    if values.dtype.kind == "U":
        position = {name: i for i, name in enumerate(classes)}
        if unknown := sorted(set(values.tolist()) - position.keys()):
            raise choose("label", unknown[0], classes)
        return tuple(classes), np.array([position[name] for name in values.tolist()], dtype=np.int64)
    if len(values) and not 0 <= values.min() <= values.max() < len(classes):
        raise UserError(f"labels run from {values.min()} to {values.max()}, but there are {len(classes)} classes")
    return tuple(classes), values.astype(np.int64)
