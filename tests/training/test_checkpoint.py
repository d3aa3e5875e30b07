"""Every byte counts: what is damaged is refused, and a crash at any call leaves a whole checkpoint."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import torch

from convsmith.errors import UserError
from convsmith.training import checkpoint
from convsmith.training.checkpoint import DamagedCheckpointError


def write(folder: Path, step: int, best: bool = False) -> None:
    checkpoint.write(folder, {"weight": torch.full((50,), float(step))}, {"step": step}, best)


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
