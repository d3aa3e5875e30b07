"""Opens data sets by name: scikit-learn's digits, and those that torchvision downloads. Decodes no image files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.source import Index, Source, fingerprint_files, numbered_ids, recall, remember, walk
from convsmith.errors import UserError, first_line

Arrays = dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]  # split -> images [N, H, W(, C)], labels [N]

_TEN = tuple("0123456789")


class _Named(NamedTuple):
    torchvision_name: str
    size: int
    channels: int
    number: int  # of classes
    classes: tuple[str, ...] | None = None  # none: the names that torchvision gives


_SETS = {
    "cifar10": _Named("CIFAR10", 32, 3, 10),
    "cifar100": _Named("CIFAR100", 32, 3, 100),
    "mnist": _Named("MNIST", 28, 1, 10, _TEN),
    "fashion-mnist": _Named("FashionMNIST", 28, 1, 10),
    "svhn": _Named("SVHN", 32, 3, 10, _TEN),
}


def open_digits(cache_folder: Path) -> Source:
    """1,797 handwritten digits, 8 x 8 gray (scikit-learn's `load_digits`), with values 0..16 scaled to 0..255."""

    @cache
    def load() -> tuple[tuple[str, ...], Arrays]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        return _TEN, {"": (pixels, labels.astype(np.int64))}

    key = "digits-1"
    index = recall(cache_folder, key) or remember(cache_folder, key, _index(*load()))
    return _source("digits", index, key, lambda: load()[1], 8, 1, (0.1, 0.2))


def known_shape(name: str) -> tuple[int, int, int] | None:
    """Channels, size and number of classes of a torchvision data set; needs no download."""
    named = _SETS.get(name)
    return named and (named.channels, named.size, named.number)


def open_named(name: str, cache_folder: Path) -> Source:
    """A torchvision data set, downloaded on first use to `cache_folder`/downloads and available offline afterwards."""
    named = _SETS[name]
    folder = cache_folder / "downloads" / name

    @cache
    def load() -> tuple[tuple[str, ...], Arrays]:
        return _load(name, named, folder)

    key = fingerprint_files(folder, walk(folder).files) if folder.is_dir() else ""
    index = recall(cache_folder, key) if key else None
    if index is None:
        index = _index(*load())
        key = fingerprint_files(folder, walk(folder).files)  # the files are complete only now
        remember(cache_folder, key, index)
    return _source(name, index, key, lambda: load()[1], named.size, named.channels, (0.1, 0.0))


def _index(classes: tuple[str, ...], arrays: Arrays) -> Index:
    given = np.repeat(np.array(list(arrays), dtype="<U5"), [len(labels) for _, labels in arrays.values()])
    return Index(classes, np.concatenate([labels for _, labels in arrays.values()]), given)


def _source(
    name: str,
    index: Index,
    fingerprint: str,
    arrays: Callable[[], Arrays],
    size: int,
    channels: int,
    fractions: tuple[float, float],
) -> Source:
    def read(row: int) -> npt.NDArray[np.uint8]:
        for images, _ in arrays().values():
            if row < len(images):
                image: npt.NDArray[np.uint8] = images[row]
                return image
            row -= len(images)
        raise AssertionError("row beyond the last")

    return Source(
        name=name,
        classes=index.classes,
        ids=numbered_ids(index.given),
        labels=index.labels,
        given=index.given,
        fingerprint=fingerprint,
        read=read,
        val_fraction=fractions[0],
        test_fraction=fractions[1],
        native_size=(size, size),
        native_channels=channels,
    )


def _load(name: str, named: _Named, folder: Path) -> tuple[tuple[str, ...], Arrays]:
    from filelock import FileLock
    from torchvision import datasets

    factory: Any = getattr(datasets, named.torchvision_name)
    arrays: Arrays = {}
    classes = named.classes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            remove_damaged(folder)
            for split in ("train", "test"):
                which = {"split": split} if name == "svhn" else {"train": split == "train"}
                loaded = factory(folder, download=True, **which)
                images = np.asarray(loaded.data)
                if name == "svhn":
                    images = images.transpose(0, 2, 3, 1)
                labels = loaded.labels if name == "svhn" else loaded.targets
                arrays[split] = images, np.asarray(labels, dtype=np.int64)
                classes = classes or tuple(loaded.classes)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError, UnpicklingError) as error:
        here = f"; for the folder here: ./{name}" if Path(name).exists() else ""
        raise UserError(
            f"cannot download or read '{name}' in '{folder}' ({first_line(error)}): go online, delete the folder if it "
            f"is damaged, or use a folder of images or Parquet instead, --data PATH{here}"
        ) from error
    assert classes is not None
    return classes, arrays


def remove_damaged(folder: Path) -> None:
    """Remove unpacked files that differ from the .gz beside them, from which torchvision unpacks them again.

    Of MNIST and FashionMNIST it checks the archives alone, and these only when it has unpacked nothing yet.
    """
    for archive in folder.rglob("*.gz"):
        unpacked = archive.with_suffix("")
        if unpacked.is_file():
            content = unpacked.read_bytes()
            if archive.read_bytes()[-8:] != struct.pack("<II", zlib.crc32(content), len(content) % 2**32):
                unpacked.unlink()
