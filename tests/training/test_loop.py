"""The loop: what an epoch leaves, and that looking at clean training images changes nothing of the training."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convsmith import rundir
from convsmith.config import RunConfig, validate
from convsmith.data.sources import ARRAYS, Source, from_arrays
from convsmith.events import EpochEnd, Finished
from convsmith.files import read_json
from convsmith.prediction.model_file import load_model, read_model
from convsmith.runtime import Interrupts
from convsmith.tracking import csv
from convsmith.training import checkpoint, loop, restore, setup
from convsmith.training.experiment import Experiment
from convsmith.training.loop import epochs
from convsmith.training.own import Parts

CLEAN = ("clean_train_loss", "clean_train_accuracy")


def source() -> Source:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = rng.integers(0, 120, (60, 6, 6), dtype=np.uint8)
    images[labels == 1] += 80
    return from_arrays(images, labels)


def config_of(**sections: Any) -> RunConfig:
    config = validate({"data": {"source": ARRAYS, "val_fraction": 0.2, "test_fraction": 0}, "track": {"wandb": "off"}})
    train = {"epochs": 12, "batch_size": 16, "threads": 1, "layout": "contiguous", **sections.pop("train", {})}
    return config.with_values(train=train, **sections)


def begin(config: RunConfig, folder: Path) -> Experiment:
    parts = Parts(source())
    return setup.start(setup.prepare(config, parts), folder, parts=parts)


def measured_epochs(experiment: Experiment) -> list[int]:
    rows = csv.read(experiment.run.metrics)
    assert all((row[CLEAN[0]] is None) == (row[CLEAN[1]] is None) for row in rows)
    return [row["epoch"] for row in rows if row[CLEAN[0]] is not None]


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (4, [1, 2, 3, 4]), (12, [3, 5, 8, 10, 12])])
def test_clean_training_images_are_scored_five_times_spread_over_the_run(
    count: int, expected: list[int], tmp_path: Path
) -> None:
    experiment = begin(config_of(train={"epochs": count}), tmp_path)
    list(epochs(experiment, Interrupts()))
    assert measured_epochs(experiment) == expected


def test_the_epoch_with_which_a_run_stops_early_is_scored_too(tmp_path: Path) -> None:
    experiment = begin(config_of(train={"patience": 1, "min_delta": 1.0, "epochs": 1000}), tmp_path)
    list(epochs(experiment, Interrupts()))
    assert experiment.state.epoch == 2
    assert measured_epochs(experiment) == [2]


def test_clean_scores_are_those_of_the_net_in_eval_mode_on_images_as_they_are(tmp_path: Path) -> None:
    flags = {"augment": {"hflip": True, "mixup": 1.0}, "model": {"hidden_dropout": 0.5}}
    experiment = begin(config_of(train={"epochs": 3, "ema": 0.5}, **flags), tmp_path)
    sample = experiment.clean_sample
    assert sorted(sample.ids) == sorted(experiment.dataset.train.ids), "1,000 images at most, so here all of them"

    def expected(model: torch.nn.Module) -> tuple[float, float]:
        seen = experiment.card.preprocessing
        images = (torch.from_numpy(sample.gather(slice(None))) / 255 - torch.tensor(seen.mean)) / torch.tensor(seen.std)
        with torch.no_grad():
            logits = model(images.permute(0, 3, 1, 2))
        labels = torch.from_numpy(sample.labels)
        return float(F.cross_entropy(logits.double(), labels)), float((logits.argmax(1) == labels).double().mean())

    for event in epochs(experiment, Interrupts()):
        if isinstance(event, EpochEnd):
            assert experiment.state.evaluated is not experiment.state.model
            found = tuple(event.row[name] for name in CLEAN)
            assert found == pytest.approx(expected(experiment.state.evaluated.eval()), rel=1e-5)
    kept, _ = load_model(experiment.run.model, torch.device("cpu"))
    loss, accuracy = expected(kept)
    train = read_json(experiment.run.summary)["train"]
    assert train == {"loss": pytest.approx(loss, rel=1e-5), "accuracy": pytest.approx(accuracy), "n": len(sample)}


def test_scoring_clean_images_changes_nothing_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"augment": {"hflip": True, "cutout": 2}, "model": {"hidden_dropout": 0.5}}
    tensors = []
    for measurements in (1, 12):
        monkeypatch.setattr(loop, "CLEAN_MEASUREMENTS", measurements)
        experiment = begin(config_of(**flags), tmp_path)
        assert isinstance(list(epochs(experiment, Interrupts()))[-1], Finished)
        tensors.append(checkpoint.read(experiment.run.checkpoints / checkpoint.LAST)[0])
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


def test_the_sample_is_the_same_in_every_run_and_never_more_than_a_thousand_images() -> None:
    images = np.zeros((3000, 4, 4), np.uint8)
    config = config_of(data={"val_fraction": 0.1})
    dataset = setup.prepare(config, Parts(from_arrays(images, np.arange(3000) % 3)), measured=True).dataset
    sample = dataset.train.sample(1000)
    assert len(sample) == len(set(sample.ids)) == 1000
    assert set(sample.ids) <= set(dataset.train.ids)
    assert sample.ids == dataset.train.sample(1000).ids
    by_id = dict(zip(dataset.train.ids, dataset.train.labels, strict=True))
    assert [by_id[name] for name in sample.ids] == sample.labels.tolist()


def test_a_clock_that_jumps_back_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = begin(config_of(train={"epochs": 4}), tmp_path / "whole")
    list(epochs(whole, Interrupts()))

    class Back(datetime):
        """A day earlier each time that it is asked."""

        passed = 0

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            cls.passed += 1
            return datetime(2026, 1, 1, tzinfo=tz) - timedelta(days=cls.passed)

    monkeypatch.setattr(rundir, "datetime", Back)
    monkeypatch.setattr(time, "time", lambda: Back.now(timezone.utc).timestamp())
    experiment, interrupts = begin(config_of(train={"epochs": 4}), tmp_path / "back"), Interrupts()
    for event in epochs(experiment, interrupts):
        if isinstance(event, EpochEnd):
            os.utime(experiment.run.log_file, (0, 0))
            interrupts.received = signal.SIGHUP
    assert experiment.state.epoch < 4
    resumed = restore.resume(experiment.run, Parts(source()))
    list(epochs(resumed, Interrupts()))
    rows = csv.read(resumed.run.metrics)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all(0 < row["seconds"] < 3600 for row in rows)
    same, found = (read_model(one.run.model)[1] for one in (whole, resumed))
    assert all(torch.equal(same[name], found[name]) for name in same)
    assert [one.name for one in rundir.runs_in(tmp_path / "back")] == [resumed.run.name]
    assert "interrupted by SIGHUP" in resumed.run.log_file.read_text()
