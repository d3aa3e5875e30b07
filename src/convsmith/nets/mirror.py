"""Test-time averaging over an image and its mirror image, as a property of a network outside training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def averaged(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The mean of the features of `images` [N, C, H, W] and of their mirror images: [N, F].

    With a linear head, its logits are the means of both logits.
    """
    return (features(images) + features(images.flip(-1))) / 2


@contextmanager
def one_view(model: nn.Module) -> Iterator[None]:
    """A context in which a network that averages sees the image alone, so that each layer runs once."""
    averaging: Any = model if getattr(model, "mirror", False) is True else None  # a user's may be a layer
    if averaging is not None:
        averaging.mirror = False
    try:
        yield
    finally:
        if averaging is not None:
            averaging.mirror = True
