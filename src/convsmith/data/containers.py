"""The structure of PNG, JPEG and TIFF files, as far as Pillow does not check it: damage, and tricks that take hours."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convsmith.data.faults import DecodeError
from convsmith.data.limits import MAX_SCANS

MAX_CHUNKS = 2**17  # of a PNG
MAX_PROFILES = 256  # of a PNG, and compressed texts, each of which Pillow inflates up to 1 MB
MAX_TEXT = 2**20  # bytes of a PNG's text or profile, inflated; Pillow refuses the whole image for a longer one
MAX_SEGMENTS = 2**14  # of a JPEG
MAX_EXIF = 2**18  # bytes, of a JPEG or of a PNG's text; the standard has a single segment of at most 2**16
FEW_SCANS = 16
MAX_NUMBERS = 2**19  # in the tags of a TIFF or of EXIF, among them the places of the strips
MAX_COMMENTS = 1000  # of a PPM in ASCII, for each of which Pillow moves what follows

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_START_OF_SCAN, _END_OF_IMAGE, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)  # ITU-T T.81, table B.1
# In a scan's data, 0xff is followed by 0, and restart markers (d0 to d7) do not end it (ITU-T T.81, B.1.1.5).
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_BYTES_OF_TYPE = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8])  # TIFF 6.0, 2; BigTIFF
_NEW_SUBFILE, _NO_PAGE = 254, 0b101  # TIFF 6.0, 8: a smaller version, a mask
_NEEDED = (256, 257, 258, 262)  # width, height, bits and colours (TIFF 6.0, 4)
_EXIF_TEXT = b"Raw profile type exif\0"  # ImageMagick's name for a text of hexadecimal digits
_XMP = b"XML:com.adobe.xmp"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability: all that Pillow opens unasked
_TEXT_TYPES = (1, 2, 6, 7)  # bytes, which Pillow does not turn into a tuple of numbers


class Structure(NamedTuple):
    """What a decoder should read of a file, the number of a JPEG's scans, and whether a TIFF has several pages."""

    content: bytes
    scans: int = 1
    has_pages: bool = False


def inspect(content: bytes) -> Structure:
    """Raise DecodeError for a file with a damaged or a hostile structure; the result leaves out a PNG's long texts."""
    if content.startswith(_PNG):
        return Structure(_checked_png(content))
    if content.startswith(_JPEG):
        return Structure(content, _check_jpeg(content))
    if content.startswith(TIFF):
        check_tags(content)
        return Structure(content, has_pages=_has_pages(content))
    if content[:2] in (b"P1", b"P2", b"P3") and content.count(b"#") > MAX_COMMENTS:
        raise DecodeError("bomb", f"more than {MAX_COMMENTS:,} comments in a PPM")
    return Structure(content)


def _checked_png(content: bytes) -> bytes:
    """A PNG without its long texts; lengths and checksums of its chunks (PNG specification, 5.3) have been checked.

    Pillow checks only some of them. The end marker may be missing, since the stream of the pixels tells its own end.
    """
    view = memoryview(content)
    at, chunks, profiles, has_pixels = 8, 0, 0, False
    kept: list[memoryview] = []
    kind, start = b"", 0
    while kind != b"IEND":
        left = len(view) - at
        if has_pixels and (left < 8 or (left < 12 and content.startswith(b"IEND", at + 4))):
            break
        length = int.from_bytes(view[at : at + 4], "big")
        kind = bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(view):
            raise DecodeError("truncated", f"the file ends within the chunk at byte {at:,}")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DecodeError("corrupt", f"the checksum of chunk {kind!r} is wrong")
        if kind == b"eXIf":  # Pillow reads one that follows the pixels, too, and one in a text
            check_tags(content[at + 8 : end])
        elif length > 2 * MAX_EXIF and content.startswith(_EXIF_TEXT, at + 8):
            raise DecodeError("bomb", f"EXIF of more than {MAX_EXIF:,} bytes")
        chunks += 1
        profiles += kind in (b"iCCP", b"eXIf", b"zTXt", b"iTXt")
        has_pixels |= kind == b"IDAT"
        if chunks > MAX_CHUNKS or profiles > MAX_PROFILES:
            most = f"{MAX_CHUNKS:,} chunks" if chunks > MAX_CHUNKS else f"{MAX_PROFILES} profiles and texts"
            raise DecodeError("bomb", f"more than {most}")
        if kind in _TEXTS and _is_long(kind, view[at + 8 : end]):
            kept.append(view[start:at])
            start = end + 4
        at = end + 4
    return b"".join([*kept, view[start:]]) if kept else content


def _is_long(kind: bytes, body: memoryview) -> bool:
    """Whether the text of a chunk, or its profile, is longer than MAX_TEXT (PNG specification, 11.3.3 and 11.3.4)."""
    if len(body) <= MAX_TEXT // 1032:  # deflate makes no more of them
        return False
    keyword, _, rest = bytes(body).partition(b"\0")
    if kind == b"iTXt" and rest[:1] != b"\1":
        return len(rest) > MAX_TEXT and keyword != _XMP  # of which Pillow reads the orientation, at any length
    if kind == b"tEXt":
        return len(rest) > MAX_TEXT
    rest = rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest[1:]  # after the language and its keyword
    inflated = zlib.decompressobj()
    with contextlib.suppress(zlib.error):  # which is left to Pillow
        inflated.decompress(rest, MAX_TEXT)
    return bool(inflated.unconsumed_tail)


