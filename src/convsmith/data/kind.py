"""What kind of images a source holds, by a sample of them: their size, whether they are gray, and how much is blank."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convsmith.data.config import DecodeRules
from convsmith.data.decode import DecodeError, Pixels, decode, from_array
from convsmith.data.parallel import thread_map
from convsmith.data.source import Record, Source

SAMPLED = 32  # images, spread over the source
GRAY_SPREAD = 3.0  # mean difference of the channels of a pixel, below which JPEG's noise explains it
NEAR = 8  # how much a pixel of the background may differ from the commonest gray


class Kind(NamedTuple):
    """`side` is the median over the images of the side of a square with as many pixels as the image has.

    `is_gray` says whether at most one image in ten has colours, and `blank` is the median share of an image that is its
    commonest gray.
    """

    side: float
    is_gray: bool
    blank: float


def kind_of(source: Source) -> Kind | None:
    """The kind of a source's images but those of its test split; None if none of the sample can be decoded."""
    seen = np.flatnonzero(source.given != "test")
    rows = seen[np.unique(np.linspace(0, len(seen) - 1, SAMPLED).round().astype(int))] if len(seen) else seen
    found = [one for one in thread_map(_look, (source.read(int(row)) for row in rows)) if one is not None]
    if not found:
        return None
    sides, spreads, blanks = (np.array(values) for values in zip(*found, strict=True))
    is_gray = bool(np.mean(spreads < GRAY_SPREAD) >= 0.9)
    return Kind(float(np.median(sides)), is_gray, float(np.median(blanks)))


def _look(record: Record) -> tuple[float, float, float] | None:
    rules = DecodeRules(channels=3)
    try:
        pixels = from_array(record, rules) if isinstance(record, np.ndarray) else decode(record, rules)
    except DecodeError:
        return None  # training will report it
    channels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))  # NumPy takes 20 times as long over a short last axis
    return float(np.sqrt(pixels.shape[0] * pixels.shape[1])), _spread(channels), _blank(channels)


def _spread(channels: Pixels) -> float:
    """The mean difference of the channels [3, H, W] of a pixel."""
    return float((channels.max(axis=0) - channels.min(axis=0)).mean())


def _blank(channels: Pixels) -> float:
    """The share of pixels whose gray, the mean of the channels [3, H, W], is near the commonest one."""
    counts = np.bincount(channels.sum(axis=0, dtype=np.uint16).ravel(), minlength=766)  # of sums, to 3 * 255
    grays = np.arange(len(counts)) / 3
    commonest = np.bincount(grays.astype(int), counts).argmax()
    return float(counts[np.abs(grays - commonest) <= NEAR].sum() / counts.sum())
