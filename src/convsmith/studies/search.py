"""A tuning study's directory, read: what is searched, where its trials lie, and the Optuna study that knows them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convsmith.config import RunConfig, read_run_config
from convsmith.data.config import DataConfig
from convsmith.files import read_json
from convsmith.rundir import RunDir
from convsmith.studies import storage, study
from convsmith.studies.tune_config import Axis, Bounds, Choices, Space, TuneConfig, checked, space_of

OPTUNA = "optuna.json"  # the database's URL (none: DATABASE), the study's name in it, the base's data and its hash
DATABASE = "study.db"
STATES = {"FAIL": "failed"}  # Optuna's words are ours in small letters, but for this one
STARTUP_TRIALS = 5  # no trial is given up before so many are complete


@dataclass(frozen=True)
class Search:
    run: RunDir
    asked: TuneConfig
    base: RunConfig
    space: Space
    url: str
    name: str  # Optuna's for the study: unique in a database that many studies share
    data: DataConfig  # the base's, resolved
    data_hash: str

    @property
    def trials(self) -> Path:
        return self.run.path / "trials"

    def directory(self, number: int) -> Path:
        return self.trials / str(number)

    def lock(self, number: int | str) -> Path:
        """The file whose lock says that a process works on this trial, or (`ask`) begins one."""
        return self.trials / f".{number}.lock"

    def opened(self) -> AbstractContextManager[Any]:
        """The Optuna study, with its pruner."""
        pruners = storage.imported().pruners
        pruner = pruners.NopPruner()
        if self.asked.pruner == "median":
            warm_up = 1 + self.base.train.epochs // 4  # the first epochs say little about the last ones
            pruner = pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=warm_up)
        return storage.opened(self.url, self.name, self.asked.minimize, pruner)

    def sampler(self, number: int) -> Any:
        """TPE for one trial (Bergstra et al. 2011).

        Its seed is made of the study's and the trial's number: what a trial is given depends on the trials before
        it, not on the process that asks, nor on how often the study was interrupted.
        """
        seed = int(np.random.SeedSequence([self.asked.seed, number]).generate_state(1)[0])
        # The liar keeps trials that run at the same time apart.
        return storage.imported().samplers.TPESampler(seed=seed, constant_liar=True)


def read_search(run: RunDir) -> Search:
    """The study in a directory that `tuning.begin` made."""
    values = study.read_asked(run)
    asked = checked(TuneConfig, {key: value for key, value in values.items() if key != "kind"}, f"'{run.path}'")
    base = read_run_config(run.config)
    known = read_json(run.path / OPTUNA)
    url = known["storage"] or f"sqlite:///{(run.path / DATABASE).resolve()}"
    data = DataConfig.model_validate({"split_seed": base.data.split_seed, **known["data"]})  # new in the second edition
    return Search(run, asked, base, space_of(asked, base), url, known["study"], data, known["hash"])


def asked_of(asked: TuneConfig, base: RunConfig, space: Space) -> dict[str, Any]:
    """What study.yaml holds: the study with everything filled in, and no password."""
    values = asked.model_dump(mode="json") | {"preset": None, "base": base.model_dump(mode="json")}
    values["space"] = {key: _plain(axis) for key, axis in space.items()}
    values["storage"] = asked.storage and storage.shown(asked.storage)
    return {"kind": "tune", **values}


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The value of each key in an Optuna trial: what it was given before, or else what its sampler suggests."""
    return {key: _suggested(trial, key, axis) for key, axis in space.items()}


def record_of(trial: Any, space: Space) -> dict[str, Any]:
    """What an Optuna trial has come to: number, state, value, epochs, seconds, its keys' values, why it ended.

    The value of a pruned trial is that of its last epoch.
    """
    return {
        "number": trial.number,
        "state": STATES.get(trial.state.name, trial.state.name.lower()),
        "value": trial.value,
        "epochs": trial.user_attrs.get("epochs", 0),
        "seconds": trial.user_attrs.get("seconds", 0.0),
        "values": {key: _value(space[key], stored) for key, stored in trial.params.items()},
        "message": trial.user_attrs.get("message", ""),
    }


def _suggested(trial: Any, key: str, axis: Axis) -> Any:
    if isinstance(axis, Choices):
        return _value(axis, trial.suggest_categorical(key, axis.labels))
    if axis.whole:
        return trial.suggest_int(key, int(axis.low), int(axis.high), step=int(axis.step or 1), log=axis.log)
    return trial.suggest_float(key, axis.low, axis.high, step=axis.step, log=axis.log)


def _value(axis: Axis, stored: Any) -> Any:
    return axis.values[axis.labels.index(stored)] if isinstance(axis, Choices) else stored


def _plain(axis: Axis) -> Any:
    if isinstance(axis, Choices):
        return list(axis.values)
    return {key: getattr(axis, key) for key in Bounds.model_fields}
