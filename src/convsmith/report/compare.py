"""Several runs side by side: results, what differs in their configs, curves overlaid, paired predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convsmith.errors import UserError, command
from convsmith.files import explain_os_errors, write_text
from convsmith.prediction.evaluation import Predictions
from convsmith.prediction.metrics import wilson_interval
from convsmith.records import METRICS, metric_values, shown
from convsmith.report.analysis import Pairing, pair
from convsmith.report.charts import KINDS, Axes, Line, line_chart
from convsmith.report.inputs import Inputs, read_inputs
from convsmith.report.page import Gallery, render
from convsmith.studies.statistics import PairedAccuracies

EACH_WAY = 18  # images shown that one model alone gets right
LONGEST_NAME = 120  # characters of the page's file name
ALPHA = 0.05
ABSENT = "-"  # of a key that one config does not have, such as that of a further block


@dataclass(frozen=True)
class Versus:
    """A run against the first one. Without a `pairing` they saw different images, and `unpaired` says so.

    `result` is corrected for the number of comparisons (Bonferroni): its p times that number, and its interval at the
    level that goes with it, so that all intervals together hold with 95%.
    """

    name: str
    pairing: Pairing | None
    unpaired: str
    result: PairedAccuracies | None
    comparisons: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference shown``."""
        if self.result is None or self.result.p >= ALPHA:
            return "no difference shown"
        return "better" if self.result.difference > 0 else "worse"

    def words(self, first: str) -> str:
        """What the comparison found, in one or two sentences."""
        if self.pairing is None or self.result is None:
            return f"{self.name} and {first} cannot be paired: {self.unpaired}."
        wins, losses = len(self.pairing.only_second), len(self.pairing.only_first)
        result, corrected = self.result, f", for {self.comparisons} comparisons" if self.comparisons > 1 else ""
        chance = f"p = {result.p:.4f}" if result.p >= 0.0001 else "p < 0.0001"
        return (
            f"{self.name} is right on {wins:,} images on which {first} is wrong, and wrong on {losses:,} on which "
            f"{first} is right: {100 * result.difference:+.2f} points of accuracy (95% interval "
            f"{100 * result.low:+.2f} to {100 * result.high:+.2f}, {chance}{corrected}): {self.verdict}."
        )


@dataclass(frozen=True)
class Compared:
    """Runs by the name that tells them apart, the first being what the others are compared with."""

    runs: dict[str, Inputs]
    differences: list[tuple[str, list[str]]]  # key, its value in each run
    versus: list[Versus]


def compare(paths: Sequence[Path]) -> Compared:
    """Read the runs and pair each with the first. UserError for fewer than two, for one twice, or one unfinished."""
    if len(paths) < 2:
        raise UserError(f"compare needs at least two runs: {command('compare', paths[0])} OTHER_RUN")
    if twice := [path for at, path in enumerate(paths) if path.resolve() in {one.resolve() for one in paths[:at]}]:
        raise UserError(f"run '{twice[0]}' is given twice: compare different runs")
    alike = len({path.resolve().name for path in paths}) < len(paths)
    runs = {str(path) if alike else path.resolve().name: read_inputs(path) for path in paths}
    first, *others = runs.values()
    pairings = [pair(first.predictions, other.predictions) for other in others]
    comparisons = sum(isinstance(pairing, Pairing) for pairing in pairings)
    versus = [
        Versus(name, None, pairing, None, comparisons)
        if isinstance(pairing, str)
        else Versus(name, pairing, "", _corrected(pairing, comparisons), comparisons)
        for name, pairing in zip(list(runs)[1:], pairings, strict=True)
    ]
    return Compared(runs, _differences(list(runs.values())), versus)


def _corrected(pairing: Pairing, comparisons: int) -> PairedAccuracies:
    """The test and its interval, both corrected by Bonferroni's method, which keeps the two in agreement."""
    result = pairing.test(1 - ALPHA / comparisons)
    return replace(result, p=min(1.0, comparisons * result.p))


