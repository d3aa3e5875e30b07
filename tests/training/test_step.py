"""One step as a whole, its augmentation included: nothing in it waits for the device.

The device is `meta`, whose tensors have no values: asking for one, as .item(), .cpu(), bool(), nonzero() and an index
of bools do, raises. Copies to the device, which would wait on CUDA, are noticed by two modes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convsmith.contracts import Batch
from convsmith.data.ahead import sent
from convsmith.data.augment import Augment
from convsmith.data.config import AugmentConfig, Preprocessing
from convsmith.data.preprocess import ToInput
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.optim.config import OPTIMIZERS, OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.training.config import TrainConfig
from convsmith.training.loss import build_loss
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe, step

META = torch.device("meta")
CLASSES = 4
EVERYTHING = {
    "hflip": True,
    "shift": 2,
    "cutout": 3,
    "rotation": 20,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "random_resized_crop": 0.4,
}


class _Copies(TorchDispatchMode):
    """Raises where a tensor of the host is copied to the device and the copy is waited for."""

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        if operation is torch.ops.aten._to_copy.default:
            crosses = args[0].device != result.device
            assert not crosses or (kwargs or {}).get("non_blocking"), f"a copy of {list(args[0].shape)} is waited for"
        elif operation is torch.ops.aten.copy_.default:
            assert args[0].device == args[1].device, f"a copy of {list(args[1].shape)} is waited for"
        return result


class _Constants(TorchFunctionMode):
    """Raises where values of Python become a tensor on the device, which takes such a copy."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor):
            assert not result.is_meta, f"{function.__name__} makes a tensor on the device of {args[0]!r}"
        return result


@contextmanager
def nothing_waits() -> Iterator[None]:
    with _Copies(), _Constants():
        yield


@pytest.mark.parametrize(
    "waits",
    [
        lambda: torch.ones(3, device=META).sum().item(),
        lambda: bool(torch.ones((), device=META) > 0),
        lambda: torch.ones(3, device=META).cpu(),
        lambda: torch.ones(3, device=META).nonzero(),
        lambda: torch.ones(3, device=META)[torch.ones(3, dtype=torch.bool, device=META)],
        lambda: torch.ones(3).to(META),
        lambda: torch.ones(3, device=META).copy_(torch.ones(3)),
        lambda: torch.tensor([1.0, 2.0], device=META),
    ],
)
def test_what_waits_is_noticed(waits: Any) -> None:
    with nothing_waits(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        waits()


def test_what_is_sent_is_not_waited_for() -> None:
    with nothing_waits():
        assert sent(np.arange(3), META).is_meta
    assert sent(np.arange(3), torch.device("cpu")).tolist() == [0, 1, 2]


def state_of(config: TrainConfig, optim: OptimConfig, regularize: RegularizeConfig, model: nn.Module) -> TrainState:
    """A state on the device; its generator is of the host, since there is none of meta."""
    optimizer = keep_base_rates(build_optimizer(parameter_groups(model), optim, regularize, META))
    schedule = Schedule(ScheduleConfig(name="cosine", warmup_epochs=1), 3, 2)
    state = new_state(model, optimizer, schedule, config, torch.device("cpu"))
    state.metrics = type(state.metrics)(META)
    return state


def to_input() -> ToInput:
    seen = {"image_size": 16, "working_size": 20, "channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    seen |= {"resize": "stretch", "interpolation": "bilinear", "background": "white"}
    return ToInput(Preprocessing(**seen), META)


@pytest.mark.parametrize(
    "mixing", [{"mixup": 0.2}, {"cutmix": 1.0, "trivial": True}, {"mixup": 0.2, "cutmix": 1.0, "rand_ops": 2}]
)
@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_no_augmentation_and_no_loss_waits(mixing: dict[str, float], loss: str) -> None:
    config = TrainConfig(loss=loss, ema=0.9)
    regularize = RegularizeConfig(l1=0.1, l2=0.1, l2_mode="decoupled", clip_norm=1.0)
    augment = Augment(AugmentConfig(**EVERYTHING, **mixing), to_input())
    state = state_of(config, OptimConfig(name="sgd"), regularize, build(ModelConfig(), 3, 16, CLASSES).to(META))
    recipe = Recipe(build_loss(config, 0.1, torch.ones(CLASSES, device=META)), regularize)
    pixels = torch.zeros(8, 20, 20, 3, dtype=torch.uint8, device=META)
    labels = torch.zeros(8, dtype=torch.int64, device=META)
    with nothing_waits():
        for number in range(8):
            batch = augment(pixels, labels, state.generator, [0, 0, number])
            assert batch.images.is_meta
            step(state, batch, recipe)
    assert state.step == 8


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("penalties", [{"l2_mode": "coupled"}, {"l2_mode": "decoupled", "l1_mode": "proximal"}])
def test_no_optimiser_and_no_penalty_waits(name: str, penalties: dict[str, str]) -> None:
    regularize = RegularizeConfig(l1=0.1, l2=0.1, clip_norm=1.0, **penalties)
    config = TrainConfig(ema=0.9)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, CLASSES)).to(META)
    state = state_of(config, OptimConfig(name=name, bias_lr_factor=2), regularize, model)
    batch = Batch(torch.zeros(8, 3, 4, 4, device=META), torch.zeros(8, dtype=torch.int64, device=META))
    with nothing_waits():
        for _ in range(3):
            step(state, batch, Recipe(build_loss(config, 0.0, None), regularize))
    assert state.step == 3


def test_a_step_on_kept_features_waits_for_nothing() -> None:
    config, regularize = TrainConfig(), RegularizeConfig()
    model = build(ModelConfig(), 3, 16, CLASSES).to(META)
    state = state_of(config, OptimConfig(), regularize, model)
    width = next(parameter.shape[1] for parameter in model.head.parameters() if parameter.ndim == 2)
    labels = torch.zeros(8, dtype=torch.int64, device=META)
    with nothing_waits():
        batch = Batch(torch.zeros(8, width, device=META), labels, rest=model.head)
        step(state, batch, Recipe(build_loss(config, 0.0, None), regularize))
    assert state.step == 1
