"""The database behind a tuning study: Optuna's, in SQLite or wherever its URL leads, with errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from convsmith.errors import UserError, missing_extra

if TYPE_CHECKING:
    import optuna

SQLITE_WAIT = 60.0  # seconds that one process waits while another writes
#: packages that are not called as the module is that they bring
DRIVERS = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}


def shown(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(?<=password=)[^&]*", "***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


@contextmanager
def connected(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """The database at `url`, within ``with``.

    UserErrors name the URL without its password: a database that does not answer, then or later, a driver that
    is not installed, a URL that is none.
    """
    imported().logging.set_verbosity(imported().logging.WARNING)
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
    """The Optuna study `name` (made where it is new) in the database at `url`, as `connected`."""
    with connected(url) as storage:
        yield imported().create_study(
            storage=storage,
            study_name=name,
            direction="minimize" if minimize else "maximize",
            pruner=pruner,
            load_if_exists=True,
        )


def imported() -> Any:
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
            f"storage '{shown(url)}' is no URL of a database that SQLAlchemy knows: give one such as "
            "sqlite:///folder/study.db or postgresql://user@host/database"
        ) from None
    except RuntimeError as error:  # tables of another version of Optuna
        raise UserError(f"storage '{shown(url)}' cannot be used ({_first_line(error)})") from None


def _reason(error: BaseException) -> str:
    """What the driver said, without SQLAlchemy's statement and links."""
    cause = error.__cause__ if error.__cause__ is not None else error
    return _first_line(getattr(cause, "orig", None) or cause)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
