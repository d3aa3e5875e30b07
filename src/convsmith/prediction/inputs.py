"""What is to be predicted: files, folders, patterns, and images of any form, each with its id. Decodes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convsmith.data.decode import has_image_suffix
from convsmith.data.places import is_pattern
from convsmith.data.preprocess import InputPixels
from convsmith.data.source import ignored, readable, walk
from convsmith.errors import UserError
from convsmith.files import nearest_path


def find_images(paths: Sequence[str]) -> list[Path]:
    """The images that files, folders (by suffix, sorted) and patterns name; raises UserError if one names none.

    What `train` ignores in a folder is ignored here, too; a file that is named itself is taken whatever its name.
    """
    found: list[Path] = []
    for text in paths:
        named = bool(text) and Path(text).exists()
        matching = (name for name in sorted(glob(text, recursive=True)) if not ignored(Path(name).name))
        matches = [Path(text)] if named else [Path(name) for name in matching]
        if not matches:
            near = "" if is_pattern(text) else nearest_path(Path(text))
            fix = f".{near}" if near else ": give files, folders or a pattern such as 'photos/*.jpg'"
            raise UserError(f"no file matches '{text}'{fix}")
        images = [image for match in matches for image in (images_below(match) if match.is_dir() else [match])]
        if not images:
            raise UserError(f"there are no images below '{text}': give files, folders or a pattern, as 'photos/*.jpg'")
        found += images
    return found


def images_below(folder: Path) -> list[Path]:
    """The files with the suffix of an image anywhere below a folder, sorted, without what `train` ignores."""
    return [folder / file.path for file in walk(folder).files if has_image_suffix(file.path)]


def with_ids(images: Any, channels: int = 3) -> tuple[list[str], list[Any]]:
    """Images in any form, one or many, each with its id; a folder stands for the images below it.

    The id of a file is its path, and that of any other image its number. `channels` are the model's (see `as_list`).
    """
    ids: list[str] = []
    found: list[Any] = []
    for image in as_list(images, channels):
        if isinstance(image, str | Path) and Path(image).is_dir():
            files = find_images([str(image)])
            ids += (readable(str(file)) for file in files)
            found += files
        else:
            ids.append(readable(str(image)) if isinstance(image, str | Path) else str(len(ids)))
            found.append(image)
    return ids, found


def read_streams(images: Sequence[Any]) -> Iterator[Any]:
    """The same images, of which file objects, open for reading bytes, are read from where they stand."""
    for image in images:
        if not hasattr(image, "read"):
            yield image
        elif isinstance(content := image.read(), bytes):
            yield content
        else:
            raise UserError("a file object must be open for reading bytes: open(path, 'rb')")


def as_list(images: Any, channels: int = 3) -> list[Any]:
    """A batch (array or tensor of one more dimension) or a sequence as a list; one image as a list of one.

    An array [A, B, C] whose last dimension is 1, 3, 4 or the model's `channels` is one image; otherwise it holds gray
    images [N, H, W].
    """
    if isinstance(images, InputPixels):
        return [InputPixels(image[None]) for image in images.array]
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] not in (1, 3, 4, channels):
        return list(images)
    if isinstance(images, Tensor | np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images)
    return [images]
