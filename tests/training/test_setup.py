"""What a run is told before its first step: whether it can train at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convsmith import records
from convsmith.config import RunConfig, read_run_config, validate
from convsmith.data.sources import ARRAYS, Source, from_arrays
from convsmith.errors import UserError
from convsmith.events import EpochEnd, Finished
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.tracking import csv
from convsmith.training import checkpoint, restore, setup
from convsmith.training.loop import epochs
from convsmith.training.own import Parts


def source_of(train_images: int) -> Source:
    images = np.random.default_rng(0).integers(0, 256, (train_images + 2, 6, 6), dtype=np.uint8)
    return from_arrays(images, np.arange(len(images)) % 2)


def config_of(train_images: int, batch_size: int) -> RunConfig:
    return validate(
        {
            "data": {"source": ARRAYS, "val_fraction": 2 / (train_images + 2), "test_fraction": 0},
            "train": {"batch_size": batch_size, "epochs": 1, "threads": 1, "layout": "contiguous"},
            "track": {"wandb": "off"},
        }
    )


class WithBatchNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train(train_images: int, batch_size: int, folder: Path) -> int:
    """The number of steps."""
    parts = Parts(source_of(train_images), WithBatchNorm())
    experiment = setup.start(setup.prepare(config_of(train_images, batch_size), parts), folder, parts=parts)
    assert len(experiment.dataset.train) == train_images
    events = list(epochs(experiment, Interrupts()))
    assert isinstance(events[-1], Finished)
    return experiment.state.step


@pytest.mark.parametrize(("images", "batch_size"), [(3, 2), (9, 2), (7, 3), (10, 9)])
def test_batch_norm_never_sees_a_batch_of_one(images: int, batch_size: int, tmp_path: Path) -> None:
    steps = max(images // 2, 1) if batch_size == 2 else -(-images // batch_size)
    assert train(images, batch_size, tmp_path) == steps


def test_batches_of_one_image_are_refused_where_batch_norm_cannot_train_on_them(tmp_path: Path) -> None:
    message = "batch norm cannot be trained on batches of one image: set --train.batch_size to 2 or more"
    with pytest.raises(UserError, match=message):
        train(9, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_of_one_image_train_a_net_that_can(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    prepared = setup.prepare(config_of(9, 1), Parts(source_of(9)))  # the convolutions of simple-cnn leave many values
    assert prepared.config.train.batch_size == 1
    del before


OWN = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.05, weight_decay=0.3),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
}


def stopped(folder: Path, name: str, epochs_done: int = 1) -> RunDir:
    """A run with an optimiser of the user's own, as a kill in its second epoch leaves it."""
    parts = Parts(source_of(40), optimizer=OWN[name])
    config = config_of(40, 8).with_values(train={"epochs": 3}, optim={"lr": 0.002, "momentum": 0.5})
    experiment = setup.start(setup.prepare(config, parts), folder, "run", parts)
    assert "optim.lr has no effect, since the optimiser is your own" in experiment.notes
    for event in epochs(experiment, Interrupts()):
        if isinstance(event, EpochEnd) and event.row["epoch"] == epochs_done:
            break
    return experiment.run


def as_the_first_edition_wrote_it(run: RunDir) -> None:
    """The config of such a run named adam and its usual learning rate, in both places."""
    config = read_run_config(run.config).with_values(optim={"name": "adam", "lr": 0.001})
    run.config.write_text(config.to_yaml())
    tensors, facts = checkpoint.read(run.checkpoints / checkpoint.LAST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 1)
        checkpoint.write(run.checkpoints, tensors, facts | {"config": config.model_dump(mode="json")})


def finished(run: RunDir, parts: Parts) -> tuple[list[float], dict[str, torch.Tensor]]:
    experiment = restore.resume(run, parts)
    assert isinstance(list(epochs(experiment, Interrupts()))[-1], Finished)
    rows = csv.read(run.metrics)
    return [row["learning_rate"] for row in rows], experiment.state.model.state_dict()


@pytest.mark.parametrize(("name", "rate"), [("AdamW", 0.05), ("SGD", 0.1)])
@pytest.mark.parametrize("edition", [1, 2])
def test_a_run_goes_on_with_the_users_own_optimiser_alone(name: str, rate: float, edition: int, tmp_path: Path) -> None:
    run = stopped(tmp_path, name)
    config = read_run_config(run.config)
    assert (config.optim.name, config.optim.lr, config.optim.momentum) == (f"own:{name}", None, 0.9)
    if edition == 1:
        as_the_first_edition_wrote_it(run)
    before = run.config.read_bytes()
    with pytest.raises(UserError, match=r"your own(| optimiser): pass it in, convsmith.resume") as error:
        restore.resume(run, Parts(source_of(40)))
    assert "\n" not in str(error.value)
    assert run.config.read_bytes() == before

    rates, weights = finished(run, Parts(source_of(40), optimizer=OWN[name]))
    assert rates == [rate] * 3
    whole = stopped(tmp_path / "whole", name, epochs_done=3)
    tensors, _ = checkpoint.read(whole.checkpoints / checkpoint.LAST)
    assert all(torch.equal(value, tensors[f"model.{key}"]) for key, value in weights.items())
    assert read_run_config(run.config).optim.name == f"own:{name}"


