"""benchmarks/accelerator.py waits for a machine with a GPU: here one sees that it starts, and packs all rows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accelerator.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("accelerator", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "accelerator", module)  # where dataclasses look for their names
    spec.loader.exec_module(module)
    return module


def test_what_a_device_has_not_is_skipped_and_what_fails_is_said(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(given: object) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setitem(script.SECTIONS, "resume", (fail, 0))
    given = script.Given(torch.device("cpu"), quick=True)
    sections = script.measure(
        given, tmp_path / "out.json", 8, ["waiting", "resume", "throughput finetune", "speedrun"]
    )["sections"]
    assert "on CUDA alone" in sections["waiting"]["skipped"]
    assert sections["resume"]["failed"] == "ValueError: no such kernel"
    assert "no --weights" in sections["throughput finetune"]["skipped"]
    assert "no --cifar" in sections["speedrun"]["skipped"]
    assert (tmp_path / "out.json").exists()


def test_pieces_hold_all_rows(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = {"img": [bytes([row]) * 1_000 for row in range(50)], "label": list(range(50))}
    (tmp_path / "whole").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table(rows), tmp_path / "whole" / f"cifar10-{split}.parquet", compression="none")
    monkeypatch.setattr(script, "PIECE", 25_000)
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--pack", str(tmp_path / "whole"), str(tmp_path / "pieces")])
    script.main()
    names = sorted(path.name for path in (tmp_path / "pieces").iterdir())
    assert names == [f"{split}-{number:05d}-of-00003.parquet" for split in ("test", "train") for number in range(3)]
    assert pq.read_table(sorted((tmp_path / "pieces").glob("train-*"))).to_pydict() == rows
