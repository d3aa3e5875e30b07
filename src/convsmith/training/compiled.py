"""Compiles the steps of a training by torch.compile, where that works and pays.

Only steps on images call what is compiled. Its weights are those of the plain network, which alone is evaluated,
hooked, saved and exported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convsmith import memory
from convsmith.config import RunConfig
from convsmith.contracts import Batch
from convsmith.data.dataset import Dataset
from convsmith.data.sampler import steps_per_epoch
from convsmith.errors import first_line
from convsmith.precision import FLOAT32
from convsmith.prediction.model_file import FORMATS
from convsmith.terminal import warn
from convsmith.training.config import AUTO, OFF
from convsmith.training.gather import first_images, image_epochs, recipe_of, to_last_phase
from convsmith.training.layout import timed_step
from convsmith.training.loss import Loss
from convsmith.transfer.unfreezing import Finetuning

BACKEND = "inductor"
ROUNDS = 5  # measured steps after the first one, which compiles
BATCHES = 2  # batches of an epoch have two sizes at most; each is compiled for itself, at each size of images
AUTO_MODES = ("default", "reduce-overhead")
#: A mode is tried by `auto` where plain steps take at least this many seconds in all: compiling takes about a tenth.
WORTH_TRYING = 600.0


class Trial(NamedTuple):
    """Seconds until the first step of a compiled network has ended, and of the fastest one after it."""

    warm_up: float
    step: float

    def total(self, steps: float, sizes: int = 1) -> float:
        """Seconds of steps on images of so many sizes; `steps` counts those on smaller ones by their pixels."""
        return BATCHES * sizes * self.warm_up + steps * self.step


class Compiled:
    """The compiled forward pass of a network; from a failure on the plain one, which is said once."""

    def __init__(self, model: nn.Module, mode: str) -> None:
        self._plain = model
        self._fast: Callable[[Tensor], Tensor] | None = _compile(model, mode)

    def __call__(self, images: Tensor) -> Tensor:
        if self._fast is not None:
            try:
                return self._fast(images)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
                    raise  # of the network itself, or of memory
                self._fast = None
                warn(_not_compiled(error))
        logits: Tensor = self._plain(images)
        return logits


def _compile(model: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    # Modes are those of inductor; batches of one size each are faster than those of any, and CUDA graphs need them.
    of_inductor = mode if BACKEND == "inductor" else None
    return torch.compile(model, backend=BACKEND, dynamic=False, mode=of_inductor)


def _not_compiled(error: Exception) -> str:
    reason = first_line(getattr(error, "inner_exception", error))
    return f"train.compile: the network cannot be compiled here, so it trains as it is ({reason})"


def attempt(
    model: nn.Module, batch: Batch, loss: Loss, mode: str, device: torch.device, precision: str = FLOAT32
) -> Trial:
    """Compile a copy of the model and take steps with it, forward and backward, without the run's generators."""
    network, times = copy.deepcopy(model).train(), []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            forward = _compile(network, mode)
            for _ in range(1 + ROUNDS):
                times.append(timed_step(network, forward, batch, loss, precision, device))
        finally:
            torch._dynamo.reset()  # gives back what CUDA graphs hold
    return Trial(times[0], min(times[1:]))


def fastest(plain: float, steps: float, trials: dict[str, Trial], sizes: int = 1) -> str:
    """The mode with the least time for all steps, its warm-up included; off where plain steps of this time win."""
    totals = {OFF: plain * steps} | {mode: trial.total(steps, sizes) for mode, trial in trials.items()}
    return min(totals, key=lambda mode: totals[mode])


def tried_modes(mode: str, device: torch.device, deterministic: bool, seconds: float) -> tuple[str, ...]:
    """The modes to try for a run whose plain steps on images take `seconds` in all.

    `auto` tries none on other devices than CUDA, in short runs, and where kernels must give the same bits each time,
    since inductor chooses some by measurement.
    """
    if mode != AUTO:
        return (mode,) if mode != OFF and seconds else ()
    return AUTO_MODES if device.type == "cuda" and not deterministic and seconds >= WORTH_TRYING else ()


def choose(
    config: RunConfig,
    dataset: Dataset,
    model: nn.Module,
    device: torch.device,
    finetuning: Finetuning | None,
    epoch: float,
) -> tuple[str, tuple[str, ...]]:
    """The mode for a run whose plain epochs of full-sized images take `epoch` seconds each, and sentences on it."""
    mode, train = config.train.compile, config.train
    each, last = steps_per_epoch(len(dataset.train), train.batch), image_epochs(config, finetuning)
    image_size = dataset.preprocessing().image_size
    epochs, sizes = train.full_sized(last, image_size), len(set(train.sizes_of_last(last, image_size)))
    if not (modes := tried_modes(mode, device, train.deterministic, epoch * epochs)):
        return OFF, ()
    to_last_phase(model, finetuning)
    model = model.to(device=device, memory_format=FORMATS[train.layout])  # type: ignore[call-overload]
    images = first_images(dataset, -(-len(dataset.train) // each), device).contiguous(
        memory_format=FORMATS[train.layout]
    )
    batch = Batch(images, torch.from_numpy(dataset.train.labels[: len(images)]).to(device))
    loss, trials, plain = recipe_of(config, dataset, device).loss, {}, epoch / each
    for tried in modes:
        try:
            trials[tried] = attempt(model, batch, loss, tried, device, train.precision)
        except Exception as error:
            reason = RuntimeError("memory ran out") if memory.ran_out(error) else error
            return OFF, (_not_compiled(reason),)
    if mode != AUTO:
        again = "kernels are chosen by measurement at each start, so a resumed run may differ in rounding"
        return mode, (f"train.compile {mode}: {again}",) if train.deterministic and device.type == "cuda" else ()
    found = fastest(plain, each * epochs, trials, sizes)
    measured = ", ".join(
        f"{name} {1e3 * trial.step:.1f} ms after {trial.warm_up:.0f} s" for name, trial in trials.items()
    )
    return found, (f"train.compile auto: {found}, of steps of {1e3 * plain:.1f} ms; {measured}",)
