"""A compiled training: the same numbers and files, one line where compiling fails, and the choice by time alone.

A backend of dynamo's own stands for inductor, which needs a C++ compiler and half a minute: `eager` runs the traced
operations as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convsmith.config import RunConfig, read_run_config, validate
from convsmith.contracts import Batch
from convsmith.data.sources import ARRAYS, from_arrays
from convsmith.runtime import Interrupts
from convsmith.training import checkpoint, compiled, loop, restore, setup
from convsmith.training.compiled import Compiled, Trial, fastest
from convsmith.training.experiment import Experiment
from convsmith.training.own import Parts

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch._dynamo.reset()


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


def config_of(**train: Any) -> RunConfig:
    given = {"epochs": 2, "batch_size": 8, "threads": 1, "layout": "contiguous", "log_every": 1, "ema": 0.9, **train}
    data = {"source": ARRAYS, "val_fraction": 0.2, "test_fraction": 0}
    return validate({"data": data, "train": given, "track": {"wandb": "off"}})


def parts() -> Parts:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    return Parts(from_arrays(images, np.arange(40) % 2), Small())


def started(config: RunConfig, folder: Path) -> Experiment:
    given = parts()
    return setup.start(setup.prepare(config, given), folder, parts=given)


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler")


def test_a_compiled_run_has_the_weights_and_files_of_a_plain_one(tmp_path: Path) -> None:
    plain, fast = (started(config_of(compile=mode), tmp_path / mode) for mode in ("off", "default"))
    for experiment in (plain, fast):
        list(loop.epochs(experiment, Interrupts()))
    assert plain.state.compiled is None
    assert isinstance(fast.state.compiled, Compiled)
    assert fast.state.compiled._fast is not None, "it was used to the end"
    ours, theirs = (checkpoint.read_newest(experiment.run.checkpoints)[0] for experiment in (plain, fast))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    sizes = [(experiment.run.model / "model.safetensors").stat().st_size for experiment in (plain, fast)]
    assert sizes[0] == sizes[1]
    assert read_run_config(fast.run.config).train.compile == "default"


def test_a_compiled_run_resumes_exactly(tmp_path: Path) -> None:
    whole, cut = (started(config_of(compile="default"), tmp_path / name) for name in ("whole", "cut"))
    list(loop.epochs(whole, Interrupts()))
    events = loop.epochs(cut, Interrupts())
    while cut.state.epoch == 0:
        next(events)
    events.close()
    resumed = restore.resume(cut.run, parts())
    assert resumed.state.epoch == 1
    list(loop.epochs(resumed, Interrupts()))
    expected = whole.state.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state.tensors().items())


def test_what_cannot_be_compiled_trains_as_it_is_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", broken)
    experiment = started(config_of(compile="reduce-overhead", epochs=1), tmp_path)
    (note,) = (note for note in experiment.notes if note.startswith("train.compile"))
    assert note.startswith("train.compile: the network cannot be compiled here, so it trains as it is (")
    assert "no compiler" in note
    assert "\n" not in note
    assert read_run_config(experiment.run.config).train.compile == "off"
    list(loop.epochs(experiment, Interrupts()))
    assert experiment.state.epoch == 1


def test_a_failure_in_the_run_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compiled, "BACKEND", broken)
    network, images = Small(), torch.randn(4, 1, 6, 6)
    expected = network(images)
    forward = Compiled(network, "default")
    for _ in range(2):
        assert torch.equal(forward(images), expected)
    assert len([record for record in caplog.records if record.name == "convsmith"]) == 1


def test_an_error_of_the_network_is_its_own() -> None:
    class Wrong(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ValueError("my own mistake")

    with pytest.raises(ValueError, match="my own mistake"):
        Compiled(Wrong(), "default")(torch.zeros(1))


def test_a_trial_changes_neither_weights_nor_random_numbers() -> None:
    network = nn.Sequential(Small(), nn.Dropout(0.5))
    batch = Batch(torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 0, 1]))
    before = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    trial = compiled.attempt(network, batch, lambda logits, batch: logits.sum(), "default", CPU)
    assert trial.warm_up > trial.step > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("steps", "trials", "expected"),
    [
        (10_000, {"default": Trial(30, 0.003)}, "default"),  # 90 s for 100 s
        (10_000, {"default": Trial(30, 0.005)}, "off"),
        (10_000, {"default": Trial(10, 0.008), "reduce-overhead": Trial(20, 0.002)}, "reduce-overhead"),
        (100, {"default": Trial(10, 0.001)}, "off"),
    ],
)
def test_the_warm_up_counts(steps: int, trials: dict[str, Trial], expected: str) -> None:
    assert fastest(0.01, steps, trials) == expected


@pytest.mark.parametrize(
    ("mode", "device", "deterministic", "seconds", "tried"),
    [
        ("auto", "cuda", False, 600, ("default", "reduce-overhead")),
        ("auto", "cuda", False, 599, ()),
        ("auto", "cuda", True, 1e6, ()),
        ("auto", "cpu", False, 1e6, ()),
        ("auto", "mps", False, 1e6, ()),
        ("off", "cuda", False, 1e6, ()),
        ("max-autotune", "cpu", True, 1, ("max-autotune",)),
        ("max-autotune", "cpu", True, 0, ()),  # no epoch trains on images
    ],
)
def test_auto_tries_long_runs_on_cuda_alone(
    mode: str, device: str, deterministic: bool, seconds: float, tried: tuple[str, ...]
) -> None:
    assert compiled.tried_modes(mode, torch.device(device), deterministic, seconds) == tried


def test_auto_takes_the_fastest_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup.prepare(config_of(epochs=10), given := parts())
    trials = {"default": Trial(1.0, 2.0), "reduce-overhead": Trial(30.0, 0.1)}
    monkeypatch.setattr(compiled, "tried_modes", lambda *_: tuple(trials))
    monkeypatch.setattr(compiled, "attempt", lambda model, batch, loss, mode, *_: trials[mode])
    config = prepared.config.with_values(train={"compile": "auto"})
    for epoch, expected in ((4 * 4.0, "reduce-overhead"), (4 * 1.5, "off")):
        mode, said = compiled.choose(config, prepared.dataset, given.module, CPU, None, epoch)
        assert mode == expected
        measured = "default 2000.0 ms after 1 s, reduce-overhead 100.0 ms after 30 s"
        assert said == (f"train.compile auto: {expected}, of steps of {epoch / 4 * 1000:.1f} ms; {measured}",)


def test_epochs_of_small_images_pay_less_and_are_compiled_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = {"default": Trial(1.0, 0.005)}  # saves 5 ms a step, after 2 s
    assert fastest(0.01, 500, trials) == "default"
    assert fastest(0.01, 500, trials, sizes=2) == "off"
    tried: list[float] = []

    def seconds_of(*given: Any) -> tuple[str, ...]:
        tried.append(given[-1])
        return ("default",)

    prepared = setup.prepare(config_of(epochs=4), given := parts())
    config = prepared.config.with_values(train={"compile": "auto", "sizes": [[4, 0.5]]})
    monkeypatch.setattr(compiled, "tried_modes", seconds_of)
    shares = 2 + 2 * (4 / 6) ** 2  # of full-sized epochs, as many as have the pixels of all four
    for warm_up, expected in ((0.9, "default"), (1.1, "off")):  # the whole saving, of two sizes of two batches each
        warm_up *= 10.0 * shares / 2 / (2 * 2)
        monkeypatch.setattr(compiled, "attempt", lambda *_, fixed=warm_up: Trial(fixed, 10.0 / 4 / 2))
        assert compiled.choose(config, prepared.dataset, given.module, CPU, None, 10.0)[0] == expected
    assert tried == [pytest.approx(10.0 * shares)] * 2


def test_memory_that_runs_out_in_a_trial_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> Trial:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(compiled, "attempt", run_out)
    notes = setup.prepare(config_of(compile="default"), parts()).notes
    assert "train.compile: the network cannot be compiled here, so it trains as it is (memory ran out)" in notes


def test_a_run_from_before_there_was_the_key_is_not_compiled(tmp_path: Path) -> None:
    experiment = started(config_of(), tmp_path)
    text = experiment.run.config.read_text()
    assert "  compile: 'off'\n" in text
    experiment.run.config.write_text(text.replace("  compile: 'off'\n", ""))
    resumed = restore.resume(experiment.run, parts())
    assert resumed.config.train.compile == "off"
    assert resumed.state.compiled is None
    assert not resumed.notes
