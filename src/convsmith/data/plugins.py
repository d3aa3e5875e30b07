"""The decoders that Pillow has: its own, and a plug-in that is imported when a file needs it. Decodes nothing."""

from __future__ import annotations

from functools import cache

from PIL import Image

from convsmith.data.faults import SUFFIXES, DecodeError

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")  # ISO/IEC 23008-12, B.4


def decoders(head: bytes) -> tuple[str, ...]:
    """Pillow's names of the formats that can be read, for a file with these first bytes (64 will do).

    Raises DecodeError where the file needs the plug-in for HEIC, and it is not installed.
    """
    is_heif = head[4:8] == b"ftyp" and any(brand in head[8:] for brand in _HEIF_BRANDS)
    return _with_heif() if is_heif else _own()


@cache
def _own() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in SUFFIXES if name in Image.OPEN)  # Pillow 10 has no AVIF


@cache
def _with_heif() -> tuple[str, ...]:
    try:
        from pi_heif import register_heif_opener  # pillow-heif without its encoder, which is under the GPL
    except ImportError:
        reason = "HEIC needs a plug-in: pip install 'convsmith[heic]', or convert the file to JPEG"
        raise DecodeError("unsupported", reason) from None
    register_heif_opener()
    return (*_own(), "HEIF")
