"""The run that is to be explained: its model and its validation images. The test split stays sealed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.contracts import Size, hw
from convsmith.data.dataset import Subset
from convsmith.data.preprocess import InputPixels
from convsmith.data.sources import Source
from convsmith.errors import UserError
from convsmith.explain.gradcam import stage_with_maps
from convsmith.prediction.evaluate import batches_of, logits_of, run_dataset, use_threads
from convsmith.prediction.predictor import Predictor, load_predictor
from convsmith.rundir import RunDir, open_trained


@dataclass(frozen=True)
class ExplainContext:
    """A run with its model on a device. `source` holds the images where they are arrays of the user's own."""

    run: RunDir
    predictor: Predictor
    source: Source | None = None

    @property
    def folder(self) -> Path:
        return self.run.path / "explain"

    @property
    def model(self) -> nn.Module:
        return self.predictor.model

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    @property
    def image_size(self) -> Size:
        """Height and width in pixels of what the model sees."""
        return self.predictor.card.preprocessing.image_size

    @cached_property
    def val(self) -> Subset:
        val = run_dataset(self.run, self.source).val
        if not len(val):
            raise UserError(f"run '{self.run.path}' has no validation images: give PATHs of images to explain")
        return val

    @cached_property
    def val_logits(self) -> NDArray[np.float32]:
        """The logits of all validation images, float32 [N, K]."""
        predictor = self.predictor
        logits = logits_of(self.model, batches_of(self.val, predictor.device), predictor.to_input(), predictor.device)
        assert logits is not None
        return logits

    @cached_property
    def to_input(self) -> Callable[[Tensor], Tensor]:
        return self.predictor.to_input()

    def inputs(self, pixels: InputPixels) -> Tensor:
        """N prepared images as the model takes them: float [N, C, H, W]."""
        return self.to_input(pixels.tensor(self.predictor.device))

    def seen(self, images: Tensor) -> NDArray[np.uint8]:
        """The model's inputs `images` float [N, C, H, W] as pixels uint8 [N, H, W, C]."""
        return self.predictor.card.to_input(images.device).back(images)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` evenly spaced validation images, as the model takes them, and their labels int64 [count]."""
        count = min(count, len(self.val))
        chosen = np.linspace(0, len(self.val) - 1, count).astype(np.int64)
        labels = torch.from_numpy(self.val.labels[chosen]).to(self.predictor.device)
        return self.inputs(self.val.inputs(chosen)), labels

    def stage(self, name: str | None) -> str:
        """The stage called `name`, or the last one with feature maps; raises what `stage_with_maps` raises."""
        blank = torch.zeros(1, self.predictor.card.preprocessing.channels, *hw(self.image_size))
        return stage_with_maps(self.model, blank.to(self.predictor.device), name)


def open_context(
    run: str | Path, device: str = "auto", module: nn.Module | None = None, source: Source | None = None
) -> ExplainContext:
    """Open a run, or the folder of a model; UserError where it is neither, or has no model yet.

    `module` is the net if it is the user's own.
    """
    files = open_trained(run, "model/model.json", "model/model.safetensors")
    files.refuse_links()
    use_threads(files)
    return ExplainContext(files, load_predictor(files.path, device, module), source)
