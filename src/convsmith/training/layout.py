"""Measures which way to compute a step is the fastest: memory layouts and precisions. Changes no state of the run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convsmith.contracts import Batch
from convsmith.precision import BFLOAT16, FLOAT32, computing_in, has_bfloat16
from convsmith.prediction.model_file import FORMATS
from convsmith.training.config import AUTO
from convsmith.training.loss import Loss

ROUNDS = 9
#: How much faster than in float32 a step in bfloat16 must be to be chosen: two measurements of the same step differ by
#: less than that, even where another process takes half of the processor.
GAIN = 1.15
#: How much faster than the way that was chosen before another one must be to take its place: far more than noise, so
#: that repeating a command gives the same numbers, and less than what is lost by a choice on a busy machine.
CLEARLY = 1.3


class Variant(NamedTuple):
    """A way to compute a step."""

    layout: str
    precision: str


def variants(layouts: Sequence[str], precision: str, device: torch.device) -> list[Variant]:
    """The ways that `precision` allows; for `auto` float32, and bfloat16 where there are instructions for it."""
    allowed = [precision]
    if precision == AUTO:
        allowed = [FLOAT32, BFLOAT16] if has_bfloat16(device) else [FLOAT32]
    return [Variant(layout, name) for name in allowed for layout in layouts]


def fastest(seconds: Mapping[Variant, float], before: Variant | None = None) -> Variant:
    """The fastest way; one in bfloat16 only if it is `GAIN` times as fast as all in float32.

    `before`, the way that was chosen earlier, is chosen again unless that one is `CLEARLY` faster.
    """
    best = min(seconds, key=lambda way: seconds[way] * (GAIN if way.precision == BFLOAT16 else 1))
    return before if before and before in seconds and seconds[before] < CLEARLY * seconds[best] else best


def seconds_per_step(
    model: nn.Module, batch: Batch, loss: Loss, ways: Sequence[Variant], device: torch.device, budget: float
) -> dict[Variant, float]:
    """Seconds of the fastest forward and backward pass by way, measured alternately, without the run's generators.

    After one warm-up step and one measured step of each way, it ends when `budget` seconds are over.

    The fastest step is used, not the median, since other processes can only add time.
    """
    times: dict[Variant, list[float]] = {way: [] for way in ways}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        layouts = {way.layout for way in ways}
        copies = {layout: copy.deepcopy(model).to(memory_format=FORMATS[layout]).train() for layout in layouts}
        images = {layout: batch.images.contiguous(memory_format=FORMATS[layout]) for layout in layouts}
        began = time.perf_counter()
        for number in range(1 + ROUNDS):
            for way in ways:
                network, seen = copies[way.layout], Batch(images[way.layout], batch.labels)
                times[way].append(timed_step(network, network, seen, loss, way.precision, device))
            if number == 0:
                began = time.perf_counter()
            elif time.perf_counter() - began > budget:
                break
    return {way: min(taken[1:]) for way, taken in times.items()}


def timed_step(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batch: Batch,
    loss: Loss,
    precision: str,
    device: torch.device,
) -> float:
    """Seconds of a forward and backward pass by `forward`, which is the network or what was compiled of it."""
    start = time.perf_counter()
    network.zero_grad(set_to_none=True)
    with computing_in(precision, device):
        logits = forward(batch.images)
    loss(logits.float(), batch).backward()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
