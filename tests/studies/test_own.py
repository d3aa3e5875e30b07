"""Studies with a network, an optimiser and arrays of the user's own: in this process, one run at a time."""

from __future__ import annotations

import csv
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from convsmith.config import RunConfig, read_run_config, validate
from convsmith.data.sources import from_arrays
from convsmith.errors import Stopped, UserError
from convsmith.events import EpochEnd, JobDone, JobProgress, Note
from convsmith.files import read_json, write_json
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies import crossval as crossval_module
from convsmith.studies import resuming
from convsmith.studies.ablation import ablate
from convsmith.studies.config import validate_study
from convsmith.studies.crossval import crossval
from convsmith.studies.lr_find import lr_find
from convsmith.studies.tune_config import TuneConfig, checked
from convsmith.studies.tuning import tune
from convsmith.studies.worker import perform
from convsmith.training.own import Parts

SETTINGS = {
    "data": {"source": "arrays"},
    "train": {"epochs": 2, "batch_size": 8, "threads": 1, "layout": "contiguous"},
    "schedule": {"warmup_epochs": 0},
    "track": {"wandb": "off", "images": 0},
}


@pytest.fixture
def parts() -> Parts:
    """Images whose brightness is their class, a linear net, and plain gradient descent."""
    labels = np.tile([0, 1, 2], 30)
    images = np.random.default_rng(0).integers(0, 60, (90, 8, 8, 1)) + 90 * labels[:, None, None, None]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    source = from_arrays(images.astype(np.uint8), labels.tolist())
    return Parts(source, net, lambda groups: torch.optim.SGD(groups, lr=0.1))


def config() -> RunConfig:
    return validate(SETTINGS)


def weights(parts: Parts) -> list[torch.Tensor]:
    assert parts.module is not None
    return [parameter.detach().clone() for parameter in parts.module.parameters()]


def test_crossval_takes_all_that_is_ones_own_and_leaves_it_as_it_was(tmp_path: Path, parts: Parts) -> None:
    before, told = weights(parts), []
    result = crossval(config(), parts, folds=3, jobs=2, name="cv", runs_dir=tmp_path, listener=told.append)
    assert not result.failed
    assert len(result.per_fold) == 3
    notes = " ".join(event.text for event in told if isinstance(event, Note))
    assert "cannot be sent to another process" in notes
    assert "each run starts from the weights that Sequential had" in notes
    assert [event.name for event in told if isinstance(event, JobDone)] == ["fold 1", "fold 2", "fold 3"]
    assert all(torch.equal(old, new) for old, new in zip(before, weights(parts), strict=True))
    # A fold's first training starts from the weights that were handed in, whichever fold it is.
    again = crossval(config(), parts, folds=3, name="again", runs_dir=tmp_path)
    assert again.mean == result.mean
    for fold in result.per_fold:
        record = read_json(tmp_path / f"cv/folds/{fold['fold']}/evaluation-held-out.json")
        assert fold["accuracy"] == record["accuracy"]
    assert result.intervals()[0]["mean"] == pytest.approx(np.mean([fold["accuracy"] for fold in result.per_fold]))
    assert [row["images"] for row in result.table()] == [26, 25, 25]
    counts = np.array(result.record["confusion_matrix"]["counts"])
    assert len(counts) <= 5
    assert "top5_accuracy" in result.mean
    assert "top5_accuracy" not in {row["metric"] for row in result.intervals()}, "it is always 1 for so few classes"
    assert result.confusion().axes
    assert counts.trace() / counts.sum() == pytest.approx(_out_of_fold(tmp_path / "cv"))


def _out_of_fold(directory: Path) -> float:
    with (directory / "predictions-oof.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return float(accuracy_score([row["label"] for row in rows], [row["predicted"] for row in rows]))


def test_a_study_of_ones_own_is_resumed_with_what_was_handed_in_and_not_without(tmp_path: Path, parts: Parts) -> None:
    whole = crossval(config(), parts, folds=3, name="whole", runs_dir=tmp_path)

    def stop(event: Any) -> None:
        if isinstance(event, JobProgress | EpochEnd) and event.index == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match=r"resume with: convsmith.resume\('.*cv', model=\.\.\., optimizer=") as stopped:
        crossval(config(), parts, folds=3, name="cv", runs_dir=tmp_path, listener=stop)
    assert stopped.value.signal == signal.SIGINT
    lacking = (
        (Parts(parts.source, None, parts.optimizer), "network"),
        (Parts(parts.source, parts.module), "optimiser"),
        (Parts(None, parts.module, parts.optimizer), "data"),
    )
    for missing, what in lacking:
        with pytest.raises(UserError, match=f"the {what} of study '.*' came from Python: pass it in again"):
            resuming.resume(tmp_path / "cv", missing)
    assert resuming.resume(tmp_path / "cv", parts).record["mean"] == whole.record["mean"]


def other_ones(parts: Parts) -> list[tuple[Parts, str]]:
    class Net(nn.Sequential):
        pass

    return [
        (replace(parts, module=Net(nn.Flatten(), nn.Linear(64, 3))), r"is own:Sequential, not own:Net"),
        (replace(parts, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.2)), r"base_lr was 0\.1, is 0\.2"),
        (replace(parts, optimizer=lambda groups: torch.optim.Adagrad(groups, lr=0.1)), r"name was SGD, is Adagrad"),
    ]


