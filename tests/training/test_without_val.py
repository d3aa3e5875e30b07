"""A training on all images: no early stopping, no best epoch, no scores, and nothing that pretends to have some."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import convsmith
from convsmith.cli import main
from convsmith.config import compose, read_run_config
from convsmith.errors import Stopped, UserError
from convsmith.events import EpochEnd
from convsmith.rundir import RunDir
from convsmith.studies.crossval import crossval
from convsmith.training.checkpoint import read_newest

SETTINGS = {
    "data": {"val_fraction": 0, "test_fraction": 0.1, "limit": 200},
    "model": "simple-cnn",
    "epochs": 2,
    "train": {"patience": 1, "threads": 1, "layout": "contiguous"},
    "track": {"wandb": "off"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> convsmith.Run:
    return convsmith.train(**SETTINGS, runs_dir=tmp_path_factory.mktemp("runs"), name="all", show=False)


def test_a_training_without_val_keeps_the_last_epoch(run: convsmith.Run) -> None:
    assert run.summary["val"] is None
    assert (run.summary["best_epoch"], run.summary["epochs"], run.best_epoch) == (2, 2, 2)
    train = read_run_config(run.files.config).train
    assert (train.keep, train.patience) == ("last", None)
    assert [row["val_loss"] for row in run.metrics] == [None, None]
    assert all(row["train_loss"] > 0 for row in run.metrics)
    assert not run.files.evaluation("val").exists()
    assert "train.patience 1 has no effect" in run.files.log_file.read_text()
    run.curves()
    assert convsmith.runs(run.directory.parent)[0]["val_accuracy"] is None
    assert len(convsmith.load(run.directory).predict(np.zeros((8, 8), np.uint8))) == 1


def test_val_is_refused_plainly_and_test_is_not(
    run: convsmith.Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"has no val split to evaluate\. Splits: test"):
        run.evaluate("val")
    with pytest.raises(UserError, match="was trained without val images, so that there are none to report on"):
        run.report(show=False)
    with pytest.raises(UserError, match="was trained without val images"):
        convsmith.compare([run, shutil.copytree(run.directory, tmp_path / "again")])
    with pytest.raises(UserError, match="has no validation images"):
        run.explain()
    assert main(["evaluate", str(run.directory), "--split", "test"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_it_resumes_to_the_same_weights(run: convsmith.Run, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, EpochEnd):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped):
        convsmith.train(**SETTINGS, runs_dir=tmp_path, name="all", show=stop)
    again = convsmith.resume(tmp_path / "all", show=False)
    ours, theirs = (RunDir(one.directory) for one in (run, again))
    for name, tensor in read_newest(ours.checkpoints)[0].items():
        assert torch.equal(tensor, read_newest(theirs.checkpoints)[0][name])
    assert (ours.model / "model.safetensors").read_bytes() == (theirs.model / "model.safetensors").read_bytes()


def test_what_needs_val_is_refused(tmp_path: Path) -> None:
    settings = {"data.source": "digits", "data.val_fraction": "0", "data.limit": "100"}
    with pytest.raises(UserError, match=r"plateau watches the loss on val images"):
        convsmith.train(
            data={"val_fraction": 0, "limit": 100}, schedule={"name": "plateau"}, runs_dir=tmp_path, show=False
        )
    with pytest.raises(UserError, match="a study chooses the epoch of each run by val images"):
        crossval(compose(None, None, settings), runs_dir=tmp_path)
