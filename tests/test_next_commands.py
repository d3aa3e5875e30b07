"""What the program says can be done next is a command that its own parser takes, for folders with blanks too."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith.cli import main, verb_parser
from convsmith.display import Display
from convsmith.events import Ended, TrainingStarted

KEPT = Path(__file__).parent / "first_edition"


def next_commands(shown: str) -> list[list[str]]:
    """The words of each command below `next:`; what is in brackets after it says why."""
    _, _, steps = shown.rpartition("\nnext: ")
    typed = [step.strip().partition("   (")[0] for step in steps.splitlines() if step.strip()]
    return [shlex.split(command.replace("...", "")) for step in typed for command in step.split("   or   ")]


def parses(words: list[str]) -> bool:
    program, verb, *arguments = words
    verb_parser(verb).parse_all(arguments)
    return program == "convsmith"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs and images, all of whose paths have blanks."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(KEPT, tmp_path / "my runs")
    shutil.copytree(KEPT / "finished", tmp_path / "my runs/other one")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 8), dtype=np.uint8)
    for label, images in zip(("cat's", "dog"), pixels, strict=True):
        (tmp_path / "my photos" / label).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "my photos" / label / f"{number}.png")
    (tmp_path / "my photos/dog/broken one.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "runs 'my runs'",
        "summary 'my runs/finished'",
        "summary --model convnet --model.blocks '[{channels: 4}]'",
        "resume 'my runs/finished'",
        "evaluate 'my runs/finished' --device cpu",
        "compare 'my runs/finished' 'my runs/other one'",
        "predict 'my runs/finished' 'my photos/dog/1.png' --device cpu",
        "data check 'my photos'",
        "presets",
    ],
)
def test_what_is_said_to_be_next_can_be_typed(place: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)) == 0
    found = next_commands(capsys.readouterr().out)
    assert found
    assert all(map(parses, found))
    for words in found:
        for path in (word for word in words[2:] if word.startswith("my ")):
            assert Path(path).exists(), words


def test_what_comes_after_a_training_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    started = dict.fromkeys((field.name for field in fields(TrainingStarted)), 1) | {
        "directory": Path("my runs/it's first"),
        "is_own": False,
        "test": 9,
    }
    display = Display()
    display._training = TrainingStarted(**started)  # type: ignore[arg-type]
    display(Ended())
    found = next_commands("\n" + capsys.readouterr().out)
    assert [words[1] for words in found] == ["evaluate", "predict"]
    assert all(map(parses, found))
    assert all(words[2] == "my runs/it's first" for words in found)


def test_a_command_in_an_error_can_be_typed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "my photos", "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    command = re.search(r"(convsmith data check .*?) lists them", error)
    assert command
    assert parses(shlex.split(command[1]))
    assert Path(shlex.split(command[1])[-1]).exists()
