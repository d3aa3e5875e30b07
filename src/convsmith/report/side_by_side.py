"""Several runs as one table of words, in which only what differs between them has a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convsmith.figures.page import interval, number
from convsmith.records import METRICS, shown

SETTINGS = "settings"
ABSENT = "-"  # in place of a metric that a run has not recorded
ALWAYS = ("run", "accuracy", "95% interval")


def side_by_side(
    table: Sequence[Mapping[str, Any]], differences: Sequence[tuple[str, Sequence[str]]]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """A row for each run, and what is the same in all of them, by its heading.

    `table` and `differences` are those of a `compare.Comparison`. The last column, where there is one, has the settings
    in which the configs differ, as ``key=value``.
    """
    rows = [_row(one) for one in table]
    alike = {
        name: rows[0][name]
        for name in rows[0]
        if name not in ALWAYS and all(row[name] == rows[0][name] for row in rows)
    }
    kept = [{name: cell for name, cell in row.items() if name not in alike} for row in rows]
    if differences:
        for at, row in enumerate(kept):
            row[SETTINGS] = ", ".join(f"{key}={values[at]}" for key, values in differences)
    return kept, {name: cell for name, cell in alike.items() if cell != ABSENT}


def _row(run: Mapping[str, Any]) -> dict[str, str]:
    metrics = {metric.heading: shown(name, run[name]) if name in run else ABSENT for name, metric in METRICS.items()}
    return {
        "run": run["name"],
        "accuracy": metrics.pop("accuracy"),
        "95% interval": interval(run["accuracy_ci95"], 2),
        **metrics,
        "images": number(run["n"]),
        "best epoch": f"{run['best_epoch']} of {run['epochs']}",
        "parameters": number(run["parameters"]),
        "seconds": f"{run['seconds']:.1f}",
    }
