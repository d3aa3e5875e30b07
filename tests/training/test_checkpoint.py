"""Every byte counts: what is damaged is refused, and a crash at any call leaves a whole checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from convsmith.errors import UserError
from convsmith.nets.tensors import checksum
from convsmith.training import checkpoint
from convsmith.training.checkpoint import DamagedCheckpointError


def facts_at(step: int) -> dict[str, Any]:
    stopper = {"monitor": "val_loss", "patience": None, "min_delta": 0.0, "best": 0.5, "best_epoch": 0}
    return {
        "epoch": 0,
        "position": 0,
        "step": step,
        "seconds": 0.5,
        "total_seconds": 1.5,
        "rates": [0.1],
        "phase": 0,
        "schedule": {"factor": 1.0, "best": None, "bad_epochs": 0},
        "stopper": stopper | {"reference": None, "bad_epochs": 0},
        "config": {"data": {"source": "digits"}},
    }


def write(folder: Path, step: int, best: bool = False) -> None:
    checkpoint.write(folder, {"weight": torch.full((50,), float(step))}, facts_at(step), best)


def newest(folder: Path) -> tuple[int, str | None]:
    _, facts, remark = checkpoint.read_newest(folder)
    return facts["step"], remark


def test_any_flipped_byte_or_cut_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = tmp_path / "last.safetensors"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        try:
            tensors, facts = checkpoint.read(path)
        except DamagedCheckpointError:
            continue
        # A byte of padding or of the unchecked format tag: then all that matters is what it was.
        assert facts["step"] == 1
        assert torch.equal(tensors["weight"], torch.ones(50))
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError, match=r"last\.safetensors"):
            checkpoint.read(path)


def test_newest_sound_one_is_read_and_the_fallback_is_said(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, best=True)
    write(tmp_path, 3)
    assert newest(tmp_path) == (3, None)
    assert checkpoint.read(tmp_path / "best.safetensors")[1]["step"] == 2
    (tmp_path / "last.safetensors").write_bytes(b"nothing")
    _, facts, remark = checkpoint.read_newest(tmp_path)
    assert facts["step"] == 2
    assert "so the one before is used" in str(remark)
    (tmp_path / "previous.safetensors").unlink()
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoint.read_newest(tmp_path)


def write_raw(path: Path, facts: str, **header: str) -> None:
    """A checkpoint whose checksum is right, whatever it says."""
    tensors = {"weight": torch.ones(3)}
    save_file(tensors, path, {"facts": facts, "format_version": "2", "sha256": checksum(tensors, facts)} | header)


@pytest.mark.parametrize("value", [-1, True, "1", 1.5, None, [], {}, float("nan"), 10**30, [[1]], {"a": {"b": 1}}])
@pytest.mark.parametrize(
    "key", [*facts_at(1), "own_optimizer", "stopper.best_epoch", "stopper.monitor", "schedule.best"]
)
def test_facts_of_odd_types_are_damage(tmp_path: Path, key: str, value: Any) -> None:
    """The few values that are as good as any are read as they are."""
    facts = facts_at(1)
    section, _, inner = key.rpartition(".")
    (facts[section] if section else facts)[inner] = value
    write_raw(tmp_path / "last.safetensors", json.dumps(facts))
    good = {"own_optimizer": (None, []), "seconds": (1.5,), "total_seconds": (1.5,), "schedule.best": (-1, 1.5, None)}
    good["config"] = ({}, {"a": {"b": 1}})
    if not isinstance(value, bool) and any(value == other for other in good.get(key, ())):
        assert checkpoint.read(tmp_path / "last.safetensors")[1] == facts | {"format_version": 2}
        return
    with pytest.raises(DamagedCheckpointError, match=r"last\.safetensors: ") as caught:
        checkpoint.read(tmp_path / "last.safetensors")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", facts_at(1))
def test_a_fact_that_is_missing_is_damage(tmp_path: Path, key: str) -> None:
    facts = facts_at(1)
    del facts[key]
    write_raw(tmp_path / "last.safetensors", json.dumps(facts))
    if key == "config":  # which the first edition did not always write
        assert "config" not in checkpoint.read(tmp_path / "last.safetensors")[1]
        return
    with pytest.raises(DamagedCheckpointError, match=f"{key}: Field required"):
        checkpoint.read(tmp_path / "last.safetensors")


@pytest.mark.parametrize("facts", ["", "3", "[]", "null", "[" * 100_000, '{"a":' * 100_000, '{"epoch": 1'])
def test_facts_that_are_no_object_are_damage(tmp_path: Path, facts: str) -> None:
    write_raw(tmp_path / "last.safetensors", facts)
    with pytest.raises(UserError, match=r"no intact checkpoint in .*last\.safetensors: "):
        checkpoint.read_newest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epoch": 3, "position": 2, "step": 4}, "4 steps are too few for 3 epochs and 2 batches"),
        ({"epoch": 1, "stopper": facts_at(1)["stopper"] | {"best_epoch": 2}}, "the best of 1 epochs is epoch 2"),
        ({"stopper": facts_at(1)["stopper"] | {"more": 1}}, "stopper.more: Extra inputs are not permitted"),
    ],
)
def test_facts_that_contradict_each_other_are_damage(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_raw(tmp_path / "last.safetensors", json.dumps(facts_at(1) | changes))
    with pytest.raises(DamagedCheckpointError, match=says):
        checkpoint.read(tmp_path / "last.safetensors")


def test_a_version_that_is_no_number_is_damage(tmp_path: Path) -> None:
    for version in ("x", "", "-1", "2.5"):
        write_raw(tmp_path / "last.safetensors", json.dumps(facts_at(1)), format_version=version)
        with pytest.raises((DamagedCheckpointError, UserError), match=r"damaged|invalid literal"):
            checkpoint.read(tmp_path / "last.safetensors")


def test_a_tensor_survives_the_file_bit_for_bit(tmp_path: Path) -> None:
    values = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
    }
    checkpoint.write(tmp_path, values, facts_at(1))
    read, facts = checkpoint.read(tmp_path / "last.safetensors")
    assert facts["step"] == 1
    for name, value in values.items():
        left, right = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (read[name], value))
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        assert torch.equal(left, right), name


class Crash(Exception):
    """The process ends here."""


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
@pytest.mark.parametrize("number", range(1, 6))
def test_a_crash_at_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    left = number
    original = getattr(os, call)

    def crash(*arguments: object, **keywords: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with contextlib.suppress(Crash):
            write(tmp_path, 3, best=True)
        crashed = left <= 0
    _, facts, _ = checkpoint.read_newest(tmp_path)
    assert facts["step"] in ((2, 3) if crashed else (3,))
    write(tmp_path, 4)
    assert newest(tmp_path) == (4, None)
