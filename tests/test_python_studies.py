"""Studies from Python: numbers, tables and figures; modules, optimisers and arrays of one's own in all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convsmith
from convsmith.errors import UserError
from convsmith.events import CrossvalStarted, JobDone, Note

QUICK = {"track": {"wandb": "off"}, "train": {"threads": 1, "layout": "contiguous"}, "epochs": 2, "show": False}
DIGITS = {"source": "digits", "limit": 200}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def own() -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 120, (90, 6, 6), dtype=np.uint8)
    labels = np.array(["dark", "bright"])[np.arange(90) % 2]
    images[labels == "bright"] += 100
    torch.manual_seed(0)
    return {
        "data": (images, labels),
        "model": Own(),
        "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    }


def test_a_cross_validation_has_numbers_tables_and_figures(tmp_path: Path) -> None:
    seen: list[Any] = []
    quick = QUICK | {"show": seen.append}
    result = convsmith.crossval(DIGITS, "simple-cnn", folds=2, runs_dir=tmp_path, name="cv", **quick)
    assert [row["fold"] for row in result.per_fold] == [1, 2]
    assert result.mean["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in result.per_fold]))
    low, high = result.ci95["accuracy"]
    assert low <= result.mean["accuracy"] <= high
    assert len(result.table()) == 2
    assert result.confusion().axes
    assert any(isinstance(event, CrossvalStarted) for event in seen)
    assert sum(isinstance(event, JobDone) for event in seen) == 2
    again = convsmith.resume(tmp_path / "cv", show=False)
    assert again.record["per_fold"] == result.record["per_fold"]


def test_own_objects_work_in_every_study_and_say_that_they_stay_in_this_process(tmp_path: Path) -> None:
    seen: list[Any] = []
    quick = QUICK | {"show": seen.append, "runs_dir": tmp_path, "epochs": 6}
    first = convsmith.crossval(**own(), folds=2, jobs=2, name="cv", **quick)
    assert any(isinstance(event, Note) and "cannot be sent to another process" in event.text for event in seen)
    assert first.mean["accuracy"] > 0.9
    study = {"arms": {"slow": {"train.batch_size": 90}}, "folds": 2}
    ablation = convsmith.ablate(study, **own(), name="ab", **quick)
    assert [arm["name"] for arm in ablation.record["arms"]] == ["slow"]
    space = {"space": {"train.batch_size": [8, 16]}, "trials": 2}
    tuned = convsmith.tune(space, **own(), name="tune", **quick)
    assert len(tuned.table()) == 2
    swept = convsmith.lr_find(**own(), steps=30, name="lr", **quick)
    assert len(swept.points) > 5
    assert convsmith.check_data(own()["data"], show=False).verdicts["ok"] == 90
    assert convsmith.summary(own()["data"], Own()).parameters == sum(p.numel() for p in Own().parameters())


def test_a_study_without_its_own_objects_is_refused_on_resume(tmp_path: Path) -> None:
    convsmith.crossval(**own(), folds=2, name="cv", runs_dir=tmp_path, **QUICK)
    fold = tmp_path / "cv/folds/1/fold.json"
    fold.unlink()
    with pytest.raises(UserError, match=r"own|(handed|passed) in"):
        convsmith.resume(tmp_path / "cv", show=False)


def test_a_run_of_own_objects_does_all_that_a_run_does(tmp_path: Path) -> None:
    parts = own()
    run = convsmith.train(**parts, name="own", runs_dir=tmp_path, **QUICK | {"epochs": 5})
    loaded = convsmith.load(tmp_path / "own", model=Own(), data=parts["data"])
    assert loaded.evaluate()["accuracy"] == run.summary["val"]["accuracy"]
    assert loaded.report().exists()
    assert loaded.confusion().axes
    out = tmp_path / "predictions.csv"
    top = loaded.predict(parts["data"][0][:3], out=out, top_k=1)
    assert [len(prediction.probabilities) for prediction in top] == [1, 1, 1]
    assert out.read_text().count("\n") == 4
    with pytest.raises(UserError, match=r"must end in \.csv or \.json"):
        loaded.predict(parts["data"][0][:3], out=tmp_path / "predictions.txt")
