"""What decoding may take: the size of an image and of its file, and the memory that all threads share.

No file within these limits takes more than 5 s on one core, not even in `data check`, and all threads together need
less than 1 GiB beside what the process has already; `benchmarks/hostile_images.py` measures both. What exceeds a limit
has the verdict bomb.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from PIL import ImageFile

from convsmith.contracts import hw
from convsmith.data.config import DecodeRules
from convsmith.data.faults import DecodeError
from convsmith.data.planes import ArrayFile
from convsmith.data.raster import STRIP, orientation
from convsmith.runtime import return_freed_memory

MAX_PIXELS = 2**27  # 134 megapixels, which is more than cameras take
MAX_SAMPLES = 2**26  # of an array of several channels, which takes longer than an image of Pillow's
MAX_SIDE = 2**16  # the longest that JPEG has; resizing keeps a row of the result for each row of the image
MAX_BYTES = 2**29
MAX_READS = 2**19  # parts that Pillow's parsers read one by one, in a few microseconds each
MAX_SCANS = 300  # of a JPEG; cameras and web sites write 1 to 15
MAX_SCAN_PIXELS = 2**31  # scans x pixels: a scan of few bytes takes 1 ms for each megapixel
MEMORY = 960 * 2**20  # bytes
SMALL = 2**20  # bytes; files that are larger wait until there is memory for them, and smaller needs are not counted
LARGE = 2**26  # bytes; what took more is returned to the system at once
HEADER = 2**22  # bytes, of which Pillow's parsers make objects of 50 times the size at most


class Limit(NamedTuple):
    """The most pixels and bytes of a file."""

    pixels: int = MAX_PIXELS
    bytes: int = MAX_BYTES


#: Lower limits for what is slow, by the name of Pillow's decoder. JPEG 2000 keeps Python's lock while it is decoded, so
#: that a signal has to wait; AVIF and HEIC are videos of one picture; the others are decoded in Python.
SLOW = {
    "jpeg2k": Limit(2**24, 12 * 2**20),
    "AVIF": Limit(2**26, 24 * 2**20),
    "HEIF": Limit(2**26, 24 * 2**20),
    "bmp_rle": Limit(2**24, 2**22),
    "ppm_plain": Limit(2**24, 2**23),
    "ppm": Limit(2**21, 2**24),  # a maximum other than 255 and 65535
}
_VIDEOS = ("AVIF", "HEIF")
_NAMES = {
    "jpeg2k": "JPEG 2000",
    "AVIF": "AVIF",
    "HEIF": "HEIC",
    "bmp_rle": "a run-length BMP",
    "ppm_plain": "a PPM in ASCII",
    "ppm": "such a PPM",
}
_ROWS_PER_STRIP, _STRIP_BYTES, _TILE_WIDTH, _TILE_BYTES = 278, 279, 322, 325  # TIFF 6.0, 8 and 15
_BYTES = {"1": 1, "L": 1, "P": 1}  # of a pixel in Pillow's memory, by mode; 2 for 16 bits, else 4


def refuse_large(image: ImageFile.ImageFile, size: int, scans: int, needed: int) -> None:
    """Raise DecodeError where an image is too large: its file has `size` bytes, decoding it takes `needed` bytes."""
    pixels, codec = image.width * image.height, _codec(image)
    most = SLOW.get(codec, Limit())
    of = f" for {_NAMES[codec]}: save it as PNG or JPEG" if codec in SLOW else ""
    if pixels > most.pixels:
        raise DecodeError("bomb", f"{image.width} x {image.height} pixels, which is more than {most.pixels:,}{of}")
    if size > most.bytes:
        raise DecodeError("bomb", f"{size:,} bytes, which is more than {most.bytes:,}{of}")
    _refuse_long(image.width, image.height)
    most_scans = min(MAX_SCANS, MAX_SCAN_PIXELS // pixels)
    if scans > most_scans:
        raise DecodeError("bomb", f"a JPEG of more than {most_scans} scans, the most for {pixels:,} pixels")
    if image.format == "TIFF" and _claimed(image, size):
        raise DecodeError("bomb", "the strips of a TIFF hold more than the image or the file")
    _refuse_heavy(needed)


def refuse_array(file: ArrayFile, size: int) -> int:
    """The bytes that decoding an array takes at its peak; its file has `size` bytes. DecodeError where it is large."""
    samples = file.height * file.width * file.channels
    if samples > MAX_SAMPLES:
        shape = f"{file.height} x {file.width} x {file.channels}"
        raise DecodeError("bomb", f"{shape} samples, which is more than {MAX_SAMPLES:,}")
    _refuse_long(file.width, file.height)
    needed = size + samples * (2 * file.dtype.itemsize + 2) + 64 * STRIP
    _refuse_heavy(needed)
    return needed


def _refuse_long(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise DecodeError("bomb", f"{width} x {height} pixels, a side of more than {MAX_SIDE:,}")


def _refuse_heavy(needed: int) -> None:
    if needed > MEMORY:
        raise DecodeError("bomb", f"decoding takes {needed / 1e6:,.0f} MB, which is more than {MEMORY / 1e6:,.0f} MB")


def memory_needed(image: ImageFile.ImageFile, size: int, rules: DecodeRules, scans: int = 2) -> int:
    """An upper bound of the bytes that decoding takes at its peak, from the header and the file's `size` in bytes.

    The factors were measured for each decoder of Pillow 13.
    """
    width, height = image.size
    pixels, codec = width * height, _codec(image)
    raster = pixels * _BYTES.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    decoder, copies = 0.0, 1
    if codec == "jpeg" and (scans > 1 or image.info.get("progressive")):
        decoder = 2.0 * _coefficients(image)
    elif codec == "jpeg2k":
        decoder = 5.0 * pixels * len(image.getbands())
    elif codec == "WEBP":
        decoder, copies = 12.0 * pixels, 4
    elif codec in _VIDEOS:
        decoder = 16.0 * pixels
    elif codec in SLOW:
        decoder = 12.0 * pixels
    elif image.format == "TIFF":
        decoder = _tiff_needs(image, raster)
    elif image.format == "PNG":
        copies = 2  # of chunks that Pillow does not know
    # A second image, opaque and upright, is made when the decoder's memory is free again. What a PNG says of
    # transparency and orientation may follow its pixels.
    is_plain = image.format != "PNG" and image.mode in ("L", "RGB") and orientation(image) == 1
    second = (1 if is_plain else 4) * pixels  # 1: where gray is made of colours
    side = max(hw(rules.working_size or 0))
    resizing = 4 * side * (max(width, height) + 2 * side) + 48 * (width + height)
    if rules.channels not in (1, 3):
        resizing += 4 * pixels  # the bands
    return int(copies * size + raster + max(decoder, second) + resizing + 64 * min(pixels, STRIP))


class Memory:
    """Bytes that threads share: each waits, in the order of their coming, until there is what it needs."""

    def __init__(self, total: int) -> None:
        self.total = self._free = total
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        amount = min(amount, self.total)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            if amount > LARGE:
                return_freed_memory()  # which glibc keeps for the thread that freed it
            with self._changed:
                self._free += amount
                self._changed.notify()


decoding_memory = Memory(MEMORY)


_locked = threading.Lock()


def turn(image: ImageFile.ImageFile) -> contextlib.AbstractContextManager[object]:
    """Decode an image within this: JPEG 2000, which keeps Python's lock, is decoded by one thread at a time.

    Else the decoders would hand that lock to each other, and a signal would wait for more than one of them.
    """
    return _locked if _codec(image) == "jpeg2k" else contextlib.nullcontext()


class LongHeader(DecodeError):
    """A header was not found within the first parts of a file that were read."""


class _Metered:
    """A stream that a parser may read in so many parts, and so many bytes; after `release` in any number."""

    _reads, _bytes = MAX_READS, 2**62

    def read(self, size: int | None = -1, /) -> bytes:
        if self._reads <= 0:
            raise DecodeError("bomb", f"the header has more than {MAX_READS:,} parts")
        data: bytes = super().read(size)  # type: ignore[misc]
        self._reads -= 1
        self._bytes -= len(data)
        if self._bytes < 0:
            raise LongHeader("bomb", f"the header has more than {HEADER:,} bytes")
        return data

    def release(self) -> None:
        self._reads = 2**62


class MeteredBytes(_Metered, io.BytesIO):
    """An image file in memory."""


class MeteredFile(_Metered, io.BufferedReader):
    """An open image file of which only the header is read."""

    _bytes = HEADER

    def __init__(self, file: BinaryIO) -> None:
        assert isinstance(file, io.BufferedReader)
        super().__init__(file.detach())


def _codec(image: ImageFile.ImageFile) -> str:
    """The name of Pillow's decoder; the format where the tiles are known only later, or hold decoded pixels."""
    if image.format in _VIDEOS:
        return image.format
    return str(image.tile[0][0]) if image.tile else str(image.format)


