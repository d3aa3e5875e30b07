"""Classes and files with hostile names go through the verbs: nothing is hidden, no line is forged, no label is lost."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith.cli import main
from convsmith.terminal import lines_of, visible

CLASSES = ("\x1b[31mcat\r\x1b]0;owned\x07", "=dog\nerror: forged", "\u202etac\u2066", "$x^{2$ \\frac")
TRAINING = "--model small-resnet --model.depth 1 --model.width 4 --epochs 1 --data.image_size 8 --track.wandb off"


@pytest.mark.skipif(os.name != "posix", reason="other systems do not take such names")
def test_hostile_names_reach_no_terminal_and_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for shade, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(60 * shade, 60 * shade + 60, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"\u202e\x1b[2J\n{number}\r.png")

    def run(*words: str) -> str:
        assert main(words) == 0
        shown = "".join(capfd.readouterr())
        assert lines_of(shown) == shown
        assert "\nerror:" not in shown
        return shown

    assert visible(CLASSES[1]) in run("data", "check", "data")
    run("train", "--data", "data", *TRAINING.split(), "--name", "r")
    assert visible(CLASSES[0]) in run("evaluate", "runs/r", "--split", "test")
    assert visible(CLASSES[2]) in run("predict", "runs/r", "data", "--out", "p.csv", "--csv-safe", "--top-k", "4")
    with open("p.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert {f"p_{name}" for name in CLASSES} < rows[0].keys()
    assert {row["id"].split("/")[1] for row in rows} == set(CLASSES)
    assert {row["predicted"] for row in rows} <= {*CLASSES, f"'{CLASSES[1]}"}
    os.rename("runs/r", "runs/\x1b[31m\nerror: r")
    run("explain", "runs/\x1b[31m\nerror: r", f"data/{CLASSES[1]}")
    assert r"resume $'runs/\x1b[31m\nerror: r'" not in run("runs")
    pages = list(tmp_path.glob("runs/**/*.html"))
    assert len(pages) == 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert lines_of(text) == text
        assert "tac" in text
