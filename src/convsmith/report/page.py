"""From values to one self-contained HTML page: jinja2 templates, images as data URIs. Knows no run.

Every value is escaped, and nothing is fetched. `explain` writes its pages with it too.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from convsmith.data.dataset import Subset
from convsmith.errors import UserError
from convsmith.records import shown

TEMPLATES = Path(__file__).with_name("templates")
SHORT, TAIL = 28, 48  # characters


def render(template: str, values: dict[str, Any]) -> str:
    """The template filled with `values`; its content-security policy allows its style and script, and no request."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "shown": lambda value, metric: shown(metric, value),
        "number": number,
        "interval": interval,
        "shape": shape,
        "short": short,
        "tail": tail,
        "quoted": quoted,
    }
    style, script = (TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        f"base-uri 'none'; form-action 'none'"
    )
    parts = {"style": Markup(style), "script": Markup(script), "policy": policy}
    return environment.get_template(template).render(values | parts)


def percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f}%"


def number(value: Any) -> str:
    """Thousands apart; floats with four significant digits; words as they are."""
    if isinstance(value, bool | str) or value is None:
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def interval(ends: tuple[float, float] | None, digits: int = 1) -> str:
    return "" if ends is None else f"{100 * ends[0]:.{digits}f} to {100 * ends[1]:.{digits}f}%"


def shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def short(name: str) -> str:
    """A name where there is little room: the whole one stands in its title."""
    return name if len(name) <= SHORT else f"{name[: SHORT - 1]}…"


def tail(path: str) -> str:
    """The end of a path where there is little room."""
    return path if len(path) <= TAIL else f"…{path[1 - TAIL :]}"


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def _digest(text: str) -> str:
    """The source expression of an inline style or script with exactly this text (CSP level 3)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


LONGEST = 112  # pixels; larger images are shrunk, as a thumbnail is all that the page shows
LOSSLESS = 64  # pixels; up to here a PNG is small, and every pixel counts


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 1 or 3] as a data URI: PNG up to 64 pixels, else a JPEG of at most 112."""
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((LONGEST, LONGEST))
    kind, options = ("png", {"optimize": True}) if max(image.size) <= LOSSLESS else ("jpeg", {"quality": 82})
    return _encoded(image, kind, options)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3] as a data URI, every pixel as it is."""
    return _encoded(Image.fromarray(pixels), "png", {"optimize": True})


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


class Gallery:
    """The images of a subset that a page shows, by position; each is encoded once however often it is shown."""

    def __init__(self, subset: Subset | None, ids: Sequence[str]) -> None:
        """`ids` say what a position means, in the order of the predictions, which need not be the subset's.

        UserError for an id that the subset does not have.
        """
        self._subset = subset
        self._at = {} if subset is None else {name: at for at, name in enumerate(subset.ids)}
        self._ids = ids
        self.uris: dict[int, str] = {}
        if strange := next((name for name in ids if subset is not None and name not in self._at), None):
            raise UserError(
                f"the predictions name '{strange}', which is not among the images: convsmith evaluate the run"
            )

    def __bool__(self) -> bool:
        return self._subset is not None

    def pixels(self, positions: Iterable[int]) -> NDArray[np.uint8]:
        """uint8 [N, W, W, C]."""
        assert self._subset is not None
        return self._subset.gather([self._at[self._ids[position]] for position in positions])

    def add(self, positions: Iterable[int]) -> None:
        new = [position for position in dict.fromkeys(map(int, positions)) if position not in self.uris]
        if self._subset is not None and new:
            self.uris.update(zip(new, map(data_uri, self.pixels(new)), strict=True))
