"""What a tuning study found: trials.csv, best.yaml, figures, and what a person reads at its end."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from convsmith import files
from convsmith.config import validate
from convsmith.display import Display, duration
from convsmith.errors import command
from convsmith.figures.curves import history_figure, importance_figure
from convsmith.figures.style import save
from convsmith.prediction.evaluate import write_rows
from convsmith.studies import storage
from convsmith.studies.search import Search, record_of

TRIALS, BEST = "trials.csv", "best.yaml"
SHOWN = 5  # trials in the table at the end
FEWEST = 8  # complete trials from which the importance of parameters is estimated


@dataclass(frozen=True)
class Found:
    records: Sequence[Mapping[str, Any]]  # of all trials, by number
    ranked: Sequence[Mapping[str, Any]]  # the complete ones, the best first
    importance: Mapping[str, float]
    unexplained: str  # why there is no importance; empty where there is one


def summarise(search: Search, study: Any) -> Found:
    """Write trials.csv, best.yaml, figures/history.png and figures/importance.png from what Optuna knows."""
    trials = study.get_trials(deepcopy=False)
    records = [record_of(trial, search.space) for trial in trials]
    ranked = ranking([record for record in records if record["state"] == "complete"], search.asked.minimize)
    importance, unexplained = _importance(search, study, ranked)
    text = io.StringIO()
    write_rows(text, (_row(record, search) for record in records))
    files.write_text(search.run.path / TRIALS, text.getvalue())
    if not ranked:
        return Found(records, ranked, importance, unexplained)
    best = ranked[0]
    config = validate(next(trial for trial in trials if trial.number == best["number"]).user_attrs["config"])
    config = config.with_values(track=search.base.track.model_dump(mode="json"))
    comment = (
        f"# The best of {len(records)} trials of {search.run.path}: trial {best['number']}, "
        f"{search.asked.metric} {best['value']:.4f}.\n"
        "# It was chosen for this value, which flatters it: cross-validate it, or look once at the test split.\n"
    )
    files.write_text(search.run.path / BEST, comment + config.to_yaml())
    search.run.figures.mkdir(exist_ok=True)
    points = [(r["number"], r["value"], r["state"] == "pruned") for r in records if _has_value(r)]
    history = history_figure(points, search.asked.metric, search.asked.minimize)
    save(history, search.run.figures / "history.png")
    if importance:
        save(importance_figure(importance, search.asked.metric), search.run.figures / "importance.png")
    return Found(records, ranked, importance, unexplained)


def ranking(records: Sequence[Mapping[str, Any]], minimize: bool) -> list[Mapping[str, Any]]:
    """The best value first; among equals the earlier trial."""
    return sorted(records, key=lambda record: (record["value"] if minimize else -record["value"], record["number"]))


def settings(values: Mapping[str, Any]) -> str:
    """``optim.lr 0.0032  model.activation gelu``."""
    return "  ".join(f"{key} {word(value)}" for key, value in values.items())


def word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def show(search: Search, found: Found, display: Display) -> None:
    asked, path = search.asked, search.run.path
    states = [record["state"] for record in found.records]
    counted = [f"{states.count(state)} {state}" for state in dict.fromkeys(("complete", *states)) if state in states]
    display.line(f"\ntrials: {', '.join(counted) or 'none'}")
    if not found.ranked:
        display.line(f"\nwritten: {path / TRIALS}, trials/")
        return
    table = Table("trial", asked.metric, "epochs", "time", *search.space, box=None, pad_edge=False)
    for record in found.ranked[:SHOWN]:
        cells = [str(record["number"]), f"{record['value']:.4f}", str(record["epochs"]), duration(record["seconds"])]
        table.add_row(*cells, *(Text(word(record["values"][key])) for key in search.space))
    display.console.print(table)
    if found.importance:
        shares = "  ".join(f"{key} {share:.0%}" for key, share in found.importance.items())
        display.line(f"\nimportance  {shares}   (share of the variance, fANOVA)")
    else:
        display.line(f"\nimportance  not estimated: {found.unexplained}")
    display.line(
        f"\nThe best {asked.metric} of {len(found.ranked)} trials is optimistic: the trial was chosen for it, on the "
        "very images that it was measured on.\nAn honest score comes from cross-validation of best.yaml, or from one "
        "look at the test split, which no trial has seen."
    )
    figures = "figures/history.png" + (", figures/importance.png" if found.importance else "")
    display.line(f"\nwritten: {path / BEST}, {TRIALS}, {figures}, trials/")
    display.line(f"next: {command('crossval', path / BEST)}")
    display.line(f"      {command('train', path / BEST)}")


def _row(record: Mapping[str, Any], search: Search) -> dict[str, Any]:
    row = {key: record[key] for key in ("number", "state", "value", "epochs", "seconds")}
    given = record["values"]
    return row | {key: json.dumps(v) if isinstance(v := given.get(key), list) else v for key in search.space}


def _has_value(record: Mapping[str, Any]) -> bool:
    return record["state"] in ("complete", "pruned") and record["value"] is not None


def _importance(search: Search, study: Any, ranked: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], str]:
    """Each key's share of the variance between complete trials (fANOVA, Hutter et al. 2014), or why there is none."""
    if len(search.space) < 2:
        return {}, "there is one parameter alone"
    if len(ranked) < FEWEST:
        return {}, f"{len(ranked)} trials are complete, {FEWEST} are needed"
    if ranked[0]["value"] == ranked[-1]["value"]:
        return {}, "all trials have the same value"
    importance = storage.imported().importance
    evaluator = importance.FanovaImportanceEvaluator(seed=search.asked.seed)
    return importance.get_param_importances(study, evaluator=evaluator), ""
