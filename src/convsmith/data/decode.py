"""Decodes images to uint8 pixels by one set of rules for the cache, `predict` and `data check`. Caches nothing.

The rules, in order:

1. Only the first frame of an animation or of a multi-page file is used.
2. EXIF orientation is applied; colour profiles and gamma are not.
3. 16-bit samples are scaled by 255/65535, never clipped. Pillow itself keeps only the high byte of
   16-bit colour, which differs from the rounded value by at most 1.
4. 32-bit integers are treated as 16-bit samples, floats as values in [0, 1]; values outside are refused. If `range`
   is given, gray samples of 16 bits and more, and floats, are scaled from it instead, and clipped to it.
5. Transparency of any kind (alpha, tRNS, palettes) is composited on `background`.
6. CMYK, YCCK and palettes become RGB; gray becomes RGB by repetition, RGB gray by ITU-R 601 luma. For another number
   of `channels` the image must have that many, which stay as they are: steps 3 and 4, and not 5.
7. The result is resized by an antialiased filter.

An image that cannot be decoded raises `DecodeError`, and so does one whose decoding would take more time or memory than
`limits` allows. Damage that the format cannot reveal (flipped bits inside a JPEG's scan) goes unnoticed.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from convsmith.data.config import MAX_CHANNELS, DecodeRules
from convsmith.data.containers import TIFF, check_tags, holds_image, inspect
from convsmith.data.faults import SUFFIXES, DecodeError, Kind, decode_errors
from convsmith.data.limits import (
    MAX_BYTES,
    MAX_READS,
    MEMORY,
    SMALL,
    LongHeader,
    MeteredBytes,
    MeteredFile,
    decoding_memory,
    memory_needed,
    refuse_array,
    refuse_large,
    turn,
)
from convsmith.data.planes import NPY, ArrayFile, Planes, npy_file, tiff_file
from convsmith.data.plugins import decoders
from convsmith.data.quiet import quiet
from convsmith.data.raster import SHALLOW, Depth, Pixels, Raster, background_rgb, format_of
from convsmith.data.remarks import Remark, is_other_profile
from convsmith.data.resize import fit
from convsmith.errors import UserError
from convsmith.files import open_file, read_bytes

__all__ = ["IMAGE_SUFFIXES", "DecodeError", "Kind", "Pixels", "background_rgb", "decode", "from_array"]

Found = TypeVar("Found")

_loading = threading.Lock()  # Pillow reads a file only when its image is used, and two threads may have the same image
_SAMPLES_PER_PIXEL, _SAMPLE_FORMAT, _SIGNED = 277, 339, 2  # TIFF 6.0, 8 and 19
IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


def has_image_suffix(path: str) -> bool:
    """Whether a POSIX path ends as an image's does; called a million times, for which pathlib is too slow."""
    return path[path.rfind(".") :].lower() in IMAGE_SUFFIXES


class Header(NamedTuple):
    """What a file's header states; width and height in pixels, before EXIF rotation."""

    format: str
    width: int
    height: int
    channels: int


def decode(data: bytes | Path, rules: DecodeRules) -> Pixels:
    """Decode an encoded image, or the file at a path, to uint8 [H, W, C].

    Raises DecodeError, and nothing else, if anything is wrong with the data. It is thread-safe.
    """
    return decode_deep(data, rules)[0]


class Decoded(NamedTuple):
    """Pixels uint8 [H, W, C], the range of samples of more than 8 bits, and what is to be said of the image."""

    pixels: Pixels
    depth: Depth = SHALLOW
    remarks: tuple[Remark, ...] = ()


def decode_deep(data: bytes | Path, rules: DecodeRules) -> Decoded:
    """Like `decode`, with what else there is to know."""
    with opened(data, rules) as raster:
        return Decoded(fit(raster, rules), raster.depth, raster.remarks)


