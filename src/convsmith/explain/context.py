"""The run that is to be explained: its model, and its validation images. The test split stays sealed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.config import read_run_config
from convsmith.data.dataset import Subset
from convsmith.errors import UserError
from convsmith.prediction.evaluate import batches_of, logits_of, run_dataset
from convsmith.prediction.predictor import Predictor, load_predictor
from convsmith.rundir import RunDir, open_run, open_single
from convsmith.runtime import set_threads


@dataclass(frozen=True)
class Subject:
    run: RunDir
    predictor: Predictor

    @property
    def folder(self) -> Path:
        return self.run.path / "explain"

    @property
    def model(self) -> nn.Module:
        return self.predictor.model

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    @cached_property
    def val(self) -> Subset:
        open_run(self.run.path, "splits.json")
        val = run_dataset(self.run).val
        if not len(val):
            raise UserError(f"run '{self.run.path}' has no validation images: give PATHs of images to explain")
        return val

    @cached_property
    def val_logits(self) -> NDArray[np.float32]:
        """Of all validation images, float32 [N, K]."""
        predictor = self.predictor
        logits = logits_of(self.model, batches_of(self.val), predictor.to_input(), predictor.device)
        assert logits is not None
        return logits

    @cached_property
    def to_input(self) -> Callable[[Tensor], Tensor]:
        return self.predictor.to_input()

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        """`pixels` uint8 [N, W, W, C] as the model takes them: float [N, C, S, S]."""
        return self.to_input(torch.tensor(pixels, device=self.predictor.device))

    def seen(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`pixels` uint8 [N, W, W, C] at the size that the model sees: uint8 [N, S, S, C]."""
        preprocessing = self.predictor.card.preprocessing
        images = self.inputs(pixels).cpu()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        shown = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(shown.permute(0, 2, 3, 1).numpy())

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` validation images at equal distances, as the model takes them, and their labels int64 [count]."""
        count = min(count, len(self.val))
        chosen = np.linspace(0, len(self.val) - 1, count).astype(np.int64)
        labels = torch.from_numpy(self.val.labels[chosen]).to(self.predictor.device)
        return self.inputs(self.val.gather(chosen)), labels


def open_subject(path: str, device: str) -> Subject:
    """UserError where `path` is no run, or has no model yet."""
    run = open_single(path, "model/model.json", "model/model.safetensors")
    set_threads(read_run_config(run.config).train.threads)
    return Subject(run, load_predictor(path, device))
