"""Reads .npz files that hold images and labels as arrays, as MedMNIST lays them out. Runs no pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.source import split_of
from convsmith.errors import UserError, first_line
from convsmith.files import open_file
from convsmith.memory import available

NPZ = (".npz",)
_ENDS = ("_images", "_labels")
_EXPECTED = "train_images uint8 [N, H, W] or [N, H, W, C] and train_labels [N], and val_ and test_ likewise"


class Stored(NamedTuple):
    """Images uint8 [N, H, W] or [N, H, W, C], labels [N], and the split of each or '' for all."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[Any]
    given: list[str]


def read_npz(path: Path) -> Stored:
    """The arrays ``train_images`` and ``train_labels`` of a file, and those of val and test. Raises UserError."""
    arrays = _arrays(path)
    names = [name.removesuffix("_images") for name in arrays if name.endswith("_images")]
    splits = {name: split_of(name) for name in names if split_of(name) and f"{name}_labels" in arrays}
    if "train" not in splits.values():
        raise UserError(
            f"'{path}' holds {', '.join(arrays) or 'nothing'}: expected {_EXPECTED}; or, in Python, "
            "data=(images, labels)"
        )
    images = [arrays[f"{name}_images"] for name in splits]
    labels = [arrays[f"{name}_labels"] for name in splits]
    for name, pixels, own in zip(splits, images, labels, strict=True):
        if own.ndim == 2 and own.shape[1] > 1:
            raise UserError(
                f"'{path}' has {own.shape[1]} labels an image in {name}_labels: one class an image is needed"
            )
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[1:] != images[0].shape[1:]:
            raise UserError(f"{name}_images of '{path}' are {pixels.dtype} {list(pixels.shape)}: expected {_EXPECTED}")
        if own.shape not in ((own.size,), (own.size, 1)):
            raise UserError(f"{name}_labels of '{path}' are of shape {list(own.shape)}: expected {_EXPECTED}")
        if len(own) != len(pixels):
            raise UserError(f"'{path}' has {len(pixels)} {name}_images, but {len(own)} {name}_labels")
    if len({own.dtype.kind == "U" for own in labels}) > 1:
        raise UserError(f"some labels in '{path}' are strings and others numbers: write those of all splits alike")
    homes = list(splits.values()) if len(set(splits.values())) > 1 else [""] * len(splits)
    given = [home for home, own in zip(homes, labels, strict=True) for _ in range(len(own))]
    return Stored(np.concatenate(images), np.concatenate([own.reshape(len(own)) for own in labels]), given)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with open_file(path) as content:
            with zipfile.ZipFile(content) as archive:
                size = sum(info.file_size for info in archive.infolist())
            free = available()
            if free is not None and 2 * size > free:
                raise UserError(
                    f"'{path}' needs {2 * size / 1e6:,.0f} MB of memory, and {free / 1e6:,.0f} MB are free: write its "
                    "images to Parquet or to files"
                )
            content.seek(0)
            with np.load(content, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files if name.endswith(_ENDS)}
        if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{strange[0]} is no array")
        return arrays
    except MemoryError:
        raise UserError(f"'{path}' holds arrays that are larger than memory") from None
    except UserError:
        raise
    except Exception as error:  # damaged files make zipfile and NumPy raise errors of many kinds
        raise UserError(f"'{path}' cannot be read as .npz: {first_line(error)}") from error
