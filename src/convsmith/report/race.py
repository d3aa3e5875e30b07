"""The section of a report on the race that its run has won (`convsmith auto`)."""

from __future__ import annotations

from typing import Any

from convsmith.rundir import RunDir, race_of
from convsmith.studies.auto_plan import standings


def race(run: RunDir) -> dict[str, Any] | None:
    """The candidates and how each ended, with the estimate; None for a run that was trained by itself."""
    record = race_of(run)
    if record is None:
        return None
    return {
        "minutes": record["minutes"],
        "because": record["stopped_because"],
        "folds": record["folds"],
        "data": record["data"],
        "estimate": record["estimate"],
        "rows": standings(record),
    }
