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

An image that cannot be decoded raises `DecodeError`. Damage that the format cannot reveal (flipped bits inside a
JPEG's scan) goes unnoticed.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageFile, UnidentifiedImageError

from convsmith.data.config import DecodeRules, Interpolation, Limits, Resize
from convsmith.data.quiet import quiet
from convsmith.errors import UserError
from convsmith.files import open_file, read_bytes

Pixels = npt.NDArray[np.uint8]
Kind = Literal["empty", "truncated", "corrupt", "not-an-image", "bomb", "unsupported", "unreadable"]

MAX_PIXELS = 2**27  # 134 megapixels, which is more than cameras take, but fits into a small machine's memory
MAX_BYTES = 2**30

# Formats that have a signature and that Pillow decodes by itself. EPS is left out because it runs Ghostscript.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)

_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
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


class DecodeError(Exception):
    """An image cannot be decoded; `kind` is a category for counts, `message` is for people."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind: Kind = kind
        self.message = message


Samples = npt.NDArray[np.generic]  # [H, W], upright, as the file has them: integers of 16 or 32 bits, or floats


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


def decode_deep(data: bytes | Path, rules: DecodeRules) -> tuple[Pixels, Samples | None]:
    """Like `decode`, with the unscaled samples of a gray image of more than 8 bits as the second value."""
    content = _content(data)
    with quiet, _decode_errors(content):
        if content.startswith(_PNG):
            _verify_png(content)
        with _open(io.BytesIO(content)) as image:
            pixels, samples = _to_array(image, rules)
    return _finish(pixels, rules), samples


def from_array(pixels: Pixels, rules: DecodeRules) -> Pixels:
    """Apply the same rules to decoded pixels, uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels (RGBA)."""
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise UserError(
            f"an image array must be uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels, not "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    elif pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = _composite(pixels[:, :, :3], pixels[:, :, 3], rules.background)
    return _finish(pixels, rules)


def from_image(image: Image.Image, rules: DecodeRules) -> Pixels:
    """Apply the same rules to the current frame of a Pillow image. Raises DecodeError."""
    with quiet, _decode_errors(b""):
        pixels, _ = _to_array(image, rules)
    return _finish(pixels, rules)


def read_header(data: bytes | Path) -> Header:
    """Read format, size and channels from the image's header. Raises DecodeError."""
    try:
        stream = open_file(data) if isinstance(data, Path) else io.BytesIO(data)
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from error
    with stream:
        start = stream.read(64)
        if not start:
            raise DecodeError("empty", "zero bytes")
        with quiet, _decode_errors(start), _open(stream) as image:
            gray = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
            # MPO is a JPEG with further pictures after the first.
            name = "JPEG" if image.format == "MPO" else str(image.format)
            return Header(name, image.width, image.height, 1 if gray else 3)


def resize_square(
    pixels: Pixels,
    size: int,
    resize: Resize,
    interpolation: Interpolation,
    background: str = "white",
    crop: float = 1.0,
) -> Pixels:
    """Resize uint8 [H, W] or [H, W, 3] to [size, size] or [size, size, 3].

    `stretch` keeps all pixels but not the aspect ratio; `pad` keeps both and adds bars in `background`;
    `crop` takes the centre square, whose side is the fraction `crop` of the shorter side. Downscaling is antialiased
    (Pillow's convolution resampling).
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size, size) and crop == 1:
        return pixels
    image = Image.fromarray(pixels)
    if resize == "stretch":
        return np.asarray(image.resize((size, size), _FILTERS[interpolation]))
    if resize == "crop":
        side = max(1, round(crop * min(width, height)))
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((size, size), _FILTERS[interpolation], box=box))
    scale = size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", (size, size), background_rgb(background)).convert(image.mode)
    canvas.paste(image.resize(inner, _FILTERS[interpolation]), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(canvas)


def background_rgb(background: str) -> tuple[int, int, int]:
    """Red, green and blue in 0..255 of a CSS colour name or #rrggbb. Raises UserError."""
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise UserError(f"data.background '{background}' is not a colour: give a CSS name (white) or #rrggbb") from None
    return red, green, blue


def _content(data: bytes | Path) -> bytes:
    try:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if size > MAX_BYTES:
            raise DecodeError("bomb", f"{size:,} bytes, which is more than {MAX_BYTES:,}")
        content = read_bytes(data) if isinstance(data, Path) else data
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from error
    if not content:
        raise DecodeError("empty", "zero bytes")
    return content


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    image = Image.open(stream, formats=tuple(SUFFIXES))
    assert isinstance(image, ImageFile.ImageFile)
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError("bomb", f"{image.width} x {image.height} pixels, which is more than {MAX_PIXELS:,}")
    return image


def _verify_png(content: bytes) -> None:
    """Check lengths and checksums of a PNG's chunks (PNG specification, 5.3), of which Pillow checks only some."""
    view = memoryview(content)
    at = 8
    kind = b""
    while kind != b"IEND":
        length = int.from_bytes(view[at : at + 4], "big")
        kind = bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(view):
            raise DecodeError("truncated", f"the file ends within the chunk at byte {at:,}")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DecodeError("corrupt", f"the checksum of chunk {kind!r} is wrong")
        at = end + 4


def _to_array(image: Image.Image, rules: DecodeRules) -> tuple[Pixels, Samples | None]:
    """Decode the current frame: opaque, upright uint8 [H, W] (gray) or [H, W, 3], and the samples of deep gray."""
    tile = getattr(image, "tile", None)  # how the samples are stored in the file; gone once they are loaded
    raw_mode = str(tile[0][3]) if tile else ""
    image.load()
    key = image.info.get("transparency")
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)  # only after load, in which Pillow itself turns TIFFs and removes their tag

    background = rules.background
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        samples: Samples = np.asarray(image)
        if "I;32N" in raw_mode:  # unsigned integers, for which Pillow has no mode
            samples = samples.view(np.uint32)
        pixels = _to_8_bits(samples, rules.range)
        return pixels if key is None else _composite(pixels, _keyed(samples != key), background), samples
    if ";16" in raw_mode and rules.range != "full":
        raise DecodeError("unsupported", "data.range is for gray images, but this is 16-bit colour: set it to full")
    return _shallow(image, raw_mode, key, background), None


