"""A loaded image as opaque, upright uint8 pixels, in strips of rows, so that a large one needs no array of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from convsmith.data.config import DecodeRules, Limits
from convsmith.data.faults import DecodeError
from convsmith.data.remarks import Remark
from convsmith.errors import UserError

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.generic]  # [h, W], upright, as the file has them: integers of 16 or 32 bits, or floats

STRIP = 2**18  # pixels of a strip, whose temporary arrays take about 10 MB together

_ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])  # rows become columns
_BACKWARDS = (_UPRIGHT[3], _UPRIGHT[4], _UPRIGHT[7], _UPRIGHT[8])  # the last row, or column, becomes the first row
_TRANSLUCENT = ("P", "PA", "LA", "RGBA", "RGBa")
_BANDS = {2: ("LA",), 4: ("RGBA", "RGBX")}  # modes by the number of their samples, where it is not 1 or 3
_OPAQUE = ("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")


class Depth(NamedTuple):
    """The lowest and the highest sample of a gray image of more than 8 bits, and the value that is white in its type.

    All are NaN for other images.
    """

    low: float
    high: float
    white: float


SHALLOW = Depth(np.nan, np.nan, np.nan)


class Raster:
    """The current frame of an image, decoded. `width` and `height` are those of the upright image.

    All strips together are the image, from top to bottom. `is_deep` tells gray of more than 8 bits. Raises DecodeError
    if the image cannot be shown in 8 bits.
    """

    def __init__(self, image: Image.Image, rules: DecodeRules) -> None:
        tile = getattr(image, "tile", None)  # how the samples are stored in the file; gone once they are loaded
        self._raw_mode = str(tile[0][3]) if tile else ""
        image.load()
        self.format = format_of(image)
        self.remarks: tuple[Remark, ...] = ()  # of the reader of the file
        self._image, self._rules = image, rules
        self._key: Any = image.info.get("transparency")
        self._turn = _UPRIGHT.get(orientation(image))  # after load, in which Pillow turns TIFFs and removes their tag
        self.width, self.height = image.size[::-1] if self._turn in _SIDEWAYS else image.size
        self.is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        if self.is_deep:
            refuse_out_of_range(self.depth, rules)
        elif ";16" in self._raw_mode and rules.range != "full":
            raise DecodeError("unsupported", "data.range is for gray images, but this is 16-bit colour: set it to full")
        elif image.mode not in _TRANSLUCENT + _OPAQUE:
            raise DecodeError("unsupported", f"the colour mode is {image.mode}: convert the file to RGB")

    @cached_property
    def depth(self) -> Depth:
        """The range of the samples, of which one pass over the image is made."""
        if not self.is_deep:
            return SHALLOW
        return depth_of(self.samples(), is_float=self._image.mode == "F")

    def samples(self) -> Iterator[Samples]:
        """The unscaled samples of an image that has a `depth`, strip by strip."""
        for strip in self._strips():
            samples: Samples = np.asarray(strip)
            # Pillow has no mode for unsigned integers of 32 bits.
            yield samples.view(np.uint32) if "I;32N" in self._raw_mode else samples

    def pixels(self, limits: Limits | None = None) -> Iterator[Pixels]:
        """Opaque uint8 [h, W] (gray) or [h, W, 3], strip by strip; `limits` replace the range of the rules."""
        if not self.is_deep:
            return (self._shallow(strip) for strip in self._strips())
        low_high = limits or limits_of(self.depth, self._rules)
        return (self._deep(samples, low_high) for samples in self.samples())

    def whole(self) -> Image.Image:
        """The image in mode L or RGB: the loaded one if nothing has to be done to it, and otherwise a second one."""
        if self._image.mode in ("L", "RGB") and self._key is None and self._turn is None:
            return self._image
        return joined(self.pixels(), self.width, self.height)

    def refuse_other(self, channels: int) -> None:
        """Raise DecodeError for an image that cannot have this number of channels."""
        if channels not in (1, 3) and self._image.mode not in _BANDS.get(channels, ()):
            found = 1 if self.is_deep or self._image.mode in ("1", "L") else 3
            raise DecodeError("unsupported", other_channels(found, channels))

    def bands(self) -> tuple[Image.Image, ...]:
        """The channels of the samples as they are, without compositing, as images in mode L."""
        return (self._image if self._turn is None else self._image.transpose(self._turn)).split()

    def _strips(self) -> Iterator[Image.Image]:
        rows = max(1, STRIP // self.width)
        if rows >= self.height and self._turn is None:
            yield self._image
            return
        width, height = self._image.size
        for top in range(0, self.height, rows):
            bottom = min(top + rows, self.height)
            low, high = (self.height - bottom, self.height - top) if self._turn in _BACKWARDS else (top, bottom)
            strip = self._image.crop((low, 0, high, height) if self._turn in _SIDEWAYS else (0, low, width, high))
            yield strip if self._turn is None else strip.transpose(self._turn)

    def _shallow(self, strip: Image.Image) -> Pixels:
        """A strip of 8 bits per sample, or of colours."""
        mode, key, background = strip.mode, self._key, self._rules.background
        if mode in _TRANSLUCENT:
            rgba = np.asarray(strip.convert("RGBA"))
            return composite(rgba[:, :, :3], rgba[:, :, 3], background)
        if mode in ("1", "L"):
            pixels = np.asarray(strip.convert("L"))
            if key is None:
                return pixels
            # Pillow scales gray of 2 and 4 bits up to 8, but not the key; with 1 bit this depends on its version.
            level = 255 * bool(key) if mode == "1" else key * {"L;2": 85, "L;4": 17}.get(self._raw_mode, 1)
            return composite(pixels, _keyed(pixels != level), background)
        pixels = np.asarray(strip.convert("RGB"))
        if mode == "RGB" and key is not None:
            red, green, blue = (value >> (8 if self._raw_mode == "RGB;16B" else 0) for value in key)
            differs = (pixels[:, :, 0] != red) | (pixels[:, :, 1] != green) | (pixels[:, :, 2] != blue)
            return composite(pixels, _keyed(differs), background)
        return pixels

    def _deep(self, samples: Samples, limits: Limits) -> Pixels:
        pixels = scaled(samples, limits)
        key = self._key
        return pixels if key is None else composite(pixels, _keyed(samples != key), self._rules.background)


def other_channels(found: int, wanted: int) -> str:
    return f"the image has {found} channel{'s' if found > 1 else ''}, but data.channels is {wanted}"


def depth_of(strips: Iterable[Samples], is_float: bool) -> Depth:
    """The range of the samples in all strips; NaN if any of them is NaN."""
    ends = [(float(strip.min()), float(strip.max())) for strip in strips]
    return Depth(float(np.min(ends)), float(np.max(ends)), 1.0 if is_float else 65535.0)


def limits_of(depth: Depth, rules: DecodeRules) -> Limits:
    """The samples that become black and white by the range of the rules."""
    return (0.0, depth.white) if rules.range == "full" else rules.range


def refuse_out_of_range(depth: Depth, rules: DecodeRules) -> None:
    """Raise DecodeError for samples that the rules' range leaves without a meaning."""
    low, high, white = depth
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DecodeError("unsupported", "a float sample is not a finite number: replace it in the file")
    if rules.range == "full" and (low < 0 or high > white):
        raise DecodeError(
            "unsupported",
            f"the {'float' if white == 1 else 'integer'} samples from {low:g} to {high:g} lie outside 0..{white:g}: "
            f"set --data.range to auto, or to the [low, high] that become black and white",
        )