def _differences(runs: Sequence[Inputs]) -> list[tuple[str, list[str]]]:
    flat = [dict(_flat(run.config.model_dump(mode="json"))) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [(key, [config.get(key, ABSENT) for config in flat]) for key in keys]
    return [
        (key, [_word(value) for value in values]) for key, values in rows if any(one != values[0] for one in values)
    ]


def _word(value: Any) -> str:
    """A value as a config file and a flag have it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"blocks": [{"norm": "none"}]}}`` -> ``("model.blocks[0].norm", "none")``."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{above}.{name}" if above else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{above}[{place}]")
    else:
        yield above, value


def results(compared: Compared) -> list[dict[str, Any]]:
    """A row a run: the val split's scores, and what they cost."""
    rows = []
    for name, inputs in compared.runs.items():
        record, summary = inputs.evaluation, inputs.summary
        values = metric_values(record)  # an older edition has not recorded all of them
        rows.append(
            {
                "name": name,
                "shown": {name: shown(name, values[name]) if name in values else ABSENT for name in METRICS},
                "interval": wilson_interval(round(record["accuracy"] * record["n"]), record["n"]),
                "n": record["n"],
                "best_epoch": summary["best_epoch"],
                "epochs": summary["epochs"],
                "parameters": summary["parameters"],
                "seconds": summary["seconds"],
            }
        )
    return rows


def default_path(paths: Sequence[Path]) -> Path:
    """Beside the first run: ``compare-<first>-<second>....html``."""
    stem = "-".join(["compare", *(path.resolve().name for path in paths)])
    folder = paths[0].parent if paths[0].name else paths[0].resolve().parent
    return folder / f"{stem[:LONGEST_NAME]}.html"


def write_page(compared: Compared, path: Path) -> None:
    """The comparison as one self-contained HTML file."""
    if path.is_dir():
        raise UserError(f"--out '{path}' is a folder: name a file in it, such as {path / 'compare.html'}")
    first = next(iter(compared.runs.values()))
    gallery = Gallery(first.dataset.val if first.dataset else None, first.predictions.ids)
    values = {
        "names": list(compared.runs),
        "results": results(compared),
        "metrics": [metric for name, metric in METRICS.items() if name != "accuracy"],
        "differences": compared.differences,
        "charts": [_chart(compared, *chart) for chart in CHARTS],
        "legend": [(at % KINDS, name) for at, name in enumerate(compared.runs)],
        "versus": [_shown(compared, one, gallery) for one in compared.versus],
        "comparisons": sum(one.pairing is not None for one in compared.versus),
        "absent": first.absent,
        "command": command("compare", *(run.run.path for run in compared.runs.values())),
    }
    with explain_os_errors(f"'{path}'"):
        write_text(path, render("compare.html", values))


CHARTS = (
    ("val_accuracy", "validation accuracy (%)", True),
    ("val_loss", "validation loss (nats)", False),
    ("train_loss", "training loss (nats)", False),
)


def _chart(compared: Compared, key: str, label: str, percent: bool) -> tuple[str, Any]:
    lines = [
        Line(name, at % KINDS, [(row["epoch"], row[key]) for row in inputs.rows])
        for at, (name, inputs) in enumerate(compared.runs.items())
    ]
    words = "; ".join(f"{name} ends at {inputs.rows[-1][key]:.4g}" for name, inputs in compared.runs.items())
    return label, line_chart(label, f"By epoch: {words}.", Axes("epoch", label, percent=percent), lines)


def _shown(compared: Compared, versus: Versus, gallery: Gallery) -> dict[str, Any]:
    """The words of a comparison, and the images that either model alone gets right."""
    first_name, first = next(iter(compared.runs.items()))
    shown: dict[str, Any] = {"name": versus.name, "words": versus.words(first_name), "ways": []}
    if versus.pairing is None:
        return shown
    second = compared.runs[versus.name].predictions
    ours, theirs = first.predictions, _ordered(second, versus.pairing)
    for winner, loser, positions, wrong in (
        (versus.name, first_name, versus.pairing.only_second, ours),
        (first_name, versus.name, versus.pairing.only_first, theirs),
    ):
        confidence = wrong.probabilities[positions].max(axis=1) if len(positions) else positions
        chosen = [int(at) for at in positions[np.argsort(-confidence, kind="stable")][:EACH_WAY]]
        gallery.add(chosen)
        shots = [
            {
                "id": ours.ids[at],
                "uri": gallery.uris.get(at),
                "true": ours.classes[ours.labels[at]],
                "wrong": wrong.classes[wrong.predicted[at]],
                "confidence": float(wrong.probabilities[at].max()),
            }
            for at in chosen
        ]
        shown["ways"].append({"winner": winner, "loser": loser, "count": len(positions), "shots": shots})
    return shown


def _ordered(predictions: Predictions, pairing: Pairing) -> Predictions:
    """The second model's predictions in the first one's order."""
    order = pairing.partner
    ids = tuple(predictions.ids[at] for at in order)
    return Predictions(ids, predictions.labels[order], predictions.probabilities[order], predictions.classes)
