"""The batch size that fits, what a training is told of its memory, and what is kept where memory runs out."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith import memory, modelsummary
from convsmith.config import RunConfig, read_run_config, validate
from convsmith.data.sources import ARRAYS, Source, from_arrays
from convsmith.errors import OutOfMemory, RunFailed, UserError
from convsmith.nets.shapes import trace
from convsmith.run import Run
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies import ablation, worker
from convsmith.studies.config import StudyConfig
from convsmith.studies.lr_find import lr_find
from convsmith.tracking import csv
from convsmith.training import footprint, loop, restore, setup
from convsmith.training.config import TrainConfig
from convsmith.training.own import Parts
from convsmith.training.resolve import SIZES, Facts, resolve


def source() -> Source:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    return from_arrays(images, np.arange(40) % 2)


PARTS = Parts(source())
CPU = torch.device("cpu")


def config_of(**train: Any) -> RunConfig:
    given = {"epochs": 2, "threads": 1, "layout": "contiguous", **train}
    data = {"source": ARRAYS, "val_fraction": 0.2, "test_fraction": 0}
    return validate({"data": data, "train": given, "track": {"wandb": "off"}})


@given(st.sampled_from([16, 32, 128]), st.integers(0, 200))
def test_the_largest_half_that_fits_is_taken(largest: int, room: int) -> None:
    tried: list[int] = []
    size = footprint.halved(largest, lambda size: tried.append(size) or size <= room)  # type: ignore[func-returns-value]
    assert size >= footprint.SMALLEST
    assert size == largest or 2 * size > room or size == footprint.SMALLEST
    assert size <= max(room, footprint.SMALLEST)
    assert tried == sorted(tried, reverse=True), "no larger one is tried after a smaller one"


@pytest.mark.parametrize("room", [1e12, 30e6, 1e6])
def test_the_recorded_number_fits_into_half_of_what_is_available(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: int(room))
    monkeypatch.setattr(footprint, "against_available", lambda *_: ())
    prepared = setup.prepare(config_of(batch_size="auto"), PARTS)
    size, layers = prepared.config.train.batch, trace(prepared.model, 1, 8)

    def fits(size: int) -> bool:
        config = prepared.config.with_values(train={"batch_size": size})
        return footprint.needs(config, layers, None).memory <= room / 2

    assert fits(size) or size == footprint.SMALLEST
    assert size == TrainConfig().batch_size or not fits(2 * size)
    assert f"batch_size: {size}\n" in prepared.config.to_yaml()
    (note,) = (note for note in prepared.notes if note.startswith("train.batch_size auto"))
    assert note.startswith(f"train.batch_size auto: {size}, ")
    assert ("the default:" in note) == (size == TrainConfig().batch_size)


def test_the_default_is_that_of_the_run() -> None:
    """With pretrained weights the default depends on the number of images, and auto starts from it."""
    data = setup.prepare(config_of(), PARTS).config.data
    auto = validate({"train": {"batch_size": "auto"}, "transfer": {"weights": "default"}})
    few = Facts(data=data, train_images=100, val_images=10, device="cpu", threads=1)
    assert resolve(auto, few).train.batch == SIZES[0][1]
    assert resolve(validate({"train": {"batch_size": "auto"}}), few).train.batch == TrainConfig().batch_size


def test_an_accelerator_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, tried = setup.prepare(config_of(), PARTS), []

    def fits(size: int, *_: Any) -> bool:
        tried.append(size)
        return size <= 20

    monkeypatch.setattr(footprint, "_step_fits", fits)
    layers, device = trace(prepared.model, 1, 8), torch.device("mps")
    size, why = footprint.fitting_batch(prepared.config, layers, None, prepared.dataset, prepared.model, device)
    assert (size, tried) == (16, [128, 64, 32, 16])
    assert why == (
        "train.batch_size auto: 16, lowered from the default of 128 until it fits: a step fits into the memory of this "
        "mps device"
    )


def test_a_step_that_is_tried_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup.prepare(config_of(), PARTS)
    before = torch.get_rng_state(), {name: value.clone() for name, value in prepared.model.state_dict().items()}
    given = prepared.config, prepared.dataset, prepared.model, CPU
    assert footprint._step_fits(4, *given)

    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(footprint, "seconds_per_step", run_out)
    assert not footprint._step_fits(4, *given)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in prepared.model.state_dict().items())


def test_errors_of_the_network_are_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup.prepare(config_of(), PARTS)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(footprint, "seconds_per_step", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        footprint._step_fits(4, prepared.config, prepared.dataset, prepared.model, CPU)


def test_what_cannot_fit_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 25_000_000)
    with pytest.raises(UserError) as refused:
        setup.prepare(config_of().with_values(data={"image_size": 64}), PARTS)
    assert str(refused.value).startswith("this training needs at least 47 MB of memory, but 25 MB are available: ")
    assert "lower one of train.batch_size 128, data.image_size 64 and model.name simple-cnn " in str(refused.value)
    assert "(train.batch_size auto finds a batch size that fits)" in str(refused.value)


def test_what_may_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    assert not any("memory" in note for note in setup.prepare(config, PARTS).notes)
    expected = setup.prepare(config, PARTS)
    needed = footprint.needs(expected.config, trace(expected.model, 1, 8), None).memory
    monkeypatch.setattr(memory, "available", lambda: needed - 1)
    (note,) = (note for note in setup.prepare(config, PARTS).notes if "memory" in note)
    assert note.startswith("this training may run out of memory: it is expected to need about ")


def test_memory_that_runs_out_in_a_step_costs_that_step_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = loop.step, []

    def step(*given: Any) -> None:
        steps.append(given)
        if len(steps) == 5:
            torch.empty(10**15)
        real(*given)

    monkeypatch.setattr(loop, "step", step)
    with pytest.raises(RunFailed) as failed:
        trained(config_of(batch_size=8), tmp_path / "cut")
    (directory,) = (RunDir(path) for path in (tmp_path / "cut").iterdir())
    assert str(failed.value) == (
        f"memory ran out in run '{directory.path}': train.batch_size 8, data.image_size 8 and model.name simple-cnn "
        "are in force; the last checkpoint is kept: end other programs, or lower train.batch_size in "
        f"'{directory.config}', and resume"
    )
    assert restore.resume(directory, PARTS).state.step == 4, "the epoch before is complete"
    assert len(csv.read(directory.metrics)) == 1


def trained(config: RunConfig, folder: Path) -> RunDir:
    experiment = setup.start(setup.prepare(config, PARTS), folder, parts=PARTS)
    list(loop.epochs(experiment, Interrupts()))
    return experiment.run


FAILING = (
    "prediction.evaluate.logits_of",
    "prediction.predictor.logits_of",
    "prediction.predictor.load_model",
    "explain.context.logits_of",
    "report.run.read_inputs",
    "export.logits_of",
    "modelsummary.trace",
    "studies.lr_find.range_test",
)


def test_other_verbs_tell_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(trained(config_of(batch_size=32, epochs=1), tmp_path).path, PARTS, "cpu")

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    # All are imported before one of them is patched: an import would bind what is patched for good.
    patched = [import_module(f"convsmith.{where.rpartition('.')[0]}") for where in FAILING]
    assert run.predictor, "loaded before loading fails"
    for module, where in zip(patched, FAILING, strict=True):
        monkeypatch.setattr(module, where.rpartition(".")[2], fail)
    for what, call in (
        ("in the evaluation", lambda: run.evaluate()),
        ("in batches of 1 image of 8 x 8 pixels", lambda: run.predict(np.zeros((8, 8), np.uint8))),
        ("while the model was loaded", lambda: Run(run.directory, PARTS, "cpu").predictor),
        ("in the explanation|while the model was loaded", lambda: run.explain(show=False)),
        ("in the export|while the model was loaded", lambda: run.export("onnx")),
        ("in the report", lambda: run.report(show=False)),
        ("while the network was built", lambda: modelsummary.of_run(run.directory)),
        ("in the range test", lambda: lr_find(config_of(), PARTS, runs_dir=tmp_path)),
    ):
        with pytest.raises(OutOfMemory, match=f"^memory ran out ({what}): "):
            call()


def test_arms_share_the_batch_size_that_fits_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitting(config: RunConfig, *_: Any) -> tuple[int, str]:
        return (8 if config.model.hidden else 32), "a sentence"

    monkeypatch.setattr(footprint, "fitting_batch", fitting)
    monkeypatch.setattr("convsmith.studies.backends.run_folds", lambda *_: {})
    base = config_of(batch_size="auto").model_dump(mode="json", exclude_unset=True)
    arms = {"wide": {"model.hidden": [300]}, "four": {"train.batch_size": 4}, "gelu": {"model.activation": "gelu"}}
    told: list[Any] = []
    study = StudyConfig(base=base, arms=arms, folds=2)
    result = ablation.ablate(study, None, PARTS, name="study", runs_dir=tmp_path, listener=told.append)
    sizes = {
        arm: read_run_config(result.directory / "arms" / arm / "config.yaml").train.batch_size
        for arm in ("base", *arms)
    }
    assert sizes == {"base": 8, "wide": 8, "gelu": 8, "four": 4}
    texts = [note.text for note in told if hasattr(note, "text")]
    assert "train.batch_size auto: 8, with which each of these arms fits: base, wide, gelu" in texts


def test_a_run_of_a_study_that_runs_out_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an answer, so that the study goes on; without it the worker would die, and be started again in vain."""

    def fail(*_: Any) -> Any:
        torch.empty(10**15)
        yield {}

    monkeypatch.setitem(worker.KINDS, "fold", fail)
    (answer,) = worker.perform({"kind": "fold"}, Interrupts())
    assert answer["failed"].startswith("memory ran out in this run of the study: ")


