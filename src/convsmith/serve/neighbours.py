"""Search for the training images whose features are most similar to those of a given image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsmith.contracts import Classifier
from convsmith.data.dataset import Subset
from convsmith.data.preprocess import InputPixels
from convsmith.prediction.predictor import Predictor

MOST = 2_000  # training images in the index: enough to represent the data, and computed in seconds
BATCH = 64


@dataclass(frozen=True)
class Neighbour:
    """`similarity` is the cosine of the angle between the features; `pixels` uint8 [H, W, C]."""

    id: str
    label: int
    similarity: float
    pixels: NDArray[np.uint8]


class Neighbours:
    """Features of at most `MOST` images of `subset`, evenly spread over it, each of length 1: float32 [M, F]."""

    def __init__(self, predictor: Predictor, subset: Subset, progress: Callable[[int, int], None]) -> None:
        self._predictor, self._subset = predictor, subset
        self._positions = np.unique(np.linspace(0, len(subset) - 1, MOST).round().astype(np.int64))
        total = len(self._positions)
        parts = []
        for start in range(0, total, BATCH):
            parts.append(self._features(subset.inputs(self._positions[start : start + BATCH])))
            progress(min(start + BATCH, total), total)
        self._vectors = torch.cat(parts)

    def __len__(self) -> int:
        return len(self._positions)

    @torch.inference_mode()
    def _features(self, pixels: InputPixels) -> Tensor:
        model = self._predictor.model
        assert isinstance(model, Classifier)
        images = self._predictor.to_input()(pixels.tensor(self._predictor.device))
        return torch.nn.functional.normalize(model.features(images).float(), dim=1).cpu()

    def nearest(self, pixels: InputPixels, count: int) -> list[Neighbour]:
        """The `count` images of the index most similar to the one in `pixels`, the most similar first."""
        similarities = (self._vectors @ self._features(pixels)[0]).clamp(-1, 1)
        values, indices = similarities.topk(min(count, len(self)))
        found = self._positions[indices.numpy()]
        return [
            Neighbour(self._subset.ids[position], int(self._subset.labels[position]), float(value), image)
            for position, value, image in zip(found, values, self._subset.gather(found), strict=True)
        ]
