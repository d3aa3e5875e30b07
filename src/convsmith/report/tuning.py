"""report.html of a tuning study, finished or not: what was tried, and how far the best value can be trusted.

All numbers of trials come from Optuna's records, as `studies.tuning` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from convsmith import records
from convsmith.config import read_run_config, word
from convsmith.errors import UserError, command, missing
from convsmith.figures.page import render
from convsmith.records import metric_of
from convsmith.report.charts import KINDS, Axes, Line, line_chart
from convsmith.report.inputs import TEMPLATES, read_metrics
from convsmith.report.intervals import Row, interval_chart
from convsmith.rundir import RunDir
from convsmith.studies import tuning
from convsmith.studies.search import DATABASE, Search, read_search
from convsmith.studies.tune_config import Axis, Choices
from convsmith.studies.tuning import TuningResult

SHOWN = 10  # trials in the first table
ENDED = ("complete", "pruned", "failed")

Trial = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Tuning:
    """A tuning study and its trials, of which `ended` are done in one way or another."""

    search: Search
    result: TuningResult
    ended: int
    environment: dict[str, Any]

    @property
    def run(self) -> RunDir:
        return self.search.run

    @property
    def label(self) -> str:
        """The metric in words, with its unit: ``val accuracy (%)``."""
        metric = metric_of(self.result.metric)
        return f"val {metric.label} (%)" if metric.unit == "share" else f"val {metric.heading}"

    @property
    def percent(self) -> bool:
        return metric_of(self.result.metric).unit == "share"


def read_tuning(run: RunDir) -> Tuning:
    """UserError where no trial has ended, a file is gone or damaged, or the database does not answer."""
    search = read_search(run)
    if search.spec.storage is None and not (run.path / DATABASE).exists():
        raise missing(run.path / DATABASE)
    with search.opened() as known:
        result = tuning.results(search, known)
    ended = sum(trial["state"] in ENDED for trial in result.trials)
    if not ended:
        raise UserError(f"no trial of '{run.path}' has ended yet: {command('resume', run.path)}")
    environment = records.read(run.environment, records.Environment) if run.environment.exists() else {}
    return Tuning(search, result, ended, environment)


def tuning_page(study: Tuning) -> str:
    """report.html of a tuning study."""
    result, spec = study.result, study.search.spec
    ranked, states = result.ranked, [trial["state"] for trial in result.trials]
    table = [_told(study, trial) for trial in (*ranked, *(one for one in result.trials if one not in ranked))]
    base = read_run_config(study.run.config)
    values = {
        "run": study.run,
        "config": base,
        "question": spec.question,
        "label": study.label,
        "metric": study.label.partition(" (")[0],
        "run_metric": study.result.metric,
        "wanted": spec.trials,
        "ended": study.ended,
        "finished": study.ended >= spec.trials,
        "states": {state: states.count(state) for state in ENDED},
        "best": table[0] if ranked else None,
        "history": _history(study),
        "rows": table,
        "shown": SHOWN,
        "space": [_axis(study, key, axis) for key, axis in study.search.space.items()],
        "importances": result.importances,
        "unexplained": result.unexplained,
        "not_complete": [(one["number"], one["state"], one["message"]) for one in result.trials if _fell(one)],
        "curves": _curves(study, ranked),
        "methods": _methods(study, base.train.epochs),
        "commands": _commands(study),
        "environment": study.environment,
    }
    return render(TEMPLATES / "tuning.html", values | {"in_short": _in_short(study, values)})


def _fell(trial: Trial) -> bool:
    return trial["state"] in ("pruned", "failed")


def _shown(study: Tuning, value: float | None) -> str:
    return "" if value is None else records.shown(study.result.metric, value)


def _told(study: Tuning, trial: Trial) -> dict[str, str]:
    """A row of the table of trials."""
    return {
        "trial": str(trial["number"]),
        study.result.metric: _shown(study, trial["value"]),
        "state": trial["state"],
        "epochs": str(trial["epochs"]),
        "seconds": f"{trial['seconds']:.1f}",
        **{key: _word(trial["values"].get(key)) for key in study.result.keys},
    }


def _word(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else word(value)


def _history(study: Tuning) -> Markup | None:
    """The value of each trial by its number, and the best of the complete ones so far."""
    valued = [one for one in study.result.trials if one["state"] in ENDED and one["value"] is not None]
    points = {
        state: [(float(one["number"]), one["value"]) for one in valued if one["state"] == state]
        for state in ("complete", "pruned")
    }
    if not any(points.values()):
        return None
    higher = metric_of(study.result.metric).higher_is_better
    so_far: list[tuple[float, float | None]] = []
    best: float | None = None
    for number, value in points["complete"]:
        if best is not None:
            so_far.append((number, best))  # a step
        best = value if best is None else max(best, value) if higher else min(best, value)
        so_far.append((number, best))
    if so_far:
        so_far.append((float(valued[-1]["number"]), best))
    lines = [Line("best so far", 1, so_far, dotted=False)] if so_far else []
    lines += [
        Line(f"{state} trial", kind, points[state], joined=False, hollow=state == "pruned")
        for kind, state in ((0, "complete"), (3, "pruned"))
        if points[state]
    ]
    end = "" if best is None else f" The best is {_shown(study, best)}."
    words = f"{len(points['complete'])} complete and {len(points['pruned'])} pruned trials by number.{end}"
    return line_chart("Trials", words, Axes("trial", study.label, percent=study.percent), lines)


def _axis(study: Tuning, key: str, axis: Axis) -> dict[str, Any]:
    """A hyperparameter: what was searched, the best value, and the trials by its value."""
    ranked = study.result.ranked
    scale = 100 if study.percent else 1
    valued = [one for one in study.result.trials if one["value"] is not None and key in one["values"]]
    complete = [one for one in valued if one["state"] == "complete"]
    if isinstance(axis, Choices):
        searched = ", ".join(map(_word, axis.values))
        of_values = [
            (value, [one["value"] for one in complete if one["values"][key] == value]) for value in axis.values
        ]
        higher = metric_of(study.result.metric).higher_is_better
        rows = [
            Row(
                _word(value),
                f"best of {len(found)}: {_shown(study, best)}",
                scale * best,
                dots=[scale * v for v in found],
            )
            for value, found in of_values
            if found
            for best in [max(found) if higher else min(found)]
        ]
        chart = interval_chart(f"Trials by {key}", study.label, rows, zero=None) if rows else None
    else:
        searched = f"{axis.low:g} to {axis.high:g}{', logarithmic' if axis.log else ''}"
        lines = [
            Line(
                state, kind, [(one["values"][key], one["value"]) for one in of], joined=False, hollow=state == "pruned"
            )
            for kind, state in ((0, "complete"), (3, "pruned"))
            if (of := [one for one in valued if one["state"] == state])
        ]
        axes = Axes(key, study.label, percent=study.percent, whole_x=axis.whole, logarithmic_x=axis.log)
        words = f"{len(valued)} trials between {axis.low:g} and {axis.high:g}."
        chart = line_chart(f"Trials by {key}", words, axes, lines) if lines else None
    return {
        "key": key,
        "searched": searched,
        "best": _word(ranked[0]["values"][key]) if ranked else "",
        "pruned": any(one["state"] == "pruned" for one in valued) and not isinstance(axis, Choices),
        "share": study.result.importances.get(key),
        "chart": chart,
    }


def _curves(study: Tuning, ranked: Sequence[Trial]) -> dict[str, Any]:
    """The metric by epoch of the best trials, as far as their runs are there."""
    metric, lines, lost = study.result.metric, [], 0
    for kind, trial in enumerate(ranked[:KINDS]):
        file = RunDir(study.search.directory(trial["number"])).metrics
        if not file.exists():
            lost += 1
            continue
        points = [(row["epoch"], row.get(metric)) for row in read_metrics(file)]
        lines.append(Line(f"trial {trial['number']}", kind, points))
    words = f"By epoch, one line for each of the best {len(lines)} trials."
    axes = Axes("epoch", study.label, percent=study.percent)
    charts = [(study.label, line_chart(study.label, words, axes, lines))] if lines else []
    return {"legend": [(line.kind, line.name) for line in lines], "charts": charts, "lost": lost}


def _commands(study: Tuning) -> list[tuple[str, str]]:
    run = study.run
    found = [("make this page again", command("report", run.path))]
    if study.ended < study.search.spec.trials:
        found.insert(0, ("run what is missing", command("resume", run.path)))
    if run.best.exists():
        found[:0] = [
            ("an honest score of the best settings", command("crossval", run.best)),
            ("train them", command("train", run.best)),
        ]
    return found


def _in_short(study: Tuning, values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    result, states = study.result, values["states"]
    found = []
    if best := result.best:
        number = states["complete"]
        told = (
            f"trial {best['number']} is the best of {number:,} with {_shown(study, best['value'])}, which is too good"
        )
        found.append(("result", "Result", f"{told}: it was chosen by that value"))
    if result.importances:
        key, share = next(iter(result.importances.items()))
        found.append(("space", "Hyperparameters", f"{key} explains {share:.0%} of the variance between trials"))
    lost = [f"{states[state]:,} {state}" for state in ("pruned", "failed") if states[state]]
    found.append(("trials", "Trials", f"{study.ended:,} of {study.search.spec.trials:,} have ended, {_none(lost)}"))
    return found


def _none(lost: Sequence[str]) -> str:
    return f"{' and '.join(lost)} of them" if lost else "none of them pruned or failed"


def _methods(study: Tuning, epochs: int) -> str:
    """A paragraph for the methods section of a paper."""
    spec, keys = study.search.spec, study.result.keys
    pruned = (
        "; a trial was stopped where its value lay below the median of the trials before it at the same epoch"
        if spec.pruner == "median"
        else ""
    )
    return (
        f"We searched {len(keys)} hyperparameter{'s' if len(keys) > 1 else ''} ({', '.join(keys)}) with Optuna (Akiba "
        f"et al., 2019) and its tree-structured Parzen estimator (Bergstra et al., 2011), seed {spec.seed}, in "
        f"{spec.trials} trials of at most {epochs} epochs{pruned}. All trials shared one division of the images, and "
        f"were ranked by {study.label.partition(' (')[0]} at the epoch that was kept. The test split was not used. "
        "The best value is a maximum over trials, on the images that chose it, and is reported as such only; the score "
        "of the chosen settings has to come from a cross-validation or, once, from the test split."
    )