def _shallow(image: Image.Image, raw_mode: str, key: Any, background: str) -> Pixels:
    """Decode an upright image of 8 bits per sample, or of colours: opaque uint8 [H, W] (gray) or [H, W, 3]."""
    if image.mode in ("P", "PA", "LA", "RGBA", "RGBa"):
        rgba = np.asarray(image.convert("RGBA"))
        return _composite(rgba[:, :, :3], rgba[:, :, 3], background)
    if image.mode in ("1", "L"):
        pixels = np.asarray(image.convert("L"))
        if key is not None:
            # Pillow scales gray of 2 and 4 bits up to 8, but not the key; with 1 bit this depends on its version.
            level = 255 * bool(key) if image.mode == "1" else key * {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
            return _composite(pixels, _keyed(pixels != level), background)
        return pixels
    if image.mode not in ("RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise DecodeError("unsupported", f"the colour mode is {image.mode}: convert the file to RGB")
    pixels = np.asarray(image.convert("RGB"))
    if image.mode == "RGB" and key is not None:
        colour = np.array(key) >> (8 if raw_mode == "RGB;16B" else 0)
        return _composite(pixels, _keyed((pixels != colour).any(axis=2)), background)
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF can raise any error; the picture itself is intact
        return 1


def _to_8_bits(samples: Samples, limits: Literal["full"] | Limits) -> Pixels:
    """Map `limits` to 0..255, clipping values outside them; 'full' means the range of the samples' type."""
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise DecodeError("unsupported", "a float sample is not a finite number: replace it in the file")
    if limits == "full":
        limits = full_range(samples)
        low, high = samples.min(), samples.max()
        if low < limits[0] or high > limits[1]:
            kind = "float" if samples.dtype.kind == "f" else "integer"
            raise DecodeError(
                "unsupported",
                f"the {kind} samples from {low:g} to {high:g} lie outside {limits[0]:g}..{limits[1]:g}: set data.range "
                f"to auto, or to the [low, high] that become black and white",
            )
    return scaled(samples, limits)


def scaled(samples: Samples, limits: Limits) -> Pixels:
    """Scale samples of any type from `limits` to 0..255, rounded and clipped."""
    share = (samples.astype(np.float64) - limits[0]) / (limits[1] - limits[0])
    pixels: Pixels = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
    return pixels


def full_range(samples: Samples) -> Limits:
    """The values that are black and white by default: the range of 16 bits for integers, [0, 1] for floats."""
    return (0.0, 1.0) if samples.dtype.kind == "f" else (0.0, 65535.0)


def _keyed(opaque: npt.NDArray[np.bool_]) -> Pixels:
    return np.where(opaque, np.uint8(255), np.uint8(0))


def _composite(pixels: Pixels, alpha: Pixels, background: str) -> Pixels:
    """Composite `pixels` [H, W] or [H, W, 3] over `background` by `alpha` [H, W] -> [H, W, 3], rounded."""
    front = pixels.astype(np.int32)
    if front.ndim == 2:
        front = front[:, :, None]
    weight = alpha.astype(np.int32)[:, :, None]
    behind = np.array(background_rgb(background), dtype=np.int32)
    return ((front * weight + behind * (255 - weight) + 127) // 255).astype(np.uint8)


def _finish(pixels: Pixels, rules: DecodeRules) -> Pixels:
    """Convert the channels, then resize: uint8 [H, W, C]."""
    if rules.channels == 1 and pixels.ndim == 3:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if rules.working_size is not None:
        pixels = resize_square(
            np.ascontiguousarray(pixels),
            rules.working_size,
            rules.resize,
            rules.interpolation,
            rules.background,
            rules.crop,
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], rules.channels, axis=2)
    return np.ascontiguousarray(pixels)


@contextlib.contextmanager
def _decode_errors(content: bytes) -> Iterator[None]:
    try:
        yield
    except (DecodeError, UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("bomb", str(error)) from error
    except UnidentifiedImageError as error:
        # The tag of the first chunk reveals a PNG whose signature was mangled in transfer.
        if content.startswith(_SIGNATURES) or content[12:20].find(b"IHDR") >= 0:
            raise DecodeError("corrupt", "the header is damaged") from error
        raise DecodeError("not-an-image", f"the format is none of {', '.join(SUFFIXES)}") from error
    except Exception as error:  # the parsers of Pillow's plugins can raise any error
        text = str(error) or type(error).__name__
        cut_short = isinstance(error, EOFError) or "truncated" in text.lower() or "chunk b''" in text
        raise DecodeError("truncated" if cut_short else "corrupt", text) from error
