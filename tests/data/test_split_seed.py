"""`data.split_seed` divides the data, `train.seed` trains: no seed of a training reaches the sealed test split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import convsmith
from convsmith.config import RunConfig, compose, read_run_config
from convsmith.data.dataset import unseal_test
from convsmith.errors import UserError
from convsmith.plainyaml import parse_yaml, to_yaml
from convsmith.prediction.evaluate import run_dataset
from convsmith.records import FORMAT_VERSION
from convsmith.rundir import RunDir
from convsmith.studies.crossval import divide
from convsmith.training import setup


def config_of(train_seed: int, split_seed: int) -> RunConfig:
    flags = {"train.seed": str(train_seed), "data.split_seed": str(split_seed), "data.limit": "300"}
    return compose("baseline", None, flags | {"train.layout": "contiguous", "train.threads": "1"})


def test_no_seed_of_a_training_moves_an_image() -> None:
    opened = {seeds: setup.prepare(config_of(*seeds)) for seeds in ((0, 0), (1, 0), (0, 1))}
    records = {seeds: prepared.dataset.splits_record() for seeds, prepared in opened.items()}
    assert records[0, 0] == records[1, 0]
    sealed = {seeds: set(unseal_test(prepared.dataset).ids) for seeds, prepared in opened.items()}
    assert len(sealed[0, 0]) == 359, "of all digits, whatever data.limit is"
    assert sealed[0, 0] == sealed[1, 0] != sealed[0, 1]
    folds = {
        seeds: [fold.held_out.tolist() for fold in divide(prepared.dataset, prepared.config, 3, 2)]
        for seeds, prepared in opened.items()
    }
    assert folds[0, 0] == folds[1, 0] != folds[0, 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return convsmith.train(
        data={"split_seed": 5, "limit": 100},
        epochs=1,
        seed=7,
        runs_dir=tmp_path_factory.mktemp("runs"),
        train={"threads": 1, "layout": "contiguous"},
        track={"wandb": "off"},
    ).files


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(trained.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def test_a_run_of_the_first_edition_keeps_its_splits(run: RunDir) -> None:
    """It had no data.split_seed: its train.seed divided the data, and selected what data.limit keeps."""
    values = parse_yaml(run.config.read_text(), "")
    del values["data"]["split_seed"]
    values["train"]["seed"] = 5
    run.config.write_text(to_yaml(values))
    recorded = json.loads(run.splits.read_text())
    dataset = run_dataset(run)
    assert json.loads(json.dumps(dataset.splits_record())) | {"format_version": FORMAT_VERSION} == recorded
    assert read_run_config(run.config).data.split_seed == 5
    assert convsmith.load(run.path).evaluate("test")["n"] == len(recorded["splits"]["test"])


def test_another_split_seed_is_refused_on_resume(run: RunDir) -> None:
    run.config.write_text(run.config.read_text().replace("split_seed: 5", "split_seed: 6"))
    run.summary.unlink()
    with pytest.raises(
        UserError, match=r"were made with data\.split_seed 5, but its config\.yaml now says 6"
    ) as caught:
        convsmith.resume(run.path)
    assert "\n" not in str(caught.value)
