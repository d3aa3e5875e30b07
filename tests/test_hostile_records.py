"""Hostile content in place of each file of a run: who reads it says one line. More: benchmarks/hostile_records.py."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from convsmith import records
from convsmith.config import read_run_config
from convsmith.errors import UserError
from convsmith.report.inputs import read_inputs
from convsmith.rundir import RunDir, listing, read_study
from convsmith.studies.comparison import read_plan

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).parent / "first_edition"


def hostile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("values", ROOT / "benchmarks" / "hostile" / "values.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOSTILE = hostile()
#: Of each directory: its files with what reads them, without a network or an image.
READERS: dict[str, dict[str, Callable[[RunDir], Any]]] = {
    "finished": {
        "config.yaml": lambda run: read_run_config(run.config),
        "environment.json": lambda run: records.read(run.environment, records.Environment),
        "evaluation-val.json": lambda run: read_inputs(run.path),
        "metrics.csv": lambda run: read_inputs(run.path),
        "predictions-val.csv": lambda run: read_inputs(run.path),
        "splits.json": lambda run: records.read(run.splits, records.Splits),
        "summary.json": lambda run: read_inputs(run.path),
        "test-access.jsonl": lambda run: read_inputs(run.path),
    },
    "ablation": {
        "study.yaml": read_study,
        "begun.json": lambda run: read_plan(run),
        "arms.json": lambda run: read_plan(run),
        "folds.json": lambda run: read_plan(run),
        "ablation.json": lambda run: records.read(run.ablation, records.Ablation),
    },
    "crossval": {
        "crossval.json": lambda run: records.read(run.crossval, records.Crossval),
        "study.yaml": read_study,
    },
    "tuning": {"optuna.json": lambda run: records.read(run.path / "optuna.json", records.Optuna)},
}
CASES = [(place, file) for place, files in READERS.items() for file in files if (KEPT / place / file).exists()]


@pytest.mark.parametrize(("place", "file"), CASES)
def test_no_text_in_place_of_a_file_is_more_than_one_line(place: str, file: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / place)
    shutil.copytree(KEPT / place, run.path)
    refused = 0
    for number, content in enumerate([*HOSTILE.TEXTS.values(), (KEPT / place / file).read_bytes()[:100]]):
        (run.path / file).write_bytes(content)
        try:
            READERS[place][file](run)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 (many contents in one test)
        if number % 10 == 0:
            (row,) = listing(tmp_path)
            assert row["directory"] == run.path
    assert refused > 30


@pytest.mark.parametrize(("place", "file"), [case for case in CASES if case[1].endswith((".json", ".yaml"))])
def test_no_odd_value_in_a_file_is_more_than_one_line(place: str, file: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path / place)
    shutil.copytree(KEPT / place, run.path)
    every = 23 if place == "finished" and file.endswith(".json") else 101  # primes, so that each value comes up
    for _, made in HOSTILE.odd_values(KEPT / place / file, every):
        (run.path / file).write_bytes(made())
        try:
            READERS[place][file](run)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 (many contents in one test)
