"""Develop, finetune and understand convolutional image classifiers, with numbers you can trust.

>>> import convsmith
>>> run = convsmith.train(data="digits", model="simple-cnn", epochs=5)
>>> run.evaluate("test")["accuracy"]
>>> convsmith.load("runs/digits-simple-cnn-1").predict(["seven.png"])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from convsmith.run import Run
    from convsmith.training.own import OptimizerFactory

__all__ = ["Run", "load", "resume", "train"]


def train(
    data: str | Path | tuple[np.ndarray, Any] | Mapping[str, Any] | None = None,
    model: str | torch.nn.Module | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    optimizer: OptimizerFactory | None = None,
    **settings: Any,
) -> Run:
    """Train a classifier into a new run directory and return it.

    `data`: a name, a path, or ``(images, labels)`` with images uint8 [N, H, W] or [N, H, W, C] and labels
    integers or strings [N]; none: what `config` or `preset` say, else digits. `model`: a name, or a module of your
    own from float [B, C, S, S] to logits [B, K]. Either may be a dict of its section's settings instead, such as
    ``data={"source": "photos", "image_size": 64}``.
    `optimizer`: a function of parameter groups that returns a torch optimiser. `settings`: the short names
    (epochs, batch_size, lr, seed, device) and whole sections, such as ``augment={"hflip": True}``.
    Raises `convsmith.errors.UserError` for wrong settings or data, `RunFailed` for a loss that is no number.
    """
    from convsmith import run as runs

    return runs.train(data, model, preset, config, name, Path(runs_dir), optimizer, settings)


def resume(
    run: str | Path,
    model: torch.nn.Module | None = None,
    optimizer: OptimizerFactory | None = None,
    data: tuple[np.ndarray, Any] | None = None,
) -> Run:
    """Go on with a stopped run to the same weights, bit for bit. Hand in again what was handed in to `train`."""
    from convsmith import run as runs

    return runs.resume(Path(run), model, optimizer, data)


def load(run: str | Path, model: torch.nn.Module | None = None, data: tuple[np.ndarray, Any] | None = None) -> Run:
    """A run that has been trained. Hand in the module or the arrays where they are your own."""
    from convsmith import run as runs

    return runs.Run(Path(run), model, data)


def __getattr__(name: str) -> Any:
    if name == "Run":  # imported when asked for: torch takes seconds
        from convsmith.run import Run

        return Run
    raise AttributeError(f"module 'convsmith' has no attribute '{name}'")