@contextlib.contextmanager
def opened(data: bytes | Path, rules: DecodeRules) -> Iterator[Raster | Planes]:
    """The decoded image, as long as the block lasts; it waits until there is memory for it. Raises DecodeError.

    Whatever goes wrong in the block, such as memory that runs out, is a DecodeError as well.
    """
    with contextlib.ExitStack() as stack:
        is_large = False
        if isinstance(data, Path) and _size(data) > SMALL:
            is_large = True
            stack.enter_context(decoding_memory.taken(_estimate(data, rules)))
        content = _content(data)
        stack.enter_context(_opening(content))
        content, scans, has_pages = inspect(content)
        remarks: list[Remark] = ["pages"] if has_pages else []
        image = _opened(content, stack, rules)
        if isinstance(image, ArrayFile):
            needed = refuse_array(image, len(content))
        else:
            needed = memory_needed(image, len(content), rules, scans)
            refuse_large(image, len(content), scans, needed)
        if not is_large and needed > SMALL:
            stack.enter_context(decoding_memory.taken(needed))
        if isinstance(image, ArrayFile):
            yield Planes(image.read(), rules, image.format, tuple(remarks))
            return
        stack.callback(image.close)  # which frees its pixels before the memory is given back
        with turn(image):
            raster = Raster(image, rules)
        if is_other_profile(image.info.get("icc_profile")):
            remarks.append("profile")
        raster.remarks = tuple(remarks)
        yield raster


def _opened(content: bytes, stack: contextlib.ExitStack, rules: DecodeRules) -> ImageFile.ImageFile | ArrayFile:
    """The image in a file, by the reader that can read it: Pillow, as far as it can."""
    if content.startswith(NPY):
        return npy_file(content)
    try:
        image = _open_bytes(content)
    except UnidentifiedImageError:
        if holds_image(content):
            return tiff_file(content)
        raise
    is_wide = _samples(image) > 4 and rules.channels not in (1, 3)  # of which Pillow reads three
    if is_wide or (image.mode == "L" and _tag(image, _SAMPLE_FORMAT) == _SIGNED):  # which Pillow reads as unsigned
        image.close()
        return tiff_file(content)
    return stack.enter_context(image)


def _estimate(path: Path, rules: DecodeRules) -> int:
    """The bytes that decoding a large file takes at its peak, from its header alone."""
    with _stream(path) as stream:
        head = stream.peek(len(NPY))
    if head.startswith(NPY):
        return 6 * _size(path)
    try:
        return _from_header(path, lambda image, size: memory_needed(image, size, rules))
    except DecodeError:
        if head.startswith(TIFF):  # which Pillow may not be able to read
            return MEMORY
        raise


def from_array(pixels: Pixels, rules: DecodeRules) -> Pixels:
    """Apply the same rules to decoded pixels, uint8 [H, W] or [H, W, C]; see `array_raster`."""
    return fit(array_raster(pixels, rules), rules)


def array_raster(pixels: Pixels, rules: DecodeRules) -> Raster | Planes:
    """Decoded pixels, uint8 [H, W] or [H, W, C], as if they had been read from a file.

    Four channels are RGBA, unless the rules ask for four.
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    shaped = pixels.ndim in (2, 3) and 1 <= channels <= MAX_CHANNELS
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise UserError(
            f"an image array must be uint8 [H, W] or [H, W, C] with up to {MAX_CHANNELS} channels, not "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    if channels not in (1, 3, 4) or (channels == 4 and rules.channels == 4):
        return Planes(pixels, rules)
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[:, :, 0]
    return Raster(Image.fromarray(pixels), rules)


def from_image(image: Image.Image, rules: DecodeRules) -> Pixels:
    """Apply the same rules to the current frame of a Pillow image. Raises DecodeError. It is thread-safe."""
    with _loading, _opening(b""):
        return fit(Raster(image, rules), rules)


def read_header(data: bytes | Path) -> Header:
    """Read format, size and channels from the image's header. Raises DecodeError."""
    try:
        return _from_header(data, lambda image, _: _header(image))
    except DecodeError as error:
        content = _content(data)
        with _opening(content):
            if content.startswith(NPY):
                file = npy_file(content)
            elif error.kind == "corrupt" and holds_image(content):
                file = tiff_file(content)
            else:
                raise
        return Header(file.format, file.width, file.height, file.channels)


def _header(image: ImageFile.ImageFile) -> Header:
    if (samples := _samples(image)) > 4:
        return Header("TIFF", image.width, image.height, samples)
    gray = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    return Header(format_of(image), image.width, image.height, 1 if gray else 3)


def _samples(image: ImageFile.ImageFile) -> int:
    """The number of samples of a pixel in a TIFF file, which Pillow reads as RGB where there are more; else 1."""
    return _tag(image, _SAMPLES_PER_PIXEL)


def _tag(image: ImageFile.ImageFile, number: int) -> int:
    """The first number of a tag of a TIFF file; 1, the default of the tags that are read here, where it is missing."""
    found = image.tag_v2.get(number, 1) if isinstance(image, TiffImageFile) else 1
    found = found[0] if isinstance(found, tuple) and found else found
    return found if isinstance(found, int) else 1


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
