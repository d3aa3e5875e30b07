"""An image as an array of any number of channels, from .npy and from TIFF files that Pillow cannot read.

Arrays of Python's and files have the same rules as `Raster`, which is the same for Pillow's images; but no channel is
transparency. Nothing here is ever unpickled.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from convsmith.data.config import MAX_CHANNELS, DecodeRules, Limits
from convsmith.data.faults import DecodeError
from convsmith.data.raster import (
    SHALLOW,
    STRIP,
    Depth,
    Pixels,
    Samples,
    depth_of,
    joined,
    limits_of,
    other_channels,
    refuse_out_of_range,
    scaled,
)
from convsmith.data.remarks import Remark

NPY = b"\x93NUMPY"
_DEFLATE, _PLAIN = (8, 32946), 1  # TIFF's compressions
_HORIZONTAL = 2  # TIFF 6.0, 14: the predictor that needs no further library
_SEPARATE = 2  # TIFF 6.0, PlanarConfiguration: one plane after the other


class Planes:
    """Samples [H, W, C] of one type. Raises DecodeError if they cannot be shown in 8 bits."""

    def __init__(
        self, samples: npt.NDArray[Any], rules: DecodeRules, format: str = "", remarks: tuple[Remark, ...] = ()
    ) -> None:
        self.height, self.width, self.channels = samples.shape
        self.format, self.remarks = format, remarks
        self._samples, self._rules = samples, rules
        self.is_deep = samples.dtype != np.uint8
        if self.is_deep:
            refuse_out_of_range(self.depth, rules)

    @cached_property
    def depth(self) -> Depth:
        """The range of the samples of all channels together."""
        if not self.is_deep:
            return SHALLOW
        return depth_of(self.samples(), is_float=self._samples.dtype.kind == "f")

    def samples(self) -> Iterator[Samples]:
        """The unscaled samples, strip by strip."""
        rows = max(1, STRIP // (self.width * self.channels))
        for top in range(0, self.height, rows):
            yield self._samples[top : top + rows]

    def pixels(self, limits: Limits | None = None) -> Iterator[Pixels]:
        """uint8 [h, W] of a single channel, else [h, W, C], strip by strip; `limits` replace the range of the rules."""
        low_high = limits or limits_of(self.depth, self._rules)
        for samples in self.samples():
            pixels = scaled(samples, low_high) if self.is_deep else samples.astype(np.uint8)
            yield pixels[:, :, 0] if self.channels == 1 else pixels

    def refuse_other(self, channels: int) -> None:
        """Raise DecodeError for an image that cannot have this number of channels."""
        if channels != self.channels and {channels, self.channels} != {1, 3}:
            reason = other_channels(self.channels, channels)
            raise DecodeError("unsupported", f"{reason}: set it to {self.channels}, or leave the image out")

    def whole(self) -> Image.Image:
        """An image of one or three channels in mode L or RGB."""
        return joined(self.pixels(), self.width, self.height)

    def bands(self) -> tuple[Image.Image, ...]:
        """Its channels, each in mode L."""
        pixels = np.concatenate([strip.reshape(len(strip), self.width, -1) for strip in self.pixels()])
        return tuple(Image.fromarray(np.ascontiguousarray(pixels[:, :, band])) for band in range(self.channels))


class ArrayFile(NamedTuple):
    """What the header of a file says of its samples, and how to `read` them: [H, W, C]."""

    format: str
    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    read: Callable[[], npt.NDArray[Any]]


def npy_file(content: bytes) -> ArrayFile:
    """A .npy file (NumPy's format, NEP 1) of an image [H, W] or [H, W, C]; its first 64 KiB will do for the header."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_head: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_columns, dtype = read_head(stream)
    if dtype.kind not in "uif" or dtype.itemsize > 8 or is_columns or len(shape) not in (2, 3):
        order = " in Fortran's order" if is_columns else ""
        raise DecodeError(
            "unsupported",
            f"the array is {dtype} {list(shape)}{order}: save it as [H, W] or [H, W, C], of uint8, uint16 or floats",
        )
    height, width, channels = (*shape, 1)[:3]
    count, start = height * width * channels, stream.tell()

    def read() -> npt.NDArray[Any]:
        if len(content) - start < count * dtype.itemsize:
            raise DecodeError("truncated", f"the array should have {list(shape)} numbers of {dtype}")
        return np.frombuffer(content, dtype, count, start).reshape(height, width, channels)

    return _checked(ArrayFile("NPY", height, width, channels, dtype, read))


def tiff_file(content: bytes) -> ArrayFile:
    """The first page of a TIFF file that Pillow cannot read: several channels, signed or float ones, by tifffile."""
    page = _first_page(content)
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
    if page.imagedepth != 1 or page.dtype is None or page.dtype.kind not in "uif":
        raise DecodeError("unsupported", f"samples of the type {page.dtype}: save them as uint8, uint16 or floats")
    if page.compression not in (_PLAIN, *_DEFLATE) or page.predictor not in (1, _HORIZONTAL):
        raise DecodeError(
            "unsupported",
            f"its compression is {page.compression.name.lower()}: save it without one, or with deflate "
            "(gdal_translate -co COMPRESS=DEFLATE IN OUT)",
        )

    def read() -> npt.NDArray[Any]:
        _refuse_swollen(page, content)
        samples = page.asarray(maxworkers=1)
        if page.planarconfig == _SEPARATE and channels > 1:
            samples = np.moveaxis(samples.reshape(channels, height, width), 0, 2)
        return np.asarray(samples.reshape(height, width, channels))

    return _checked(ArrayFile("TIFF", height, width, channels, np.dtype(page.dtype), read))


def _checked(file: ArrayFile) -> ArrayFile:
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise DecodeError(
            "unsupported",
            f"there are {file.channels} channels, and at most {MAX_CHANNELS} can be used: an array is [H, W, C], "
            "channels last; leave some out",
        )
    if not file.height * file.width:
        raise DecodeError("corrupt", f"{file.height} x {file.width} pixels")
    return file


def _first_page(content: bytes) -> Any:
    try:
        import tifffile
    except ImportError:
        reason = "a TIFF of such samples needs a reader: pip install 'convsmith[tiff]', or save it as .npy"
        raise DecodeError("unsupported", reason) from None
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it raises what matters
    return tifffile.TiffFile(io.BytesIO(content)).pages[0]


def _refuse_swollen(page: Any, content: bytes) -> None:
    """Raise DecodeError where strips or tiles overlap, or hold more than their share of the image."""
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    number = int(np.prod(page.chunked))
    if len(segments) != number:
        raise DecodeError("corrupt", f"{len(segments)} strips or tiles instead of {number}")
    if sum(size for _, size in segments) > 2 * len(content) + 2**20:
        raise DecodeError("bomb", "the strips of a TIFF hold more than the image or the file")
    if page.compression not in _DEFLATE:
        return
    most = int(np.prod(page.chunks)) * page.dtype.itemsize
    if number * most > 4 * page.imagelength * page.imagewidth * page.samplesperpixel * page.dtype.itemsize + 2**20:
        raise DecodeError("bomb", "the strips of a TIFF hold more than the image or the file")
    for start, size in segments:
        inflated = zlib.decompressobj()
        inflated.decompress(content[start : start + size], most)
        if inflated.unconsumed_tail:
            raise DecodeError("bomb", f"a strip of a TIFF holds more than its {most:,} bytes")