def test_another_own_optimiser_than_that_of_the_start_is_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path, "SGD")
    with pytest.raises(UserError, match="is own:SGD, not own:AdamW: pass in the one that it was started with"):
        restore.resume(run, Parts(source_of(40), optimizer=OWN["AdamW"]))
    with pytest.raises(UserError, match=r"optim\.name own:SGD stands for your own optimiser: pass it in"):
        setup.prepare(read_run_config(run.config), Parts(source_of(40)))
    with pytest.raises(UserError, match="'own' is not a choice"):
        validate({"optim": {"name": "own"}})


def test_another_setting_of_the_own_optimiser_is_said(tmp_path: Path) -> None:
    run = stopped(tmp_path, "AdamW")
    assert restore.resume(run, Parts(source_of(40), optimizer=OWN["AdamW"])).notes == ()
    other = restore.resume(run, Parts(source_of(40), optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.001)))
    (note,) = other.notes
    assert "base_lr 0.05 -> 0.001" in note
    assert "weight_decay 0.3 -> 0.01" in note
    assert note in run.path.joinpath("log.txt").read_text()


def test_no_setting_of_optim_is_called_idle_that_nobody_has_set(tmp_path: Path) -> None:
    parts = Parts(source_of(40), optimizer=OWN["SGD"])
    assert setup.prepare(config_of(40, 8), parts).notes == ()
    notes = setup.prepare(config_of(40, 8).with_values(optim={"lr": 0.3}), parts).notes
    assert notes == ("optim.lr has no effect, since the optimiser is your own",)


def test_another_own_network_than_that_of_the_start_is_refused(tmp_path: Path) -> None:
    class Net(nn.Sequential):
        pass

    def parts(kind: type[nn.Sequential]) -> Parts:
        return Parts(source_of(40), kind(nn.Flatten(), nn.Linear(36, 2)))

    run = setup.start(setup.prepare(config_of(40, 8), parts(nn.Sequential)), tmp_path, parts=parts(nn.Sequential)).run
    with pytest.raises(UserError, match="is own:Sequential, not own:Net: pass in the one that it was started with"):
        restore.resume(run, parts(Net))
    ours = setup.start(setup.prepare(config_of(40, 8), Parts(source_of(40))), tmp_path).run
    with pytest.raises(UserError, match="is simple-cnn, not own:Net: leave model out"):
        restore.resume(ours, parts(Net))


def test_an_own_optimiser_is_refused_where_the_run_has_one_of_ours(tmp_path: Path) -> None:
    experiment = setup.start(setup.prepare(config_of(40, 8), Parts(source_of(40))), tmp_path)
    with pytest.raises(UserError, match="is adam, not own:SGD: leave optimizer out"):
        restore.resume(experiment.run, Parts(source_of(40), optimizer=OWN["SGD"]))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_a_run_of_the_first_edition_goes_on_with_the_optimiser_that_it_names(name: str, tmp_path: Path) -> None:
    config = config_of(40, 8).with_values(
        train={"epochs": 2}, optim={"name": name, "bias_lr_factor": 2}, schedule={"name": "cosine"}
    )
    experiment = setup.start(setup.prepare(config, Parts(source_of(40))), tmp_path)
    for event in epochs(experiment, Interrupts()):
        if isinstance(event, EpochEnd):
            break
    tensors, facts = checkpoint.read(experiment.run.checkpoints / checkpoint.LAST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 1)
        checkpoint.write(experiment.run.checkpoints, tensors, facts)
    finished(experiment.run, Parts(source_of(40)))


def test_the_kernels_that_a_run_has_asked_for_are_recorded_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "convsmith.training.gather.seed_everything", lambda seed, deterministic: asked.append(deterministic)
    )
    parts = Parts(source_of(6))
    config = config_of(6, 3).with_values(train={"deterministic": False})
    run = setup.start(setup.prepare(config, parts), tmp_path, parts=parts).run
    assert records.read(run.environment, records.Environment)["deterministic"] is False
    restore.resume(run, parts)
    assert set(asked) == {False}
    assert RunConfig().train.deterministic, "as runs were whose config does not have the key"