def joined(strips: Iterable[Pixels], width: int, height: int) -> Image.Image:
    """Strips of uint8 [h, width] or [h, width, 3] as an image in mode L or RGB."""
    whole: Image.Image | None = None
    top = 0
    for pixels in strips:
        strip = Image.fromarray(pixels)
        if len(pixels) == height:
            return strip
        if whole is None:
            whole = Image.new(strip.mode, (width, height))
        whole.paste(strip, (0, top))
        top += len(pixels)
    assert whole is not None
    return whole


def format_of(image: Image.Image) -> str:
    """The name of the file's format; '' for an image that was not read from a file."""
    return "JPEG" if image.format == "MPO" else image.format or ""  # MPO is a JPEG with further pictures


def scaled(samples: Samples, limits: Limits) -> Pixels:
    """Scale samples of any type from `limits` to 0..255, rounded and clipped."""
    share = samples.astype(np.float64)
    share -= limits[0]
    share /= limits[1] - limits[0]
    np.clip(share, 0, 1, out=share)
    share *= 255
    return np.rint(share, out=share).astype(np.uint8)


def composite(pixels: Pixels, alpha: Pixels, background: str) -> Pixels:
    """Composite `pixels` [h, W] or [h, W, 3] over `background` by `alpha` [h, W] -> [h, W, 3], rounded."""
    behind = background_rgb(background)
    share = alpha.astype(np.uint16)
    rest = 255 - share
    result = np.empty((*alpha.shape, 3), dtype=np.uint8)
    for channel in range(3):
        front = pixels if pixels.ndim == 2 else pixels[:, :, channel]
        # At most 255 * 255 + 127, which uint16 can hold.
        result[:, :, channel] = (front * share + np.uint16(behind[channel]) * rest + np.uint16(127)) // 255
    return result


def background_rgb(background: str) -> tuple[int, int, int]:
    """Red, green and blue in 0..255 of a CSS colour name or #rrggbb. Raises UserError."""
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise UserError(f"data.background '{background}' is not a colour: give a CSS name (white) or #rrggbb") from None
    return red, green, blue


def _keyed(opaque: npt.NDArray[np.bool_]) -> Pixels:
    return np.where(opaque, np.uint8(255), np.uint8(0))


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF can raise any error; the picture itself is intact
        return 1
