"""Rendering of self-contained HTML pages: jinja2 templates, images as data URIs. Nothing here depends on a run.

Every value is escaped, hidden characters of names included, and nothing is fetched. The templates of other rooms extend
base.html and use its macros.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from convsmith.contracts import gray_or_rgb, seen_channels, size_text
from convsmith.figures.style import start_of
from convsmith.records import shown
from convsmith.terminal import lines_of, plural

TEMPLATES = Path(__file__).with_name("templates")
SHORT, TAIL = 28, 48  # characters
_POLICY = "default-src 'none'; img-src data:;"
LONGEST = 112  # pixels; larger images are shrunk, since the page shows only thumbnails
LOSSLESS = 64  # pixels; up to this size a PNG is small, and every pixel matters


def render(template: Path, values: dict[str, Any]) -> str:
    """The template filled with `values`; its content-security policy allows its own style and script, but no requests.

    It may extend and include templates in its own folder and in `TEMPLATES`.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plainly,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "shown": lambda value, metric: "" if value is None else shown(metric, value),
        "number": number,
        "size_text": size_text,
        "seen_channels": seen_channels,
        "interval": interval,
        "shape": shape,
        "short": short,
        "tail": tail,
        "quoted": quoted,
        "plural": plural,
    }
    style, script = (TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    policy = (
        f"{_POLICY} style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    parts = {"style": Markup(style), "script": Markup(script), "policy": policy}
    return environment.get_template(template.name).render(values | parts)


def is_page(content: bytes) -> bool:
    """Whether a file is one that `render` wrote, in any edition: its policy is the first thing in it."""
    return escape(_POLICY).encode() in content[:1000]


def _plainly(value: Any) -> Any:
    """A value of a template without hidden characters; HTML stays HTML."""
    return type(value)(lines_of(value)) if isinstance(value, str) else value


def percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f}%"


def number(value: Any) -> str:
    """Integers with thousands separators, floats with four significant digits, text unchanged."""
    if isinstance(value, bool | str) or value is None:
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def interval(ends: tuple[float, float] | None, digits: int = 1) -> str:
    return "" if ends is None else f"{100 * ends[0]:.{digits}f} to {100 * ends[1]:.{digits}f}%"


def shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def short(name: str) -> str:
    """A name shortened where there is little room; its title attribute has the whole name."""
    return start_of(name, SHORT)


def tail(path: str) -> str:
    """The end of a path, where there is little room."""
    return path if len(path) <= TAIL else f"…{path[1 - TAIL :]}"


def quoted(path: Path) -> str:
    """A path quoted for a shell."""
    return shlex.quote(str(path))


def _digest(text: str) -> str:
    """The source expression of an inline style or script with exactly this text (CSP level 3)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def thumbnail_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 [H, W, C] as a data URI: PNG up to 64 pixels, else a JPEG of at most 112."""
    image = _image(pixels)
    image.thumbnail((LONGEST, LONGEST))
    kind, options = ("png", {"optimize": True}) if max(image.size) <= LOSSLESS else ("jpeg", {"quality": 82})
    return _encoded(image, kind, options)


def pixels_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 [H, W, C] as a data URI, lossless."""
    return _encoded(_image(pixels), "png", {"optimize": True})


def png_uri(png: bytes) -> str:
    """A PNG file as a data URI."""
    return _uri("png", png)


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(gray_or_rgb(pixels)))


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return _uri(kind, buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
