"""What tests of data share: a small image, the one line of a refusal, and decoding without processes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from convsmith.data.config import DecodeRules
from convsmith.data.decode import DecodeError, decode
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


class InProcess:
    """Decodes where the test runs: the twin of `data.workers.Workers`, the processes that a training starts."""

    def __init__(self, rules: DecodeRules, shape: tuple[int, int, int]) -> None:
        self.rules = rules

    def start(self) -> None:
        pass

    def decode(self, images: Sequence[bytes]) -> list[np.ndarray | DecodeError]:
        decoded: list[np.ndarray | DecodeError] = []
        for image in images:
            try:
                decoded.append(decode(image, self.rules))
            except DecodeError as error:
                decoded.append(error)
        return decoded
