"""A tuning study as its directory and Optuna's database hold it. No trial is run here.

This module knows the search space, where the trials are stored and what each has found; it opens the database and turns
its errors into one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convsmith.config import RunConfig, read_run_config
from convsmith.contracts import checked
from convsmith.data.config import DataConfig
from convsmith.data.dataset import Dataset, open_dataset
from convsmith.errors import UserError, first_line, missing_extra
from convsmith.records import Optuna, read
from convsmith.rundir import RunDir
from convsmith.studies import study
from convsmith.studies.tune_config import Axis, Bounds, Choices, Space, TuneConfig, space_of
from convsmith.training.own import Parts

if TYPE_CHECKING:
    import optuna

OPTUNA = "optuna.json"  # the database's URL (none: DATABASE), the study's name in it, the base's data and their hash
DATABASE = "study.db"
STATES = {"FAIL": "failed"}  # our names of states are Optuna's in lower case, except for this one
STARTUP_TRIALS = 5  # no trial is pruned before this many are complete
SQLITE_WAIT = 60.0  # seconds that one process waits while another writes
#: packages whose name differs from that of their module
DRIVERS = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}


@dataclass(frozen=True)
class Search:
    run: RunDir
    spec: TuneConfig
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
        """The file whose lock shows that a process works on this trial, or (number `ask`) is starting one."""
        return self.trials / f".{number}.lock"

    def dataset(self, parts: Parts) -> Dataset:
        """The images of all trials. UserError where they are no longer available."""
        return open_dataset(self.data, source=parts.source)

    def opened(self) -> AbstractContextManager[Any]:
        """The Optuna study, with its pruner."""
        pruners = optuna_module().pruners
        pruner = pruners.NopPruner()
        if self.spec.pruner == "median":
            warm_up = 1 + self.base.train.epochs // 4  # the first epochs tell little about the last ones
            pruner = pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=warm_up)
        return opened(self.url, self.name, self.spec.minimize, pruner)

    def sampler(self, number: int) -> Any:
        """TPE for one trial (Bergstra et al. 2011).

        Its seed is derived from the study's seed and the trial's number: the suggestions for a trial depend on the
        trials before it, not on the process that asks or on how often the study was interrupted.
        """
        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1)[0])
        # constant_liar keeps trials that run at the same time from trying the same values.
        return optuna_module().samplers.TPESampler(seed=seed, constant_liar=True)


def read_search(run: RunDir) -> Search:
    """The study in a directory that `tuning.tune` made."""
    values = study.read_spec(run)
    spec = checked(
        TuneConfig,
        {key: value for key, value in values.items() if key not in ("kind", "own_optimizer")},
        f"'{run.path}'",
    )
    base = read_run_config(run.config)
    known = read(run.path / OPTUNA, Optuna)
    url = known["storage"] or f"sqlite:///{(run.path / DATABASE).resolve()}"
    data = DataConfig.model_validate({"split_seed": base.data.split_seed, **known["data"]})  # new in the second edition
    return Search(run, spec, base, space_of(spec, base), url, known["study"], data, known["hash"])


def spec_of(spec: TuneConfig, base: RunConfig, space: Space) -> dict[str, Any]:
    """The content of study.yaml: the study with all defaults filled in, and without a password."""
    values = spec.model_dump(mode="json") | {"preset": None, "base": base.model_dump(mode="json")}
    values["space"] = {key: _plain(axis) for key, axis in space.items()}
    values["storage"] = spec.storage and shown(spec.storage)
    return {"kind": "tune", **values}


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The value of each key in an Optuna trial: the one it already has, or else the one that its sampler suggests."""
    return {key: _suggested(trial, key, axis) for key, axis in space.items()}


def record_of(trial: Any, space: Space) -> dict[str, Any]:
    """The result of an Optuna trial: number, state, value, epochs, seconds, the values of its keys, why it ended.

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


def shown(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(?<=password=)[^&]*", "***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


@contextmanager
def connected(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """A context manager with the database at `url`.

    UserErrors name the URL without its password: where the database does not answer, then or later, where a driver is
    not installed, or where the URL is invalid.
    """
    optuna_module().logging.set_verbosity(optuna_module().logging.WARNING)
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    options = {"connect_args": {"timeout": SQLITE_WAIT}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        storage = _storage(url, options)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"storage '{shown(url)}' cannot be used ({_reason(error)})") from None


@contextmanager
def opened(url: str, name: str, minimize: bool, pruner: optuna.pruners.BasePruner) -> Iterator[optuna.Study]:
    """A context manager with the Optuna study `name` (created if new) in the database at `url`; see `connected`."""
    with connected(url) as storage:
        yield optuna_module().create_study(
            storage=storage,
            study_name=name,
            direction="minimize" if minimize else "maximize",
            pruner=pruner,
            load_if_exists=True,
        )


def optuna_module() -> Any:
    """The `optuna` module; a UserError names the extra where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise missing_extra("optuna", "tune") from None
    return optuna


def _storage(url: str, options: dict[str, Any]) -> optuna.storages.RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError

    try:
        return RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        module = getattr(error.__cause__, "name", None) or "of this database"
        raise UserError(
            f"storage '{shown(url)}' needs the driver {module}: pip install '{DRIVERS.get(module, module)}'"
        ) from None
    except ArgumentError:
        raise UserError(
            f"storage '{shown(url)}' is not the URL of a database that SQLAlchemy knows: give one such as "
            "sqlite:///folder/study.db or postgresql://user@host/database"
        ) from None
    except RuntimeError as error:  # tables of another version of Optuna
        raise UserError(f"storage '{shown(url)}' cannot be used ({first_line(error)})") from None


def _reason(error: BaseException) -> str:
    """The driver's message, without the statement and the links that SQLAlchemy adds."""
    cause = error.__cause__ if error.__cause__ is not None else error
    return first_line(getattr(cause, "orig", None) or cause)
