"""Images for a page: small, as data URIs, each stored once."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convsmith.data.dataset import Subset
from convsmith.errors import UserError

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
