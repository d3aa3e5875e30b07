"""Each example runs as it is."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith.cli import verb_parser
from convsmith.verbs.flags import read_settings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, level in (("light", 150), ("dark", 0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = (level + rng.integers(0, 100, (50, 60, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    return tmp_path / "photos"


@pytest.mark.parametrize("name", ["01_train_digits.py", "02_own_images.py", "03_own_network.py"])
def test_a_script_runs(
    name: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr(sys, "argv", [name, "photos"])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    said = {"01": "test accuracy 0.9", "02": "photos/dark/0.jpg dark", "03": "label='dark'"}
    assert said[name[:2]] in capsys.readouterr().out


def test_the_config_and_the_commands_are_valid() -> None:
    lines = [
        *(EXAMPLES / "05_study_knobs.sh").read_text().splitlines(),
        f"convsmith train {EXAMPLES / '04_convnet.yaml'}",
    ]
    commands = [shlex.split(line)[2:] for line in lines if line.strip().startswith("convsmith train")]
    assert len(commands) == 5
    for words in commands:
        assert read_settings(
            verb_parser("train").parse_all([word.replace("$activation", "tanh") for word in words])
        ).config


def test_every_example_is_tried_here() -> None:
    assert [path.name[:2] for path in sorted(EXAMPLES.iterdir())] == ["01", "02", "03", "04", "05"]
