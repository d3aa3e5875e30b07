"""Study files: arms, grids, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from convsmith.errors import UserError
from convsmith.studies.config import (
    arms_of,
    as_layer,
    changes,
    choices_of,
    read_study,
    studies,
    validate_study,
)

BASE = {"preset": "digits", "base": {"train": {"epochs": 2}}}


def arms(**study: Any) -> Any:
    return arms_of(validate_study(BASE | study, "s.yaml"), {})


def test_an_arm_is_the_base_with_its_changes() -> None:
    made = arms(arms={"average": {"model.pool": "average"}, "sgd": {"optim": {"name": "sgd", "lr": 0.1}}})
    assert list(made) == ["base", "average", "sgd"]
    assert made["base"].train.epochs == 2
    assert changes(made["base"], made["average"]) == {"model.pool": "average"}
    assert changes(made["base"], made["sgd"]) == {"optim.name": "sgd", "optim.lr": 0.1}


def test_flags_go_into_every_arm() -> None:
    study = validate_study(BASE | {"arms": {"average": {"model.pool": "average"}}}, "s.yaml")
    made = arms_of(study, {"train": {"epochs": "7"}})
    assert [config.train.epochs for config in made.values()] == [7, 7]


def test_a_grid_is_every_combination_but_the_base() -> None:
    made = arms(grid={"optim.lr": [0.002, 0.01], "train.batch_size": [64, 16]})
    assert list(made) == ["base", "lr=0.002, batch_size=16", "lr=0.01, batch_size=64", "lr=0.01, batch_size=16"]


@pytest.mark.parametrize("key", ["hyperparameters", "knobs"])  # the second is that of the first edition
def test_choices_are_every_combination_of_the_hyperparameters(key: str) -> None:
    study = validate_study(
        BASE | {"arms": {"a": {"model.pool": "average"}}, "choose": {key: {"optim.lr": [0.1, 0.2]}, "epochs": 1}},
        "s.yaml",
    )
    assert choices_of(study, {}) == [{"optim": {"lr": 0.1}}, {"optim": {"lr": 0.2}}]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"arms": {"a": {"model.pol": "max"}}}, "arm 'a': unknown key 'model.pol'. Did you mean 'model.pool'?"),
        ({"arms": {"a": {"model.pool": "mx"}}}, "arm 'a': model.pool: 'mx' is not a choice. Did you mean 'max'?"),
        ({"arms": {"a": {"model.pool": "max"}}}, "arm 'a' changes nothing: the base already has model.pool=max"),
        ({"arms": {"a": {"optim.lr": 1}, "b": {"optim.lr": 1.0}}}, "arms 'a' and 'b' are the same"),
        ({"arms": {"base": {"optim.lr": 1}}}, "arm 'base': this name is reserved for the base"),
        ({"arms": {"a/b": {"optim.lr": 1}}}, "arm 'a/b': the name must be usable as a plain folder name"),
        ({"arms": {"a": {"data.limit": 100}}}, "arm 'a' changes data.limit: all arms must see the same images"),
        ({"arms": {"a": {"train.seed": 3}}}, "arm 'a' changes train.seed: all arms must have the same seeds"),
        ({"arms": {"a": {"track.wandb": "auto"}}}, "arm 'a' changes track.wandb, which does not affect the result"),
        ({"arms": {"a": {"pool": "max"}}}, "arm 'a': 'pool' must be a key such as optim.lr"),
        ({"arm": {}}, "study 's.yaml': unknown key 'arm'. Did you mean 'arms'?"),
        ({}, "give either arms (name: changes) or a grid"),
        ({"arms": {"a": {"optim.lr": 1}}, "grid": {"optim.lr": [1]}}, "give either arms (name: changes) or a grid"),
        ({"grid": {"optim.lr": [0.002]}}, "the grid has no combination other than the base"),
        ({"arms": {"a": {"optim.lr": 1}}, "folds": 1}, "folds: input should be greater than or equal to 2"),
        ({"arms": {"a": {"optim.lr": 1}}, "metric": "acc"}, "metric: 'acc' is not a choice."),
    ],
)
def test_errors_name_what_is_wrong(study: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        arms(**study)
    assert message in str(caught.value)


def test_an_unknown_study_gets_the_nearest_that_there_is() -> None:
    with pytest.raises(UserError, match=r"study 'poolin'.*Did you mean 'pooling'"):
        read_study("poolin")


def test_a_study_of_tuning_is_told_where_it_belongs() -> None:
    with pytest.raises(UserError, match="is a tuning study, since it has a space: use convsmith tune tune-simple-cnn"):
        read_study("tune-simple-cnn")


@pytest.mark.parametrize("name", [name for name in studies() if not name.startswith("tune-")])
def test_every_shipped_study_has_sound_arms(name: str) -> None:
    assert len(arms_of(read_study(name), {})) >= 2
    assert "question" in yaml.safe_load(studies()[name].read_text(encoding="utf-8"))


def test_a_section_in_a_layer_and_a_key_go_together() -> None:
    assert as_layer({"optim": {"lr": 1}, "optim.momentum": 0.5}, "a") == {"optim": {"lr": 1, "momentum": 0.5}}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"optim.lr": [0.1, -2]}, "choose: optim.lr: input should be greater than 0"),
        ({"optim.lrr": [0.1]}, "choose: unknown key 'optim.lrr'. Did you mean 'optim.lr'?"),
        ({"train.seed": [1]}, "choose: train.seed is not a hyperparameter"),
    ],
)
def test_choices_are_checked_before_anything_runs(knobs: dict[str, Any], message: str) -> None:
    arms = {"a": {"model.pool": "average"}}
    study = validate_study(BASE | {"arms": arms, "choose": {"knobs": knobs, "epochs": 1}}, "s.yaml")
    with pytest.raises(UserError) as caught:
        choices_of(study, {})
    assert message in str(caught.value)
