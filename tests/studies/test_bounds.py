"""A study is bounded before anything of it is built, and the number that is too large is in the line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convsmith.config import compose
from convsmith.errors import LONGEST, UserError
from convsmith.runtime import usable_cores
from convsmith.studies.ablation import ablate
from convsmith.studies.config import MOST_ARMS, arms_of, choices_of, validate_study
from convsmith.studies.crossval import crossval
from convsmith.studies.lr_find import Sweep
from convsmith.studies.resuming import resume
from convsmith.studies.tune_config import base_of, read_tuning, space_of
from convsmith.studies.tuning import tune

BASE: dict[str, Any] = {"preset": "digits"}
ARM = {"arms": {"a": {"optim.lr": 0.5}}}
TUNING: dict[str, Any] = {"space": {"optim.lr": {"low": 0.1, "high": 0.5}}}


def ablation(**values: Any) -> Callable[[], object]:
    return lambda: ablate(validate_study(BASE | values, "s.yaml"))


def tuning(space: dict[str, Any], **values: Any) -> Callable[[], object]:
    def read() -> object:
        study = read_tuning({"space": space, **values})
        return space_of(study, base_of(study, {}))

    return read


HOSTILE = {
    "the grid has 43,046,721 combinations": ablation(
        grid={key: list(range(81)) for key in ("optim.lr", "train.batch_size", "regularize.l2", "model.depth")}
    ),
    "it has 1,001 arms": ablation(arms={f"a{number}": {"optim.lr": number} for number in range(1_001)}),
    "choose has 1,000,000 combinations": ablation(
        **ARM,
        choose={"epochs": 1, "hyperparameters": {"optim.lr": list(range(1000)), "model.depth": list(range(1000))}},
    ),
    "less than or equal to 1000, but got '1000000000'": ablation(**ARM, folds=10**9),
    "1,000 folds, repeated 1,000 times, are 1,000,000 divisions": ablation(**ARM, folds=1000, repeats=1000),
    "this study needs 2,000,000 trainings": ablation(**ARM, folds=10, repeats=100, seeds=1000),
    "nn': the name must be usable": ablation(arms={"n" * 10**6: {"optim.lr": 0.5}}),
    r"arm 'a\\nerror: b': the name": ablation(arms={"a\nerror: b": {"optim.lr": 0.5}}),
    "and 2,990 more": ablation(**ARM, base={"train": {f"k{number}": 1 for number in range(3_000)}}),
    "--folds 1000000000: must be at most 1,000": lambda: crossval(compose(None, None, {}), folds=10**9),
    "500 folds, repeated 500 times, are 250,000": lambda: crossval(compose(None, None, {}), folds=500, repeats=500),
    "--jobs 1000000: this machine has": lambda: crossval(compose(None, None, {}), jobs=10**6),
    "--jobs 1000001: this machine has": lambda: resume("absent", jobs=10**6 + 1),
    "--jobs 1000002: must be at most 100,000": lambda: resume("absent", jobs=10**6 + 2, backend="ray"),
    "less than or equal to 100000, but got '1000000000000'": tuning(TUNING["space"], trials=10**12),
    "--trials 1000000000000: must be at most 100,000": lambda: tune(read_tuning(TUNING), trials=10**12),
    "optim.lr lists 5,000 choices": tuning({"optim.lr": list(range(1, 5_001))}),
    "step 9.99989e-321: the interval is too wide": tuning({"optim.lr": {"low": 0, "high": 0.5, "step": 1e-320}}),
    "high 1e.308 and step 1: the interval is too wide": tuning(
        {"regularize.clip_norm": {"low": -1e308, "high": 1e308}}
    ),
    "--steps must be at most 100,000": lambda: Sweep(steps=10**12),
    "must be an integer of at most 64 bits": lambda: compose(None, None, {"data.limit": "1" + "0" * 30}),
    "must not contain a NUL": lambda: compose(None, None, {"data.source": "a\0b"}),
    "half of a surrogate pair": lambda: compose(None, None, {"data.source": "\ud800"}),
}


@pytest.mark.parametrize("line", HOSTILE)
def test_the_number_that_is_too_large_is_named_at_once(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    with pytest.raises(UserError, match=line) as raised:
        HOSTILE[line]()
    assert time.process_time() - began < 2
    assert len(str(raised.value)) < LONGEST + 100
    assert not list(tmp_path.iterdir())


def test_the_largest_study_is_built() -> None:
    arms = {f"a{number}": {"optim.lr": 0.5 + 0.0001 * number} for number in range(MOST_ARMS)}
    assert len(arms_of(validate_study(BASE | {"arms": arms}, "s.yaml"), {})) == 1 + MOST_ARMS
    values = {"optim.lr": [0.1 * (number + 1) for number in range(10)], "train.batch_size": list(range(1, 101))}
    choose = {"epochs": 1, "hyperparameters": values}
    assert len(choices_of(validate_study(BASE | ARM | {"choose": choose}, "s.yaml"), {})) == MOST_ARMS


def test_a_core_has_several_jobs_if_wanted() -> None:
    with pytest.raises(UserError, match="absent"):
        resume("absent", jobs=4 * usable_cores())
