"""Damaged, hostile and odd images of our own making, the same at each call: `small` for tests, `large` for benchmarks.

`benchmarks/hostile_images.py` measures all of them. None of them is stored in the repository.
"""

from __future__ import annotations

import base64
import io
import lzma
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

Make = Callable[[], bytes]
#: 64 x 48 pixels, red on the left and green on the right, to be turned by 90 degrees: what Pillow cannot write.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAIAAAgAAAAACbAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAKxtZGF0AAAAfCgBrwngOSMkv//5/7//9qF5D9pbVwTj+O73/5aB"
    "//ykb1EY1iyrw31lzFkGKMUsVYjHMYd8Z0rxRWNIJZq1VajPuSUvXvQvoIOOSbbaJcv43lyQuSELbf6dHmd8PewdkiErVQ8E9SIw"
    "bXudmyS0ckPv1aE+8Blzk94evHAAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA="
)
PNG_START = b"\x89PNG\r\n\x1a\n"
SIDE = 11_585  # squared it is 2**27, rounded down
MAKES: dict[str, tuple[str, str, dict[str, Any]]] = {  # by name: Pillow's mode and format, and options
    "gray.png": ("L", "PNG", {}),
    "alpha.png": ("RGBA", "PNG", {}),
    "gray-alpha.png": ("LA", "PNG", {}),
    "palette.png": ("P", "PNG", {"transparency": 3}),
    "bits.png": ("1", "PNG", {}),
    "deep.png": ("I;16", "PNG", {}),
    "colour.jpg": ("RGB", "JPEG", {}),
    "gray.jpg": ("L", "JPEG", {}),
    "ink.jpg": ("CMYK", "JPEG", {}),
    "progressive.jpg": ("RGB", "JPEG", {"progressive": True}),
    "restarts.jpg": ("RGB", "JPEG", {"restart_marker_blocks": 1}),
    "palette.gif": ("P", "GIF", {}),
    "colour.bmp": ("RGB", "BMP", {}),
    "bits.bmp": ("1", "BMP", {}),
    "lossy.webp": ("RGB", "WEBP", {}),
    "lossless.webp": ("RGBA", "WEBP", {"lossless": True}),
    "colour.ppm": ("RGB", "PPM", {}),
    "gray.pgm": ("L", "PPM", {}),
    "colour.jp2": ("RGB", "JPEG2000", {}),
    "raw.tif": ("RGB", "TIFF", {}),
    "float.tif": ("F", "TIFF", {}),
    "deep.tif": ("I;16", "TIFF", {"compression": "tiff_lzw"}),
    "ink.tif": ("CMYK", "TIFF", {"compression": "tiff_deflate"}),
    "lab.tif": ("LAB", "TIFF", {}),
    "fax.tif": ("1", "TIFF", {"compression": "group4"}),
    "jpeg.tif": ("RGB", "TIFF", {"compression": "jpeg"}),
    "turned.tif": ("RGBA", "TIFF", {"compression": "packbits", "tiffinfo": {274: 6}}),
    "colour.avif": ("RGB", "AVIF", {"speed": 10}),
    "alpha.avif": ("RGBA", "AVIF", {"speed": 10}),
}