def test_on_an_accelerator_the_advice_names_the_precision() -> None:
    config = config_of(device="cuda", precision="float32")
    advice = ", set train.precision bfloat16 instead of float32"
    assert footprint.fix(config) == (
        "lower one of train.batch_size 128 and model.name simple-cnn (train.batch_size auto finds a batch size that "
        f"fits){advice}, or end other programs"
    )
    assert footprint.halving(config) == advice
    for train in ({"device": "cpu", "precision": "float32"}, {"device": "cuda", "precision": "bfloat16"}):
        assert footprint.halving(config_of(**train)) == ""


def test_a_batch_on_cuda_must_leave_room_for_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of a measured step and the optimiser's state, against 90% of what the card has left."""
    prepared = setup.prepare(config_of(), PARTS)
    state = 2 * sum(value.nbytes for value in prepared.model.parameters())
    monkeypatch.setattr(footprint, "first_images", lambda dataset, count, device: torch.zeros(count, 1, 8, 8))
    monkeypatch.setattr(footprint, "seconds_per_step", lambda *_, **__: {})
    monkeypatch.setattr(footprint, "recipe_of", lambda *_: type("Recipe", (), {"loss": None}))
    monkeypatch.setattr(footprint, "variants", lambda *_: [None])
    monkeypatch.setattr(prepared.model, "to", lambda device: prepared.model)
    zeros, peak = torch.zeros, 100 * 10**6
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **kind: zeros(*shape, **kind))
    for name, value in {
        "reset_peak_memory_stats": None,
        "memory_allocated": 10**6,
        "max_memory_allocated": peak + 10**6,
        "memory_reserved": 10**6,
        "empty_cache": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    for free, fits in ((peak + state, False), (int((peak + state) / 0.9) + 1, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**10))
        given = prepared.config, prepared.dataset, prepared.model, torch.device("cuda")
        assert footprint._step_fits(64, *given) is fits
