"""What tests of data share: a small image, and the one line with which something is refused."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image

from convsmith.errors import UserError


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
