"""Decodes images to uint8 pixels by one set of rules for the cache, `predict` and `data check`. Caches nothing.

The rules, in order:

1. Only the first frame of an animation or of a multi-page file is used.
2. EXIF orientation is applied; colour profiles and gamma are not.
3. 16-bit samples are scaled by 255/65535, never clipped. Pillow itself keeps only the high byte of
   16-bit colour, which differs from the rounded value by at most 1.
4. 32-bit integers are treated as 16-bit samples, floats as values in [0, 1]; values outside are refused. If `range`
   is given, gray samples of 16 bits and more, and floats, are scaled from it instead, and clipped to it.
5. Transparency of any kind (alpha, tRNS, palettes) is composited on `background`.
6. CMYK, YCCK and palettes become RGB; gray becomes RGB by repetition, RGB gray by ITU-R 601 luma.
7. The result is resized to a square by an antialiased filter.

An image that cannot be decoded raises `DecodeError`, and so does one whose decoding would take more time or memory than
`limits` allows. Damage that the format cannot reveal (flipped bits inside a JPEG's scan) goes unnoticed.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageFile

from convsmith.data.config import DecodeRules
from convsmith.data.containers import check_tags, inspect
from convsmith.data.faults import SUFFIXES, DecodeError, Kind, decode_errors
from convsmith.data.limits import (
    MAX_BYTES,
    MAX_READS,
    SMALL,
    LongHeader,
    MeteredBytes,
    MeteredFile,
    decoding_memory,
    memory_needed,
    refuse_large,
    turn,
)
from convsmith.data.plugins import decoders
from convsmith.data.quiet import quiet
from convsmith.data.raster import Depth, Pixels, Raster, background_rgb, format_of
from convsmith.data.resize import fit
from convsmith.errors import UserError
from convsmith.files import open_file, read_bytes

__all__ = ["IMAGE_SUFFIXES", "DecodeError", "Kind", "Pixels", "background_rgb", "decode", "from_array"]

Found = TypeVar("Found")

_loading = threading.Lock()  # Pillow reads a file only when its image is used, and two threads may have the same image
IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


class Header(NamedTuple):
    """What a file's header states; width and height in pixels, before EXIF rotation."""

    format: str
    width: int
    height: int
    channels: Literal[1, 3]


def decode(data: bytes | Path, rules: DecodeRules) -> Pixels:
    """Decode an encoded image, or the file at a path, to uint8 [H, W, C].

    Raises DecodeError, and nothing else, if anything is wrong with the data. It is thread-safe.
    """
    return decode_deep(data, rules)[0]


def decode_deep(data: bytes | Path, rules: DecodeRules) -> tuple[Pixels, Depth]:
    """Like `decode`, with the range of the samples of a gray image of more than 8 bits as the second value."""
    with opened(data, rules) as raster:
        return fit(raster, rules), raster.depth


@contextlib.contextmanager
def opened(data: bytes | Path, rules: DecodeRules) -> Iterator[Raster]:
    """The decoded image, as long as the block lasts; it waits until there is memory for it. Raises DecodeError.

    Whatever goes wrong in the block, such as memory that runs out, is a DecodeError as well.
    """
    with contextlib.ExitStack() as stack:
        is_large = isinstance(data, Path) and _size(data) > SMALL
        if is_large:
            stack.enter_context(
                decoding_memory.taken(_from_header(data, lambda image, size: memory_needed(image, size, rules)))
            )
        content = _content(data)
        stack.enter_context(_opening(content))
        content, scans = inspect(content)
        image = stack.enter_context(_open_bytes(content))
        needed = memory_needed(image, len(content), rules, scans)
        refuse_large(image, len(content), scans, needed)
        if not is_large and needed > SMALL:
            stack.enter_context(decoding_memory.taken(needed))
        stack.callback(image.close)  # which frees its pixels before the memory is given back
        with turn(image):
            raster = Raster(image, rules)
        yield raster


def from_array(pixels: Pixels, rules: DecodeRules) -> Pixels:
    """Apply the same rules to decoded pixels, uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels (RGBA)."""
    return fit(array_raster(pixels, rules), rules)


def array_raster(pixels: Pixels, rules: DecodeRules) -> Raster:
    """Decoded pixels, of the shapes that `from_array` takes, as a `Raster`."""
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise UserError(
            f"an image array must be uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels, not "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Raster(Image.fromarray(pixels), rules)


def from_image(image: Image.Image, rules: DecodeRules) -> Pixels:
    """Apply the same rules to the current frame of a Pillow image. Raises DecodeError. It is thread-safe."""
    with _loading, _opening(b""):
        return fit(Raster(image, rules), rules)


def read_header(data: bytes | Path) -> Header:
    """Read format, size and channels from the image's header. Raises DecodeError."""
    return _from_header(data, lambda image, _: _header(image))


def _header(image: ImageFile.ImageFile) -> Header:
    gray = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    return Header(format_of(image), image.width, image.height, 1 if gray else 3)


def _from_header(data: bytes | Path, look: Callable[[ImageFile.ImageFile, int], Found]) -> Found:
    """What `look` finds in an image whose header alone has been read, and in the size of its file."""
    size = _size(data)
    if isinstance(data, Path) and size > SMALL:
        try:
            with _stream(data) as stream, _opening(stream.peek(64)), _open(stream) as image:
                return look(image, size)
        except LongHeader:
            pass
        except DecodeError as error:
            if error.kind != "corrupt":  # which a long text makes of a PNG
                raise
    with decoding_memory.taken(4 * size):
        content = _content(data)
        with _opening(content), _open_bytes(inspect(content).content) as image:
            return look(image, size)


@contextlib.contextmanager
def _opening(content: bytes) -> Iterator[None]:
    with quiet, decode_errors(content):
        yield


def _size(data: bytes | Path) -> int:
    try:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from error
    if size > MAX_BYTES:
        raise DecodeError("bomb", f"{size:,} bytes, which is more than {MAX_BYTES:,}")
    return size


def _stream(path: Path) -> MeteredFile:
    try:
        return MeteredFile(open_file(path))
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from error


def _content(data: bytes | Path) -> bytes:
    _size(data)
    try:
        content = read_bytes(data) if isinstance(data, Path) else data
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from error
    if not content:
        raise DecodeError("empty", "zero bytes")
    return content


def _open_bytes(content: bytes) -> ImageFile.ImageFile:
    if len(content) <= MAX_READS:
        return _open(io.BytesIO(content))  # which has no more parts than bytes; a meter takes a tenth of its time
    stream = MeteredBytes(content)
    image = _open(stream)
    stream.release()
    return image


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    head = stream.read(64)
    stream.seek(0)
    image = Image.open(stream, formats=decoders(head))
    assert isinstance(image, ImageFile.ImageFile)
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        check_tags(exif.removeprefix(b"Exif\0\0"))
    return image