def test_a_study_is_not_continued_with_another_network_or_optimiser(tmp_path: Path, parts: Parts) -> None:
    crossval(config(), parts, folds=2, name="cv", runs_dir=tmp_path)
    values = {"base": SETTINGS, "arms": {"small batches": {"train.batch_size": 4}}, "folds": 2}
    ablate(validate_study(values, "s"), None, parts, name="ab", runs_dir=tmp_path)
    space = checked(TuneConfig, {"base": SETTINGS, "space": {"train.batch_size": [8, 16]}, "trials": 1}, "s")
    tune(space, None, parts, name="t", runs_dir=tmp_path)
    for other, what in other_ones(parts):
        for name in ("cv", "ab", "t"):
            with pytest.raises(UserError, match=f"{what}.*: pass in the one that it was started with"):
                resuming.resume(tmp_path / name, other)
    other = replace(parts, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.2))
    with pytest.raises(UserError, match=r"own_optimizer.groups.0..base_lr was 0\.1, now 0\.2"):
        crossval(config(), other, folds=2, name="cv", runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"own_optimizer.groups.0..base_lr was 0\.1, now 0\.2"):
        ablate(validate_study(values, "s"), None, other, name="ab", runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"own_optimizer.groups.0..base_lr was 0\.1, now 0\.2"):
        tune(space, None, other, name="t", runs_dir=tmp_path)


def test_ablate_compares_with_ones_own_and_refuses_arms_without_effect(tmp_path: Path, parts: Parts) -> None:
    values = {"base": SETTINGS, "arms": {"no learning": {"train.epochs": 1}}, "folds": 3}
    result = ablate(validate_study(values, "s"), None, parts, name="ab", runs_dir=tmp_path)
    assert set(result.verdicts) == {"no learning"}
    assert result.table()[0]["arm"] == "base"
    assert result.base["mean"] is not None
    for key in ("model.pool", "optim.momentum"):
        arms = {"arms": {"a": {key: "average" if key == "model.pool" else 0.5}}}
        with pytest.raises(UserError, match=f"arm 'a': {key} has no effect, since the .* is your own"):
            ablate(validate_study(values | arms, "s"), None, parts, name="no", runs_dir=tmp_path)
    assert not (tmp_path / "no").exists()


def test_tune_searches_with_ones_own(tmp_path: Path, parts: Parts) -> None:
    pytest.importorskip("optuna")
    values = {"base": SETTINGS, "space": {"train.batch_size": [8, 16]}, "trials": 2}
    before = weights(parts)
    result = tune(checked(TuneConfig, values, "s"), None, parts, name="t", runs_dir=tmp_path)
    assert [trial["state"] for trial in result.trials] == ["complete", "complete"]
    assert result.best is not None
    assert result.best["value"] == max(trial["value"] for trial in result.trials)
    assert all(torch.equal(old, new) for old, new in zip(before, weights(parts), strict=True))
    with pytest.raises(UserError, match=r"space: optim\.lr has no effect"):
        tune(checked(TuneConfig, values | {"space": {"optim.lr": [0.1, 0.2]}}, "s"), None, parts, runs_dir=tmp_path)
    with pytest.raises(UserError, match="the optimiser of study"):
        resuming.resume(tmp_path / "t", Parts(parts.source, parts.module))
    assert len(resuming.resume(tmp_path / "t", parts).trials) == 2  # type: ignore[union-attr]


def test_lr_find_sweeps_the_rates_of_ones_own_optimiser(tmp_path: Path, parts: Parts) -> None:
    before, rates = weights(parts), []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    own = Parts(parts.source, parts.module, lambda groups: Watched(groups, lr=0.7))
    result = lr_find(config(), own, low=1e-4, high=1.0, steps=40, runs_dir=tmp_path)
    assert rates == pytest.approx(np.geomspace(1e-4, 1.0, 40)[: len(rates)])
    assert len(rates) >= len(result.points)
    assert result.table()[0]["learning_rate"] == pytest.approx(1e-4)
    assert all(torch.equal(old, new) for old, new in zip(before, weights(parts), strict=True))


@pytest.mark.parametrize(("metric", "chosen"), [("accuracy", 16), ("loss", 8), ("f1", 4)])
def test_what_is_chosen_on_inner_validation_is_best_by_the_study_s_metric(
    tmp_path: Path, parts: Parts, metric: str, chosen: int
) -> None:
    """Of equals the lower loss is taken: 16 and 32 have the same accuracy."""
    crossval(config(), parts, folds=2, name="cv", runs_dir=tmp_path)
    run = RunDir(tmp_path / "cv")
    tried = {4: (0.7, 0.9, 0.5), 8: (0.8, 0.7, 0.1), 32: (0.9, 0.6, 0.3), 16: (0.9, 0.6, 0.2)}
    job = replace(
        crossval_module.fold_jobs(run, read_run_config(run.config))[0],
        directory=str(tmp_path / "fold"),
        choices=tuple({"train": {"batch_size": size}} for size in tried),
        choice_epochs=1,
        metric=metric,
    )
    for number, (accuracy, f1, loss) in enumerate(tried.values(), start=1):  # as if each had been trained already
        folder = tmp_path / f"fold-choice-{number}"
        folder.mkdir()
        summary = read_json(run.path / "folds/1/summary.json")
        val = summary["val"] | {"accuracy": accuracy, "f1": f1, "loss": loss}
        write_json(folder / "summary.json", summary | {"val": val})
    *_, last = perform(job.message(), Interrupts(), parts)
    assert last["done"]["chosen"] == {"train": {"batch_size": chosen}}
