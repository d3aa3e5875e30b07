"""Measures which memory layout trains faster, on copies of the model. Changes no state of the run."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import nn

from convsmith.contracts import Batch
from convsmith.prediction.model_file import FORMATS
from convsmith.training.loss import Loss

ROUNDS = 9


def seconds_per_step(
    model: nn.Module, batch: Batch, loss: Loss, layouts: Sequence[str], device: torch.device, budget: float
) -> dict[str, float]:
    """Seconds of the fastest forward and backward pass by layout, measured alternately, without the run's generators.

    After one warm-up step and one measured step of each layout, it ends when `budget` seconds are over.

    The fastest step is used, not the median, since other processes can only add time.
    """
    times: dict[str, list[float]] = {layout: [] for layout in layouts}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        copies = {layout: copy.deepcopy(model).to(memory_format=FORMATS[layout]).train() for layout in layouts}
        images = {layout: batch.images.contiguous(memory_format=FORMATS[layout]) for layout in layouts}
        began = time.perf_counter()
        for number in range(1 + ROUNDS):
            for layout in layouts:
                start = time.perf_counter()
                copies[layout].zero_grad(set_to_none=True)
                loss(copies[layout](images[layout]), Batch(images[layout], batch.labels)).backward()
                finished(device)
                times[layout].append(time.perf_counter() - start)
            if number == 0:
                began = time.perf_counter()
            elif time.perf_counter() - began > budget:
                break
    return {layout: min(taken[1:]) for layout, taken in times.items()}


def finished(device: torch.device) -> None:
    """Wait until an accelerator has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