def _coefficients(image: ImageFile.ImageFile) -> int:
    """The number of DCT coefficients, which libjpeg keeps in 16 bits where there is more than one scan."""
    factors = [(across, down) for _, down, across, _ in getattr(image, "layer", ())] or [(1, 1)]
    most = max(across for across, _ in factors) * max(down for _, down in factors)
    shares = sum(across * down for across, down in factors) / max(most, 1)
    return int((image.width + 32) * (image.height + 32) * shares)


def _claimed(image: ImageFile.ImageFile, size: int) -> bool:
    """Whether strips lie on top of each other, so that the same pixels are decoded again and again."""
    boxes = (tile[1] or (0, 0, *image.size) for tile in image.tile)
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    lengths = image.tag_v2.get(_STRIP_BYTES, image.tag_v2.get(_TILE_BYTES, ()))  # type: ignore[attr-defined]
    claimed = sum(lengths) if isinstance(lengths, tuple) else 0
    return area > 5 * image.width * image.height or claimed > 2 * size + 2**20  # a strip for each of five channels


def _tiff_needs(image: ImageFile.ImageFile, raster: int) -> float:
    """libtiff decodes a strip or a tile at a time, unless it is not compressed; Pillow turns the image by a copy."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    rows = tags.get(_ROWS_PER_STRIP, image.height)
    whole = _codec(image) != "raw" and isinstance(rows, int) and _TILE_WIDTH not in tags
    share = min(rows / image.height, 1.0) if whole else 0.0
    return raster * (share + (orientation(image) != 1))
