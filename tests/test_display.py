"""What a person sees fits a terminal, and leaves it as it was."""

from __future__ import annotations

import io
import sys
from dataclasses import fields
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from convsmith.config import compose
from convsmith.display import COLUMNS, Console, Display, clock, duration, epoch_line, first_of
from convsmith.events import (
    Counted,
    CrossvalStarted,
    Doing,
    Ended,
    EpochEnd,
    JobDone,
    Note,
    StepProgress,
    TrainingStarted,
)
from convsmith.nets.build import build
from convsmith.nets.shapes import trace
from convsmith.records import METRICS
from convsmith.rundir import RunDir
from convsmith.study_display import StudyDisplay

ROW = {
    "epoch": 100,
    "train_loss": 12.34567,
    "train_accuracy": 1.0,
    "val_loss": 0.12345,
    "val_accuracy": 0.5,
    "val_f1": 1.0,
    "learning_rate": 0.000812,
    "images_per_second": 12_345.6,
    "seconds": 4_000.0,
}


def test_a_line_of_an_epoch_fits_80_columns_under_its_heading() -> None:
    line = epoch_line(EpochEnd(ROW, best=True), 100)
    assert len(line) <= 80
    assert line.removesuffix(" best").endswith("1:06:40")
    assert len(line.removesuffix(" best")) == len(COLUMNS)
    for heading, value in (("train loss", "12.3457"), ("val loss", "0.1235"), ("F1", "1.000"), ("lr", "0.00081")):
        assert COLUMNS.index(heading) + len(heading) == line.index(value) + len(value)


@pytest.mark.parametrize(
    ("seconds", "short", "long"),
    [
        (0.04, "0.0 s", "0.0 s"),
        (9.96, "10 s", "10 s"),
        (99.4, "99 s", "99 s"),
        (99.6, "1:40", "1 min 40 s"),
        (119.7, "2:00", "2 min 0 s"),
        (3599.7, "1:00:00", "1 h 0 min"),
        (7530, "2:05:30", "2 h 6 min"),
    ],
)
def test_times(seconds: float, short: str, long: str) -> None:
    assert clock(seconds) == short
    assert duration(seconds) == long


def test_a_bar_that_is_broken_off_gives_the_cursor_back() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=80))
    display(Counted("decoding", 1, 10))
    assert out.getvalue().rfind("\x1b[?25l") > out.getvalue().rfind("\x1b[?25h"), "a bar hides the cursor"
    display.clear()
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")
    display(Counted("decoding", 10, 10))  # a bar can be drawn again
    display.clear()


def test_no_metric_of_an_evaluation_is_parted_from_its_value_in_80_columns() -> None:
    averages = {"macro": 0.99123, "micro": 0.99123, "weighted": 0.99123}
    record = {name: averages if metric.averages else 0.99123 for name, metric in METRICS.items()}
    record |= {"n": 100, "classes": [str(label) for label in range(10)]}
    record |= {"per_class": {}, "confusion_matrix": {"counts": np.eye(10, dtype=int).tolist()}}
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, color_system=None, width=80, soft_wrap=True))
    display.evaluated(RunDir(Path("r")), "val", record)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for name in ("loss", "ece", "top5_accuracy", "balanced_accuracy", "auroc", "mcc"):
        assert any(
            f"{METRICS[name].label} {0.99123:.4f}" in line or f"{METRICS[name].label} 99.12%" in line for line in lines
        )


def test_what_a_study_says_first_is_wrapped_between_words_in_80_columns() -> None:
    out = io.StringIO()
    started = CrossvalStarted(
        directory=Path("runs/digits-cv"),
        question="",
        source="digits",
        images=1438,
        runs=5,
        train=1035,
        val=115,
        held_out=288,
        sealed=359,
        model="simple-cnn",
        epochs=20,
        threads=2,
        seconds=10.0,
        max_workers=1,
    )
    StudyDisplay(Display(Console(file=out, force_terminal=True, color_system=None, width=80, soft_wrap=True)))(started)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(out.getvalue().split()).endswith("about 10 s of training, 1 at once")


def test_a_line_of_a_fold_is_broken_between_its_scores_alone() -> None:
    scores = {"accuracy": 0.42, "precision": 0.6369, "recall": 0.4159, "f1": 0.369, "loss": 2.2329}
    record = {**scores, "best_epoch": 1, "epochs": 1, "seconds": 2.6, "chosen": {"optim": {"lr": 0.01}}}
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=80, soft_wrap=True)
    StudyDisplay(Display(console))(JobDone(index=0, name="average 1", record=record))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert lines[1] == "        loss 2.2329  best epoch 1 of 1  2.6 s  chosen  optim.lr 0.01"


def test_as_many_classes_are_named_as_fit_into_a_line() -> None:
    assert first_of(["a", "b"], 72) == "a, b"
    line = first_of([f"class {number}" for number in range(1_000)], 72)
    assert line == "class 0, class 1, class 2, class 3, class 4, class 5 and 994 more"
    assert first_of(["x" * 100, "y"], 72) == "x" * 100 + " and 1 more"


