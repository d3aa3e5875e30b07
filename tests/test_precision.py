"""Precisions: what a device has instructions for, what an autocast changes and what it leaves, and resuming in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convsmith import precision
from convsmith.config import RunConfig, read_run_config, validate
from convsmith.contracts import Batch
from convsmith.data.sources import ARRAYS, from_arrays
from convsmith.errors import UserError
from convsmith.events import EpochEnd
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.optim.config import OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.precision import computing_in, has_bfloat16, refuse_unfit_device
from convsmith.runtime import Interrupts
from convsmith.training import restore, setup
from convsmith.training.config import TrainConfig
from convsmith.training.experiment import Experiment
from convsmith.training.loop import epochs
from convsmith.training.loss import build_loss
from convsmith.training.own import Parts
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe, step

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "num_sockets": 1}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "architecture": "arm64"}, False),
    ],
)
def test_a_processor_has_bfloat16_if_torch_says_so(
    instructions: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert has_bfloat16(CPU) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/cpuinfo is of Linux")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell what a processor has")
def test_an_older_torch_leaves_the_answer_to_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {name for name in precision._CPU_INSTRUCTIONS if torch.cpu.get_capabilities().get(name)}
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision._cpu_instructions() & set(precision._CPU_INSTRUCTIONS) == told


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cards_since_ampere_have_bfloat16(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bfloat16(torch.device("cuda")) is expected
    assert not has_bfloat16(torch.device("mps"))


def test_float16_is_for_cuda_alone(tmp_path: Path) -> None:
    refuse_unfit_device("float16", torch.device("cuda"))
    refuse_unfit_device("bfloat16", CPU)
    message = (
        "train.precision float16 needs a CUDA device, but this training would compute on 'cpu': set train.precision "
        "to auto, float32 or bfloat16"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        setup.prepare(config_of("float16"), PARTS)


def test_products_compute_in_it_and_nothing_else_does() -> None:
    one = torch.randn(4, 4)
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        with computing_in(name, CPU):
            assert (one @ one).dtype is kind
            assert (one + one).dtype is torch.float32
    assert (one @ one).dtype is torch.float32


def state_of(optimizer: str = "adam") -> TrainState:
    torch.manual_seed(0)
    model = build(ModelConfig(), 3, 8, 3)
    made = keep_base_rates(
        build_optimizer(parameter_groups(model), OptimConfig(name=optimizer), RegularizeConfig(), CPU)
    )
    return new_state(model, made, Schedule(ScheduleConfig(), 5, 2), TrainConfig(ema=0.9), CPU)


def stepped(name: str, features: bool = False) -> TrainState:
    state, recipe = state_of(), Recipe(build_loss(TrainConfig(), 0.0, None), RegularizeConfig(clip_norm=1), name)
    inputs = torch.rand(16, 200) if features else torch.rand(16, 3, 8, 8)
    step(state, Batch(inputs, torch.arange(16) % 3, rest=state.model.head if features else None), recipe)
    return state


def test_a_step_in_bfloat16_keeps_all_that_lasts_in_float32_and_near_it() -> None:
    exact, rounded = stepped("float32").tensors(), stepped("bfloat16").tensors()
    assert {name: value.dtype for name, value in exact.items()} == {
        name: value.dtype for name, value in rounded.items()
    }
    assert not torch.equal(exact["model.blocks.0.norm.running_var"], rounded["model.blocks.0.norm.running_var"])
    for name in exact:
        if "running" in name or name.endswith("exp_avg"):  # gradients lose more to cancellation
            most = (0.02 if "running" in name else 0.3) * torch.linalg.norm(exact[name])
            assert torch.linalg.norm(exact[name] - rounded[name]) < most, name
    assert exact["counts.loss"] == pytest.approx(float(rounded["counts.loss"]), rel=0.01)


def test_a_head_on_kept_features_stays_in_float32() -> None:
    exact, same = stepped("float32", features=True).tensors(), stepped("bfloat16", features=True).tensors()
    assert all(torch.equal(exact[name], same[name]) for name in exact)


def test_the_scaling_of_losses_goes_into_a_checkpoint_and_back() -> None:
    """As on CUDA in float16; torch scales on the CPU as well, where we have no use for it."""

    def scaled() -> TrainState:
        state = state_of("sgd")
        state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        return state

    def steps(state: TrainState, count: int) -> dict[str, torch.Tensor]:
        recipe = Recipe(build_loss(TrainConfig(), 0.0, None), RegularizeConfig())
        for _ in range(count):
            step(state, Batch(torch.ones(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])), recipe)
        return {name: value.clone() for name, value in state.tensors().items()}

    resumed, whole, cut = scaled(), scaled(), scaled()
    torch.manual_seed(1)
    expected = steps(whole, 4)
    assert whole.metadata()["scaling"] == {"factor": 16.0, "good_steps": 1}
    torch.manual_seed(1)
    kept = steps(cut, 2)
    assert cut.metadata()["scaling"] == {"factor": 8.0, "good_steps": 2}
    resumed.load(kept, cut.metadata())
    found = steps(resumed, 2)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed.metadata()["scaling"] == whole.metadata()["scaling"]
    plain = state_of("sgd")
    assert plain.metadata()["scaling"] is None
    plain.load(kept, cut.metadata())  # where config.yaml was changed to another precision
    assert plain.metadata()["scaling"] is None


PARTS = Parts(from_arrays(np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2))


def config_of(name: str) -> RunConfig:
    train = {"epochs": 2, "batch_size": 8, "threads": 1, "layout": "channels_last", "precision": name, "log_every": 2}
    data = {"source": ARRAYS, "val_fraction": 0.2, "test_fraction": 0}
    regularize, model = {"clip_norm": 1}, {"dropout": 0.2}
    return validate(
        {"data": data, "train": train | {"ema": 0.9}, "model": model, "regularize": regularize}
        | {"track": {"wandb": "off"}, "augment": {"hflip": True, "mixup": 0.2}}
    )


def steps_of(experiment: Experiment, count: int | None = None) -> Iterator[Any]:
    for event in epochs(experiment, Interrupts()):
        yield event
        if count is not None and not isinstance(event, EpochEnd) and experiment.state.step >= count:
            return


def test_a_run_in_bfloat16_resumes_exactly_and_says_where_it_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("bfloat16").with_values(train={"checkpoint_minutes": 0})
    whole = setup.start(setup.prepare(config, PARTS), tmp_path / "whole", "run", PARTS)
    list(steps_of(whole))
    cut = setup.start(setup.prepare(config, PARTS), tmp_path / "cut", "run", PARTS)
    list(steps_of(cut, 8))  # in the second epoch
    assert read_run_config(cut.run.config).train.precision == "bfloat16"
    with monkeypatch.context() as patched:  # as on a processor without AVX512-BF16
        patched.setattr(restore, "has_bfloat16", lambda device: False)
        notes = [note for note in restore.resume(cut.run, PARTS).notes if "bfloat16" in note]
    assert notes == [
        "train.precision bfloat16: this cpu device has no instructions for it: the run goes on in it, more slowly than "
        "in float32"
    ]
    monkeypatch.setattr(restore, "has_bfloat16", lambda device: True)
    resumed = restore.resume(cut.run, PARTS)
    assert not resumed.notes
    assert resumed.state.step == 8
    assert resumed.recipe.precision == "bfloat16"
    list(steps_of(resumed))
    expected, found = whole.state.tensors(), resumed.state.tensors()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