def _check_jpeg(content: bytes) -> int:
    """The number of scans, which may be too large by a few, but never too small.

    Tens of thousands of scans fit into a few megabytes, since a run of zeros over millions of pixels takes a few bytes.
    """
    scans, exif, at = 0, 0, 2
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(content, at)
        if marker is None or (kind := content[marker.end() - 1]) == _END_OF_IMAGE:
            return scans
        at = marker.end()
        length = 0 if kind in _WITHOUT_LENGTH else int.from_bytes(content[at : at + 2], "big")
        if kind == _START_OF_SCAN:
            scans += 1
            # To look for markers in all of the data takes a tenth of the time of decoding. Counting this one takes 1%,
            # but finds those of thumbnails and of what is appended, too.
            if scans == 1 and (more := _count_scans(content, at)) < FEW_SCANS:
                return 1 + more
            if scans > MAX_SCANS:
                return scans
        elif content.startswith(b"Exif\0\0", at + 2):
            exif += length
        if exif > MAX_EXIF:
            raise DecodeError("bomb", f"EXIF of more than {MAX_EXIF:,} bytes")
        at += length
    raise DecodeError("bomb", f"more than {MAX_SEGMENTS:,} segments")


def _count_scans(content: bytes, start: int) -> int:
    """How often two bytes look like the start of a scan from `start` on."""
    if len(content) < 2**14:  # for which NumPy takes longer
        return content.count(b"\xff\xda", start)
    found = 0
    values = np.frombuffer(content, dtype=np.uint8)
    for low in range(start, len(values) - 1, 2**20):
        block = values[low : low + 2**20 + 1]
        found += int(np.count_nonzero(block[np.flatnonzero(block[:-1] == 0xFF) + 1] == _START_OF_SCAN))
    return found


def check_tags(content: bytes) -> None:
    """Raise DecodeError where the tags of a TIFF, or of EXIF, hold more than Pillow should turn into Python's numbers.

    Broken directories are left to Pillow, which skips what is wrong with them.
    """
    numbers = claimed = 0.0
    for entries in _directories(content):
        types = np.where(entries["type"] < len(_BYTES_OF_TYPE), entries["type"], 0)
        sizes = entries["count"].astype(np.float64) * _BYTES_OF_TYPE[types]
        whole = (sizes > 0) & (sizes <= len(content))  # the others are skipped: of no type, or longer than the file
        numbers += float(entries["count"][whole & ~np.isin(types, _TEXT_TYPES)].sum())
        claimed += float(sizes[whole].sum())
        if numbers > MAX_NUMBERS:
            raise DecodeError("bomb", f"the tags hold more than {MAX_NUMBERS:,} numbers")
        if claimed > 2 * len(content) + 2**20:
            raise DecodeError("bomb", "the tags claim to hold more than the file")


def holds_image(content: bytes) -> bool:
    """Whether the first directory of a TIFF names all that an image has, whether Pillow can read it or not."""
    entries = next(_directories(content), None) if content.startswith(TIFF) else None
    return entries is not None and bool(np.isin(_NEEDED, entries["tag"]).all())


def _has_pages(content: bytes) -> bool:
    """Whether the second directory of a TIFF is a page, and not a smaller version of the first one, or its mask."""
    directories = _Directories(content)
    with contextlib.suppress(ValueError, OverflowError):  # of what lies outside of the file
        second = directories.after(directories.first)
        if second and second != directories.first:
            entries = directories.read(second)
            return not ((entries["tag"] == _NEW_SUBFILE) & (entries["value"] & _NO_PAGE > 0)).any()
    return False


class _Directories:
    """The directories of a TIFF: `first` is the offset of the first one. Raises ValueError beyond the file's end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._order = ">" if content[:1] == b"M" else "<"
        is_big = content[2:4] in (b"\0+", b"+\0")
        self._word, head, self._size = (f"{self._order}u8", 8, 8) if is_big else (f"{self._order}u4", 4, 2)
        numbers = [("count", self._word), ("value", self._word)]
        self._entry = np.dtype([("tag", f"{self._order}u2"), ("type", f"{self._order}u2"), *numbers])
        self.first = int(np.frombuffer(content, self._word, 1, head)[0]) if len(content) >= 2 * head else 0

    def read(self, start: int) -> npt.NDArray[np.void]:
        """The entries of a directory, as far as they lie within the file."""
        number = min(self._number(start), (len(self._content) - start - self._size) // self._entry.itemsize)
        return np.frombuffer(self._content, self._entry, number, start + self._size)

    def after(self, start: int) -> int:
        """Where the directory that follows begins; 0 for none."""
        end = start + self._size + self._number(start) * self._entry.itemsize
        return int(np.frombuffer(self._content, self._word, 1, end)[0])

    def _number(self, start: int) -> int:
        return int(np.frombuffer(self._content, f"{self._order}u{self._size}", 1, start)[0])


def _directories(content: bytes) -> Iterator[npt.NDArray[np.void]]:
    """The entries of the first directory of a TIFF, and of those that Pillow opens unasked, each of them once."""
    directories = _Directories(content)
    with contextlib.suppress(ValueError, OverflowError):  # of what lies outside of the file
        starts = [directories.first]
        seen: set[int] = set()
        while starts:
            if (start := starts.pop()) in seen:
                continue
            seen.add(start)
            entries = directories.read(start)
            yield entries
            if len(seen) == 1:
                starts += entries["value"][np.isin(entries["tag"], _DIRECTORIES)][:8].tolist()
