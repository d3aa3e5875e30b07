"""Which way to compute a step is measured, chosen, remembered and written to the config; what old files mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from convsmith import precision
from convsmith.config import read_layer, read_run_config, validate
from convsmith.contracts import Batch
from convsmith.data.sources import ARRAYS, from_arrays
from convsmith.training import gather, layout, setup
from convsmith.training.layout import GAIN, Variant, fastest, seconds_per_step, variants
from convsmith.training.own import Parts

CPU = torch.device("cpu")
LAYOUTS = ("contiguous", "channels_last")
FIRST_EDITION = Path(__file__).parents[1] / "first_edition" / "finished" / "config.yaml"
PARTS = Parts(from_arrays(np.zeros((60, 8, 8), dtype=np.uint8), np.arange(60) % 2))


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> bool:
    """Whether the processor has bfloat16, as the test asks for it."""
    there: bool = getattr(request, "param", True)
    monkeypatch.setattr(precision, "_cpu_instructions", lambda: {"avx512_bf16"} if there else {"avx2"})
    return there


@pytest.mark.parametrize("capable", [True, False], indirect=True)
def test_auto_tries_bfloat16_only_where_there_are_instructions_for_it(capable: bool) -> None:
    plain = [Variant("contiguous", "float32"), Variant("channels_last", "float32")]
    rounded = [Variant(name, "bfloat16") for name in LAYOUTS]
    assert variants(LAYOUTS, "auto", CPU) == plain + rounded * capable
    assert variants(LAYOUTS, "float32", CPU) == plain
    assert variants(LAYOUTS[:1], "bfloat16", CPU) == [Variant("contiguous", "bfloat16")]


def test_bfloat16_must_be_faster_by_more_than_noise() -> None:
    slow, fast = (Variant(name, "float32") for name in LAYOUTS)
    rounded = Variant("channels_last", "bfloat16")
    assert fastest({slow: 1.2, fast: 1.0, rounded: 1.01 / GAIN}) == fast
    assert fastest({slow: 1.2, fast: 1.0, rounded: 0.99 / GAIN}) == rounded
    assert fastest({rounded: 1.0, Variant("contiguous", "bfloat16"): 0.9}).layout == "contiguous"


def test_each_way_is_measured_without_the_runs_generators() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(), nn.Flatten(), nn.Linear(72, 2))
    batch, kinds = Batch(torch.rand(2, 1, 8, 8), torch.tensor([0, 1])), []
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        kinds.append(logits.dtype)
        return logits.sum()

    ways = variants(LAYOUTS, "float32", CPU) + variants(LAYOUTS[1:], "bfloat16", CPU)
    found = seconds_per_step(model, batch, loss, ways, CPU, 0.0)
    assert list(found) == ways
    assert min(found.values()) > 0
    assert set(kinds) == {torch.float32}, "losses are of float32 in any case"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def prepared(cache: Path, times: dict[tuple[str, str], float], monkeypatch: pytest.MonkeyPatch, **train: Any) -> Any:
    """A training prepared on measured `times`, and the ways that were measured."""
    asked: list[Variant] = []

    def measured(model: Any, batch: Any, loss: Any, ways: Sequence[Variant], *_: Any) -> dict[Variant, float]:
        asked.extend(ways)
        return {way: times[way] for way in ways}

    monkeypatch.setattr(gather, "seconds_per_step", measured)
    monkeypatch.setattr(gather, "SMALL_STEP", 0)
    data = {"source": ARRAYS, "val_fraction": 0.2, "test_fraction": 0, "cache": str(cache)}
    return setup.prepare(validate({"data": data, "train": {"threads": 1, **train}}), PARTS), asked


TIMES = {(name, kind): 1.0 for name in LAYOUTS for kind in ("float32", "bfloat16")}


def test_what_is_chosen_is_in_the_config_and_chosen_again(
    capable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = TIMES | {("channels_last", "bfloat16"): 0.5}
    one, asked = prepared(tmp_path, times, monkeypatch)
    assert (one.config.train.layout, one.config.train.precision) == ("channels_last", "bfloat16")
    assert len(asked) == 4
    again, asked = prepared(tmp_path, TIMES | {("contiguous", "float32"): 0.8}, monkeypatch)
    assert again.config.train == one.config.train
    assert len(asked) == 4, "a look at each way, which also tells how long an epoch takes"
    monkeypatch.setattr(precision, "_cpu_instructions", lambda: {"avx2"})  # the same cache, another processor
    other, _ = prepared(tmp_path, times, monkeypatch)
    assert other.config.train.precision == "float32"


def test_a_choice_that_was_made_on_a_busy_machine_does_not_last(
    capable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, TIMES | {("contiguous", "bfloat16"): 0.5}, monkeypatch)
    times = TIMES | {("contiguous", "bfloat16"): 0.5, ("channels_last", "bfloat16"): 0.9 * 0.5 / layout.CLEARLY}
    found, asked = prepared(tmp_path, times, monkeypatch)
    assert found.config.train.layout == "channels_last"
    assert len(asked) == 8, "it is measured for longer before it takes the place of the other"
    assert prepared(tmp_path, times, monkeypatch)[0].config.train.layout == "channels_last"


def test_a_small_step_and_a_network_of_the_users_own_stay_in_float32(
    capable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Parts(PARTS.source, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    data = {"source": ARRAYS, "val_fraction": 0.2, "test_fraction": 0, "cache": str(tmp_path)}
    config = validate({"data": data, "train": {"threads": 1}})
    monkeypatch.setattr(layout, "GAIN", 0.001)
    assert setup.prepare(config, PARTS).config.train.precision == "float32"
    monkeypatch.setattr(gather, "SMALL_STEP", 0)
    assert setup.prepare(config, own).config.train.precision == "float32"
    assert setup.prepare(config, PARTS).config.train.precision == "bfloat16"


@pytest.mark.parametrize("capable", [False], indirect=True)
def test_bfloat16_without_instructions_is_said_to_be_slow(
    capable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = TIMES | {("contiguous", "bfloat16"): 2.6, ("channels_last", "bfloat16"): 2.5}
    found, asked = prepared(tmp_path, times, monkeypatch, precision="bfloat16")
    assert (found.config.train.layout, found.config.train.precision) == ("channels_last", "bfloat16")
    assert asked[-1] == Variant("channels_last", "float32")
    note = (
        "train.precision bfloat16: this cpu device has no instructions for it: a step takes 2.5 times as long as in "
        "float32, as measured"
    )
    assert note in found.notes
    auto, _ = prepared(tmp_path, times, monkeypatch)
    assert auto.config.train.precision == "float32"
    assert not any("precision" in note for note in auto.notes)


def test_a_config_of_before_means_float32(tmp_path: Path) -> None:
    assert "precision" not in read_layer(FIRST_EDITION)["train"]
    assert read_run_config(FIRST_EDITION).train.precision == "float32"
    complete = read_run_config(FIRST_EDITION).model_dump(mode="json")
    assert complete["train"].pop("precision") == "float32"
    assert validate(complete).train.precision == "float32"
    assert validate(complete).with_values(train={"epochs": 2}).train.precision == "float32"
    new = validate({**complete, "train": {"layout": "contiguous", "device": "cpu", "threads": 1}})
    assert new.train.precision == "auto", "a section that a person wrote"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(complete | {"train": complete["train"] | {"precision": "bfloat16"}}))
    assert read_run_config(path).train.precision == "bfloat16"