def test_a_bar_shows_no_numbers_before_there_are_any() -> None:
    started = dict.fromkeys((field.name for field in fields(TrainingStarted)), 1) | {
        "directory": Path("r"),
        "notes": (),
        "unused": {"hidden": 2, "outside the class folders": 1_000},
        "classes": ("ant", "bee "),
    }
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=80)) as display:
        display(TrainingStarted(**started | {"source": "digits", "model": "simple-cnn"}))  # type: ignore[arg-type]
        assert "loss 0" not in out.getvalue()
        assert "classes ant, 'bee '\n" in out.getvalue()
        assert "unused  1,002 files: 2 hidden, 1,000 outside the class folders\n" in out.getvalue()
        step = dict.fromkeys((field.name for field in fields(StepProgress)), 1) | {"loss": 0.5, "accuracy": 0.25}
        display(StepProgress(**step | {"images": 100, "seconds": 2.0}))  # type: ignore[arg-type]
        display._bar.refresh()  # type: ignore[union-attr]
    assert "loss 0.5000  acc 25.0%  50 img/s" in out.getvalue()


def test_columns_that_do_not_fit_get_a_table_of_their_own() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, color_system=None, width=40))
    display.table(
        {"arm": ["base"], "difference": ["-30.39"], "verdict of all": ["none"], "seconds": ["1.0"]}, ["seconds"]
    )
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["arm", "difference", "verdict", "of", "all"],
        ["base", "-30.39", "none"],
        [],
        ["arm", "seconds"],
        ["base", "1.0"],
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_number_and_no_equation_is_cut_off(width: int) -> None:
    out = io.StringIO()
    model = build(compose("study-example", None, {}).model, 3, 32, 10)
    Display(Console(file=out, force_terminal=True, width=width)).layers(trace(model, 3, 32), "title")
    if width < 80:  # too narrow for a column: its cells are folded
        assert "…" not in out.getvalue()
        return
    for text in ("blocks.0.activation", "MaxPool2d", "(32 - 3 + 2*0)/1 + 1 = 30", "32 x 30 x 30", "1,440,000"):
        assert text in out.getvalue()
    assert "…" not in out.getvalue()


def test_a_notebook_without_widgets_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """There rich can draw no bar, and says so again at each step of it."""
    display = Display(Console(force_jupyter=True))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert not display.live
    monkeypatch.setitem(sys.modules, "ipywidgets", ModuleType("ipywidgets"))
    sys.modules["ipywidgets"].__spec__ = ModuleSpec("ipywidgets", None)
    assert display.live


def test_rows_of_predictions_break_no_word_in_a_narrow_terminal() -> None:
    name = "photos/2020/holidays/" + "x" * 60 + ".jpg"
    rows = [
        {"id": name, "predicted": "golden retriever", "error": None, "p_cat": 0.1, "p_golden retriever": 0.9},
        {"id": "b.png", "predicted": None, "error": "not-an-image", "p_cat": None, "p_golden retriever": None},
    ]
    for live, width in ((True, 40), (True, 200), (False, 40)):
        display = Display(Console(force_terminal=live, width=width, file=(file := io.StringIO()), no_color=True))
        table = display.predictions([name, "b.png"], ["cat", "golden retriever"], 2)
        table.show(rows[:1])
        table.show(rows[1:])
        text = file.getvalue()
        assert text.count("image") == 2, "the header, once, and a reason"
        assert name in text
        assert "retriever 90.0%" in text.replace("\n    ", " ")
        assert "cannot be read: not-an-image" in text


def test_a_long_note_is_wrapped_between_words_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    note = "recipe: linear-probe, with pretrained timm/tf_efficientnet_lite0, for photographs (about 333 x 333 pixels)"
    Display(console)(Note(note))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == note


def test_a_note_that_bears_on_the_result_stands_at_the_end_again(tmp_path: Path) -> None:
    out = io.StringIO()
    display = Display(Console(file=out))
    display(Note("a passing note"))
    display(Note("no pretrained weights", bears_on_result=True))
    told = {field.name: None for field in fields(TrainingStarted)}
    display._training = TrainingStarted(**told | {"directory": tmp_path, "is_own": False, "test": 0})  # type: ignore
    display(Ended())
    *_, again, following = out.getvalue().splitlines()
    assert again == "note: no pretrained weights"
    assert following.startswith("next: convsmith predict ")
    assert out.getvalue().count("a passing note") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_work_that_counts_nothing_is_named_on_a_terminal_until_the_next_event(terminal: bool) -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=terminal, width=80, color_system=None))
    display(Doing("evaluating"))
    assert ("evaluating ..." in out.getvalue()) is terminal
    display(Note("done"))
    assert display._bar is None
    assert out.getvalue().endswith("done\n")
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == terminal  # the cursor is back
    display(Counted("decoding", 1, 2))
    display(Note("beside it"))  # which does not end a bar of counted work
    assert (display._bar is not None) is terminal
    display(Counted("decoding", 2, 2))


def test_a_bar_shows_no_time_before_it_is_known() -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, color_system=None, width=80)) as display:
        display(Counted("decoding", 0, 10))
        display._bar.refresh()  # type: ignore[union-attr]
    assert "0 of 10" in out.getvalue()
    assert "--:--" not in out.getvalue()


def test_the_reason_for_a_next_command_moves_below_it_where_it_does_not_fit() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, color_system=None, width=60))
    command = "convsmith train runs/a-long-name-of-a-run/config.yaml --seed 1"
    display.next(f"{command}   (one net, trained on all)", "convsmith runs   (lists them)")
    # A command stays in one piece for the terminal to wrap: pasted, it is whole.
    assert out.getvalue().splitlines() == [
        f"next: {command}",
        "      (one net, trained on all)",
        "      convsmith runs   (lists them)",
    ]