def small() -> Iterator[tuple[str, bytes]]:
    """Names and contents: each whole image, 16 ways of damaging it, and tricks that cost their readers little."""
    rng = random.Random(0)
    for name, (mode, form, options) in MAKES.items():
        whole = encoded(noisy(mode, 24), form, **options)
        yield name, whole
        for number in range(8):
            at = rng.randrange(2, len(whole))
            yield f"flipped-{number}-{name}", whole[:at] + bytes([whole[at] ^ 1 << number]) + whole[at + 1 :]
        for number in range(4):
            yield f"cut-{number}-{name}", whole[: len(whole) * (number + 1) // 5]
        yield f"swollen-{name}", whole + bytes(1000)
        yield f"zeros-{name}", whole[: len(whole) // 3] + bytes(len(whole) - len(whole) // 3)
        yield f"ones-{name}", whole[: len(whole) // 2] + b"\xff" * (len(whole) - len(whole) // 2)
        yield f"twice-{name}", whole[: len(whole) // 2] + whole
    yield from ((name, make()) for name, make in TRICKS.items())


def noisy(mode: str, side: int, seed: int = 0) -> Image.Image:
    """Random pixels with a little structure."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 4), dtype=np.uint8)
    if mode == "F":
        return Image.fromarray(values[:, :, 0].astype(np.float32) / 255)
    if mode == "I;16":
        return Image.fromarray(values[:, :, 0].astype(np.uint16) * 257)
    if mode in ("P", "1", "L", "LAB"):
        image = Image.fromarray(values[:, :, :3])
        return (
            image.quantize(16) if mode == "P" else Image.new(mode, image.size) if mode == "LAB" else image.convert(mode)
        )
    return Image.fromarray(values, "RGBA" if mode != "CMYK" else mode).convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def flat(mode: str, side: int, form: str, colour: Any, **options: Any) -> bytes:
    if form == "PNG":
        options = {"compress_level": 1, **options}
    return encoded(Image.new(mode, (side, side), colour), form, **options)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, *before: bytes, colour: int = 0, rows: bytes | None = None, after: bytes = b""
) -> bytes:
    """A PNG of 8 bits with chunks before and after its pixels, which are black where `rows` are not given."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    rows = bytes((1 + width * channels) * height) if rows is None else rows
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return PNG_START + header + b"".join(before) + data + after + chunk(b"IEND", b"")


def scans(side: int, number: int, **options: Any) -> bytes:
    """A progressive JPEG with its last scan repeated: 16 bytes for all of the pixels."""
    whole = flat("RGB", side, "JPEG", (90, 120, 40), progressive=True, subsampling=0, **options)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * number + b"\xff\xd9"


def exif(*entries: tuple[int, int, int, int], body: bytes = b"") -> bytes:
    """A TIFF's header with one directory of (tag, type, count, value or offset)."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + body


def tiff(width: int, height: int, data: bytes, compression: int = 1, rows: int | None = None, strips: int = 1) -> bytes:
    """A gray TIFF whose strips all lie at one place, of which each takes all of the data."""
    start = 8 + 2 + 12 * 9 + 4
    many = strips > 1
    places = struct.pack("<I", start) * strips
    lengths = struct.pack("<I", len(data)) * strips
    table = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, strips, start + len(data) if many else start),
        (277, 3, 1, 1),
        (278, 4, 1, rows or height),
        (279, 4, strips, start + len(data) + len(places) if many else len(data)),
    ]
    return exif(*table, body=data + (places + lengths if many else b""))


def array(samples: np.ndarray) -> bytes:
    """A .npy file."""
    stream = io.BytesIO()
    np.save(stream, samples)
    return stream.getvalue()


def bmp_runs(width: int, height: int, body: bytes) -> bytes:
    """A BMP of 8 bits with run lengths."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + palette + body


def gif_comments(number: int) -> bytes:
    whole = flat("P", 8, "GIF", 1)
    start = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    return whole[:start] + b"\x21\xfe\x01x\x00" * number + whole[start:]


def jpeg_with(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + flat("RGB", 16, "JPEG", 0)[2:]


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def _no_blocks(number: int) -> bytes:
    """Deflated data that begin with empty blocks: nothing comes out for a long time."""
    return b"\x78\x01" + b"\0\0\0\xff\xff" * number + zlib.compress(bytes(64))[2:]


_LONG = ((b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0"), (b"iCCP", b"x\0\0"))
_ZEROS = zlib.compress(bytes(2**20))
_TAGS = exif(*((1000 + number, 1, 2**14, 8) for number in range(4000)), body=bytes(2**14))
_CIRCLE = exif((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8), (274, 3, 1, 6))

#: What takes long, or much memory, if it is not refused or bounded, at a size that is cheap to make.
TRICKS: dict[str, Make] = {
    "empty.png": lambda: b"",
    "text.jpg": lambda: b"no picture " * 99,
    "postscript.png": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "huge-header.png": lambda: png(2**31 - 1, 2**31 - 1, rows=b""),
    "one-wide.png": lambda: png(1, 2**27, rows=b""),
    "one-high.png": lambda: png(2**27, 1, rows=b""),
    "no-width.png": lambda: png(0, 5, rows=b""),
    "no-pixels.png": lambda: png(5, 5, rows=b""),
    "more-pixels.png": lambda: png(5, 5, rows=bytes(10**6)),
    "many-chunks.png": lambda: png(4, 4, chunk(b"teSt", b"") * 140_000),
    "profiles.png": lambda: png(4, 4, chunk(b"iCCP", b"x\0\0" + _ZEROS) * 300),
    "texts.png": lambda: png(4, 4, chunk(b"zTXt", b"\0\0" + _ZEROS) * 300),
    "long-text.png": lambda: png(4, 4, *(chunk(kind, body + zlib.compress(bytes(2**21))) for kind, body in _LONG)),
    "long-plain-text.png": lambda: png(4, 4, chunk(b"tEXt", b"workflow\0" + b"x" * 2**21)),
    "late-key.png": lambda: png(4, 4, colour=2, after=chunk(b"tRNS", bytes(6))),
    "late-exif.png": lambda: png(4, 9, after=chunk(b"eXIf", exif((274, 3, 1, 6)))),
    "exif-tags.png": lambda: png(4, 4, chunk(b"eXIf", _TAGS)),
    "exif-circle.png": lambda: png(4, 4, chunk(b"eXIf", _CIRCLE)),
    "exif-numbers.png": lambda: png(4, 4, chunk(b"eXIf", exif((274, 3, 2**20, 26), body=bytes(2**21)))),
    "exif-chunks.png": lambda: png(4, 4, chunk(b"eXIf", exif()) * 300),
    "late-numbers.png": lambda: png(4, 4, after=chunk(b"eXIf", exif((274, 3, 2**20, 26), body=bytes(2**21)))),
    "text-numbers.png": lambda: png(4, 4, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\n" + b"0" * 2**20)),
    "scans.jpg": lambda: scans(64, 40_000),
    "some-scans.jpg": lambda: scans(64, 200),
    "exif-parts.jpg": lambda: jpeg_with(*[segment(0xE1, b"Exif\0\0" + _TAGS[:65_000])] * 40),
    "comments.jpg": lambda: jpeg_with(segment(0xFE, b"") * 20_000),
    "thumbnail.jpg": lambda: jpeg_with(segment(0xE2, b"\xff\xda" * 1000)),
    "trailer.jpg": lambda: flat("RGB", 16, "JPEG", 0) + b"\xff\xda" * 10_000,
    "no-scan.jpg": lambda: flat("RGB", 16, "JPEG", 0).partition(b"\xff\xda")[0],
    "fill-bytes.jpg": lambda: jpeg_with(b"\xff" * 5000),
    "tall.jpg": lambda: flat("L", 8, "JPEG", 0).replace(struct.pack(">HH", 8, 8), struct.pack(">HH", 65_500, 8)),
    "comments.gif": lambda: gif_comments(200_000),
    "large-screen.gif": lambda: flat("P", 8, "GIF", 1)[:6] + b"\xff\xff\xff\xff" + flat("P", 8, "GIF", 1)[10:],
    "tags.tif": lambda: _TAGS,
    "circle.tif": lambda: _CIRCLE,
    "numbers.tif": lambda: exif((256, 4, 600_000, 26), body=bytes(2_400_000)),
    "strips.tif": lambda: tiff(2000, 2000, bytes(2000), rows=1, strips=200_000),
    "same-strips.tif": lambda: tiff(1000, 1001, bytes(10**6), rows=1000, strips=5000),
    "empty-blocks.tif": lambda: tiff(8, 4000, _no_blocks(20_000), compression=8, rows=1, strips=4000),
    "comments.ppm": lambda: b"P3 9 9 255\n" + b"#\n" * 100_000 + b"1 " * 243,
    "long-token.ppm": lambda: b"P3 9 9 255\n" + b"1" * 10**6,
    "maximum.pgm": lambda: b"P5 1500 1500 4095\n" + bytes(100),
    "runs.bmp": lambda: bmp_runs(64, 64, b"\x40\x07\0\0" * 64 + b"\0\1"),
    "line-ends.bmp": lambda: bmp_runs(5000, 5000, b"\0\0" * 5000),
    "double.tif": lambda: exif(
        (256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 64), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 134),
        (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 8), (339, 3, 1, 3), body=bytes(8),
    ),
}  # fmt: skip


def large() -> dict[str, Make]:
    """What is at a limit, or beyond one, and takes seconds or hundreds of megabytes to make."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def smooth(side: int) -> Image.Image:
        return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)

    turned = Image.Exif()
    turned[274] = 6
    return {
        "alpha-134.png": lambda: flat("RGBA", SIDE, "PNG", (9, 9, 9, 128)),
        "alpha-110.png": lambda: flat("RGBA", 10_500, "PNG", (9, 9, 9, 128)),
        "gray-alpha-110.png": lambda: flat("LA", 10_500, "PNG", (9, 128)),
        "key-110.png": lambda: flat("RGB", 10_500, "PNG", (9, 9, 9), transparency=(1, 2, 3)),
        "deep-134.png": lambda: flat("I;16", SIDE, "PNG", 300),
        "palette-134.png": lambda: flat("P", SIDE, "PNG", 3, transparency=3),
        "tall.png": lambda: png(1024, 65_535),
        "flat-134.jpg": lambda: flat("RGB", SIDE, "JPEG", (9, 9, 9)),
        "photo-100.jpg": lambda: encoded(smooth(10_000), "JPEG", quality=95),
        "photo-100-turned.jpg": lambda: encoded(smooth(10_000), "JPEG", quality=95, exif=turned),
        "photo-100-progressive-turned.jpg": lambda: encoded(
            smooth(10_000), "JPEG", quality=95, progressive=True, exif=turned
        ),
        "photo-90-progressive-full.jpg": lambda: encoded(
            smooth(9500), "JPEG", quality=95, progressive=True, subsampling=0
        ),
        "ink-100.jpg": lambda: encoded(smooth(10_000).convert("CMYK"), "JPEG", quality=90),
        "noise-67.jpg": lambda: encoded(noisy("RGB", 8192), "JPEG", quality=95, subsampling=0),
        "scans-16.jpg": lambda: scans(4096, 40_000),
        "scans-most-16.jpg": lambda: scans(4096, 110),
        "scans-most-90.jpg": lambda: scans(9500, 12),
        "palette-134.gif": lambda: flat("P", SIDE, "GIF", 3),
        "bits-134.bmp": lambda: flat("1", SIDE, "BMP", 1),
        "runs-16.bmp": lambda: bmp_runs(4096, 4096, b"\x01\x07" * 2_000_000),
        "line-ends-16.bmp": lambda: bmp_runs(4096, 4096, b"\x01\x07\0\0" * 4096),
        "lossy-50.webp": lambda: encoded(smooth(7000), "WEBP", quality=90, method=0),
        "lossless-50.webp": lambda: flat("RGBA", 7000, "WEBP", (1, 2, 3, 4), lossless=True, quality=0, method=0),
        "lossless-62.webp": lambda: flat("RGBA", 7900, "WEBP", (1, 2, 3, 4), lossless=True, quality=0, method=0),
        "flat-16.jp2": lambda: flat("RGBA", 4096, "JPEG2000", (1, 2, 3, 4)),
        "noise-3.jp2": lambda: encoded(noisy("RGB", 1800), "JPEG2000"),
        "tiles-16.jp2": lambda: flat("RGB", 4096, "JPEG2000", (1, 2, 3), tile_size=(64, 64), num_resolutions=1),
        "float-110.tif": lambda: flat("F", 10_500, "TIFF", 0.5, compression="tiff_lzw"),
        "integers-110.tif": lambda: flat("I", 10_500, "TIFF", 500, compression="tiff_lzw"),
        "turned-90.tif": lambda: flat("RGB", 9500, "TIFF", (1, 2, 3), compression="tiff_lzw", tiffinfo={274: 6}),
        "raw-90.tif": lambda: flat("RGB", 9500, "TIFF", (1, 2, 3)),
        "fax-134.tif": lambda: flat("1", SIDE, "TIFF", 1, compression="group4"),
        "one-strip-90.tif": lambda: tiff(9500, 9500, zlib.compress(bytes(9500 * 9500)), compression=8),
        "lzma-noise-16.tif": lambda: tiff(
            4096, 4096, lzma.compress(noisy("L", 4096).tobytes(), preset=0), compression=34_925
        ),
        "empty-blocks.tif": lambda: tiff(8, 65_000, _no_blocks(400_000), compression=8, rows=1, strips=65_000),
        "flat-48.avif": lambda: flat("RGB", 6928, "AVIF", (9, 90, 200), speed=10),
        "noise-16.avif": lambda: encoded(noisy("RGB", 4000), "AVIF", speed=10, quality=75),
        "deep-67.npy": lambda: array(np.full((8192, 8192), 300, np.uint16)),
        "floats-67.npy": lambda: array(np.full((2048, 2048, 16), 0.5, np.float32)),
        "ascii-1.ppm": lambda: b"P3 1180 1180 255\n" + b"1 " * (1180 * 1180 * 3),
        "maximum-2.ppm": lambda: b"P6 1440 1440 100\n" + bytes(1440 * 1440 * 3),
        "maximum-2.pgm": lambda: b"P5 1440 1440 4095\n" + bytes(1440 * 1440 * 2),
    }
