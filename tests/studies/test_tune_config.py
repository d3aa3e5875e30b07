"""The file of a tuning study: what it may say, and each mistake as one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convsmith.errors import UserError
from convsmith.studies.config import studies
from convsmith.studies.search import spec_of, suggest
from convsmith.studies.tune_config import (
    Choices,
    Interval,
    TuneConfig,
    base_of,
    checked,
    read_tuning,
    space_of,
    with_key,
)

LR = {"low": 1e-4, "high": 1e-1, "log": True}


def space(key: str, axis: Any, base: dict[str, Any] | None = None) -> Any:
    study = TuneConfig(base=base or {}, space={key: axis})
    return space_of(study, base_of(study, {}))[key]


def test_numbers_are_whole_where_the_key_is() -> None:
    assert space("optim.lr", LR) == Interval(1e-4, 1e-1, True, None, whole=False)
    assert space("train.epochs", {"low": 2, "high": 8, "step": 2}) == Interval(2, 8, False, 2, whole=True)
    # data type `int | float`: pixels, or a share of the side
    assert space("augment.shift", {"low": 0, "high": 4}).whole
    assert not space("augment.shift", {"low": 0, "high": 0.25}).whole


def test_choices_are_what_the_config_makes_of_them() -> None:
    assert space("optim.lr", ["1e-4", 1, None]) == Choices((0.0001, 1.0, None))
    layers = space("model.hidden", [None, [100], [200, 100]])
    assert layers.values == (None, [100], [200, 100])
    assert layers.labels == (None, "[100]", "[200, 100]")


@pytest.mark.parametrize(
    ("key", "axis", "message"),
    [
        ("optim.lrr", LR, "space: unknown key 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("optim", LR, "space: unknown key 'optim'"),
        ("data.source", ["digits", "mnist"], "data.source decides which images are used"),
        ("data.limit", {"low": 10, "high": 20}, "data.limit decides which images are used"),
        ("train.seed", {"low": 0, "high": 9}, "train.seed cannot be searched: a seed that did well is luck"),
        ("train.monitor", ["val_loss", "val_f1"], "train.monitor cannot be searched: it is the study's metric"),
        ("track.project", ["a", "b"], "track.project cannot be searched: it does not affect the result"),
        ("optim.lr", {"low": 0.1, "high": 0.1}, "low 0.1 and high 0.1: low must be less than high"),
        ("model.dropout", {"low": 0, "high": 0.5, "log": True}, "on a logarithmic scale it must be above 0"),
        ("optim.lr", LR | {"step": 0.1}, "both log and step"),
        ("model.dropout", {"low": 0, "high": 0.5, "step": 0.2}, "step of 0.2 that does not lead from 0 to 0.5"),
        ("model.dropout", {"low": 0, "high": 0.5, "step": 0}, "step: input should be greater than 0, but got '0'"),
        ("optim.lr", {"low": 0.1, "hihg": 1}, "unknown key 'hihg'. Did you mean 'high'? Keys: low, high, log, step"),
        ("optim.lr", {"low": 0.1}, "high: field required"),
        ("optim.lr", {"low": "small", "high": 1}, "low: input should be a valid number"),
        ("optim.lr", {"low": 0.1, "high": 1000}, "optim.lr: input should be less than or equal to 100, but got '1000"),
        ("train.batch_size", {"low": 16.5, "high": 64}, "train.batch_size takes whole numbers"),
        ("model.activation", {"low": 1, "high": 2}, "model.activation is not a number"),
        ("optim.nesterov", {"low": 0, "high": 1}, "optim.nesterov is not a number"),
        ("model.activation", ["relu", "gelo"], "'gelo' is not a choice. Did you mean 'gelu'?"),
        ("model.activation", ["relu"], "needs two choices or more"),
        ("model.activation", ["relu", "gelu", "relu"], "model.activation lists a choice twice"),
        ("train.batch_size", ["many", "few"], "train.batch_size: must be auto or a whole number from 1 to 65,536"),
        ("optim.lr", 0.1, "must be an interval such as {low: 0.1, high: 0.5} or a list of choices"),
    ],
)
def test_what_no_run_could_have_is_refused_in_one_line(key: str, axis: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        space(key, axis)
    assert message in str(error.value)
    assert "space: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: {optim.lr: [0.1, 0.2]}\ntrails: 3", "unknown key 'trails'. Did you mean 'trials'?"),
        ("trials: 3", "study 'file.yaml': space: field required"),
        ("arms: {a: {optim.lr: 0.1}}", "is an ablation study, since it has arms: use convsmith ablate file.yaml"),
        ("space: {}", "space: dictionary should have at least 1 item"),
        (
            "space: {optim.lr: [0.1, 0.2]}\nmetric: accuracy",
            "'accuracy' is not a choice. Did you mean 'val_accuracy'?",
        ),
        (
            "space: {optim.lr: [0.1, 0.2]}\npruner: hyperband",
            "'hyperband' is not a choice. Choices: median",
        ),
        ("space: {optim.lr: [0.1, 0.2]}\ntrials: 0", "trials: input should be greater than or equal to 1"),
        ("- a\n- b", "study 'file.yaml' must hold keys such as base and space"),
        ("space: {", "is not valid YAML"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_tuning("file.yaml")
    assert message in str(error.value)


def test_a_study_that_does_not_exist_is_told_with_those_that_come_along() -> None:
    with pytest.raises(UserError, match=r"study 'tune-simple-cn' does not exist\. Did you mean 'tune-simple-cnn'"):
        read_tuning("tune-simple-cn")


def test_the_metric_is_what_the_runs_watch() -> None:
    study = TuneConfig(space={"optim.lr": [0.1, 0.2]}, metric="val_loss", preset="baseline")
    assert study.minimize
    base = base_of(study, {"train": {"epochs": 3}})
    assert (base.train.monitor, base.train.epochs, base.schedule.name) == ("val_loss", 3, "cosine")
    with pytest.raises(UserError, match=r"train\.monitor is 'val_f1' and the study's metric 'val_loss': leave"):
        base_of(study, {"train": {"monitor": "val_f1"}})


def test_what_the_study_keeps_reads_as_the_same_study_and_holds_no_password() -> None:
    axes = {"optim.lr": LR, "model.hidden": [None, [100]], "train.epochs": {"low": 2, "high": 4}}
    study = TuneConfig(space=axes, storage="postgresql://me:se:cr@et@host/db?password=secret&a=b", trials=7)
    base = base_of(study, {})
    kept = spec_of(study, base, space_of(study, base))
    assert kept.pop("kind") == "tune"
    assert kept["storage"] == "postgresql://me:***@host/db?password=***&a=b"
    again = checked(TuneConfig, kept, "study")
    assert base_of(again, {}) == base
    assert space_of(again, base) == space_of(study, base)
    assert again.trials == 7


@pytest.mark.parametrize("name", sorted(name for name in studies() if name.startswith("tune-")))
def test_the_studies_that_come_along_can_be_begun(name: str) -> None:
    study = read_tuning(name)
    assert study.question
    assert space_of(study, base_of(study, {}))


@settings(max_examples=40)
@given(
    low=st.floats(1e-6, 1.0), width=st.floats(1e-3, 50), log=st.booleans(), whole=st.booleans(), seed=st.integers(0, 99)
)
def test_whatever_is_suggested_lies_in_the_space_and_makes_a_config(
    low: float, width: float, log: bool, whole: bool, seed: int
) -> None:
    if whole:
        key, low, high = "train.batch_size", 1 + int(low * 9), 2 + int(low * 9) + int(width)
    else:
        key, high = "optim.lr", low + width
    study = TuneConfig(space={key: {"low": low, "high": high, "log": log}, "model.hidden": [None, [7]]})
    base = base_of(study, {})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    values = suggest(trial, space_of(study, base))
    assert low <= values[key] <= high
    assert isinstance(values[key], int) == whole
    assert values["model.hidden"] in (None, [7])
    section, name = key.split(".")
    assert getattr(getattr(with_key(base, key, values[key]), section), name) == values[key]
