"""The curves of a real run mark the epoch whose weights the run kept, whichever metric decided it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

import convsmith
from convsmith.errors import UserError
from convsmith.figures import curves, style


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that keeps the epoch with the lowest val loss, which is not the one with the highest val accuracy."""
    folder = tmp_path_factory.mktemp("runs")
    run = convsmith.train(
        {"source": "digits", "limit": 200},
        "simple-cnn",
        epochs=6,
        lr=0.02,
        train={"monitor": "val_loss", "threads": 1},
        track={"wandb": "off"},
        runs_dir=folder,
        name="by-loss",
    )
    rows = run.metrics
    lowest = min(rows, key=lambda row: row["val_loss"])["epoch"]
    assert run.summary["best_epoch"] == lowest != max(rows, key=lambda row: row["val_accuracy"])["epoch"]
    return run


def kept(figure):
    """The epochs that the stars of a figure mark."""
    stars = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "*"]
    return {int(x) for line in stars for x in line.get_xdata()}


def test_the_curves_of_a_run_mark_the_kept_epoch(run):
    assert kept(run.curves()) == {run.summary["best_epoch"]}


def test_the_written_figure_marks_the_kept_epoch(run, tmp_path):
    style.save(curves.learning_curves(run.metrics, run.summary["best_epoch"]), tmp_path / "expected.png")
    with Image.open(run.directory / "figures/curves.png") as found, Image.open(tmp_path / "expected.png") as expected:
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_an_unfinished_run_marks_the_epoch_of_its_newest_checkpoint(run, tmp_path):
    shutil.copytree(run.directory, tmp_path / "stopped")
    (tmp_path / "stopped/summary.json").unlink()
    assert kept(convsmith.load(tmp_path / "stopped").curves()) == {run.summary["best_epoch"]}


def test_a_run_without_an_epoch_has_no_curves(run, tmp_path):
    shutil.copytree(run.directory, tmp_path / "new")
    (tmp_path / "new/summary.json").unlink()
    header = (tmp_path / "new/metrics.csv").read_text("utf-8").splitlines()[0]
    (tmp_path / "new/metrics.csv").write_text(f"{header}\n", "utf-8")
    with pytest.raises(UserError, match="has not finished an epoch yet"):
        convsmith.load(tmp_path / "new").curves()
