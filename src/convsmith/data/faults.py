"""What can be wrong with an image file: a verdict for counts and a sentence for people. Decodes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from PIL import Image, UnidentifiedImageError

from convsmith.errors import UserError

Kind = Literal["empty", "truncated", "corrupt", "not-an-image", "bomb", "unsupported", "unreadable"]

# Formats that have a signature and that Pillow decodes by itself or by a plug-in. EPS is left out: it runs Ghostscript.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),  # by a plug-in
    "NPY": (".npy",),  # by NumPy
}
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
_BOXES = (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix")


class DecodeError(Exception):
    """An image cannot be decoded; `kind` is a category for counts, `message` is for people."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind: Kind = kind
        self.message = message


@contextlib.contextmanager
def decode_errors(content: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises into a DecodeError; `content` is the file, or its first bytes."""
    try:
        yield
    except (DecodeError, UserError):
        raise
    except MemoryError as error:  # within the limits of every file, so that the fault lies with the machine
        raise DecodeError("unreadable", "decoding it takes more memory than is free: end other programs") from error
    except Image.DecompressionBombError as error:
        raise DecodeError("bomb", str(error)) from error
    except UnidentifiedImageError as error:
        # The tag of the first chunk reveals a PNG whose signature was mangled in transfer.
        if content.startswith(_SIGNATURES) or b"IHDR" in content[12:20] or content[4:12] in _BOXES:
            raise DecodeError("corrupt", "the header is damaged") from error
        raise DecodeError("not-an-image", f"the format is none of {', '.join(SUFFIXES)}") from error
    except Exception as error:  # the parsers of Pillow's plugins can raise any error
        text = str(error) or type(error).__name__
        cut_short = isinstance(error, EOFError) or "truncated" in text.lower() or "chunk b''" in text
        raise DecodeError("truncated" if cut_short else "corrupt", text) from error
