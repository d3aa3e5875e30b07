"""Several runs side by side: results, what differs in their configs, curves overlaid, paired predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convsmith.config import differences, word
from convsmith.data.config import DecodeRules
from convsmith.data.sources import ARRAYS
from convsmith.errors import UserError, command
from convsmith.figures.page import is_page, render
from convsmith.files import explain_os_errors, refuse_to_replace, write_text
from convsmith.memory import explain_memory_errors
from convsmith.prediction.evaluation import Predictions
from convsmith.prediction.metrics import accuracy_interval
from convsmith.records import recorded, worth_showing
from convsmith.report.analysis import Pairing, pair
from convsmith.report.charts import KINDS, MOST_DOTS, Axes, Line, line_chart
from convsmith.report.images import Gallery
from convsmith.report.inputs import TEMPLATES, Inputs, read_inputs
from convsmith.report.side_by_side import SETTINGS, side_by_side
from convsmith.studies.statistics import LEVEL, PairedAccuracies, corrected_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EACH_WAY = 18  # images shown that only one model classifies correctly
LONGEST_NAME = 120  # characters of the page's file name
AT_ONCE = 256  # images that are held in memory


@dataclass(frozen=True, eq=False)
class Versus:
    """A run compared with the first one. Where there is no `pairing`, `unpaired` gives the reason.

    `result` is corrected for the number of `comparisons` (Bonferroni): its p is multiplied by that number, and its
    interval has the corresponding level, so that all intervals together hold with 95% probability.
    """

    name: str
    reference: str
    pairing: Pairing | None
    unpaired: str
    result: PairedAccuracies | None
    comparisons: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference shown``."""
        if self.result is None or self.result.p >= 1 - LEVEL:
            return "no difference shown"
        return "better" if self.result.difference > 0 else "worse"

    @property
    def words(self) -> str:
        """The result of the comparison in one sentence."""
        name, reference, result = self.name, self.reference, self.result
        if self.pairing is None or result is None:
            return f"{name} and {reference} cannot be paired: {self.unpaired}."
        wins, losses = len(self.pairing.only_second), len(self.pairing.only_first)
        corrected = f", corrected for {self.comparisons} comparisons" if self.comparisons > 1 else ""
        p = f"p = {result.p:.4f}" if result.p >= 0.0001 else "p < 0.0001"
        return (
            f"{name} classifies {wins:,} images correctly that {reference} gets wrong, and gets {losses:,} wrong that "
            f"{reference} classifies correctly: {100 * result.difference:+.2f} points of accuracy (95% interval "
            f"{100 * result.low:+.2f} to {100 * result.high:+.2f}, {p}{corrected}): {self.verdict}."
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several runs side by side, and the path of the page about them.

    `table` has one dict per run: its name, each of METRICS that it has recorded, `accuracy_ci95` (Wilson), n,
    best_epoch, epochs, parameters and seconds. `differences` lists the keys in which the configs differ, each with its
    value in every run. `versus` compares each further run with the first.
    """

    table: list[dict[str, Any]]
    differences: list[tuple[str, list[str]]]
    versus: list[Versus]
    path: Path
    curves_of: dict[str, list[dict[str, Any]]]  # run -> the rows of its metrics.csv

    def __repr__(self) -> str:
        scores = ", ".join(f"{row['name']}: {row['accuracy']:.2%}" for row in self.table)
        return f"Comparison({str(self.path)!r}, {scores})"

    def curves(self, metric: str = "val_accuracy") -> Figure:
        """A column of metrics.csv by epoch, one line per run, as a matplotlib Figure."""
        from convsmith.figures import style

        figure = style.new_figure(6.4, 4.2)
        axes = figure.add_subplot()
        for at, (name, rows) in enumerate(self.curves_of.items()):
            points = [(row["epoch"], recorded(row, metric)) for row in rows]
            axes.plot(
                *zip(*points, strict=True),
                label=style.literal(name),
                **style.line_style(at, marker=len(points) <= MOST_DOTS),
            )
        style.label_axes(axes, "", "epoch", metric.replace("_", " "))
        style.epoch_axis(axes, sorted({row["epoch"] for rows in self.curves_of.values() for row in rows}))
        axes.legend()
        return figure


@explain_memory_errors("in the comparison")
def compare(runs: Sequence[Path], out: Path | None = None) -> Comparison:
    """Compare finished runs on their validation splits, the first being the reference, and write a page about them.

    `out` is the file of the page; by default it is compare-<runs>.html beside the first run. UserError for fewer than
    two runs, and for a run that is given twice, unfinished or damaged.
    """
    if len(runs) < 2:
        raise UserError(f"compare needs at least two runs: {command('compare', *(runs or ('RUN',)))} OTHER_RUN")
    if twice := [path for at, path in enumerate(runs) if path.resolve() in {one.resolve() for one in runs[:at]}]:
        raise UserError(f"run '{twice[0]}' is given twice: compare different runs")
    path = out or _default_path(runs)
    if path.suffix not in (".html", ".htm") and not path.is_dir():
        raise UserError(f"--out '{path}' must end in .html")
    refuse_to_replace(path, is_page, "a page of convsmith")
    alike = len({one.resolve().name for one in runs}) < len(runs)
    inputs = {str(one) if alike else one.resolve().name: read_inputs(one) for one in runs}
    comparison = Comparison(
        table=[_row(name, one) for name, one in inputs.items()],
        differences=[
            (key, [word(value) for value in values])
            for key, values in differences([one.config.model_dump(mode="json") for one in inputs.values()])
        ],
        versus=_versus(inputs),
        path=path,
        curves_of={name: one.rows for name, one in inputs.items()},
    )
    with explain_os_errors(f"'{path}'"):
        write_text(path, _page(comparison, inputs))
    return comparison


def _versus(inputs: Mapping[str, Inputs]) -> list[Versus]:
    (reference, first), *others = inputs.items()
    pairings = {name: _pair(first, other) for name, other in others}
    comparisons = sum(isinstance(pairing, Pairing) for pairing in pairings.values())
    return [
        Versus(name, reference, None, pairing, None, comparisons)
        if isinstance(pairing, str)
        else Versus(name, reference, pairing, "", _corrected(pairing, comparisons), comparisons)
        for name, pairing in pairings.items()
    ]


def _pair(first: Inputs, other: Inputs) -> Pairing | str:
    """As `analysis.pair`; two data sets may have given the same names to different images."""
    pairing = pair(first.predictions, other.predictions)
    if isinstance(pairing, str) or _same_images(first, other, pairing):
        return pairing
    return "the images of their val splits have the same names and are not the same"


def _same_images(first: Inputs, other: Inputs, pairing: Pairing) -> bool:
    """Whether images with the same name are the same, as far as can be told: pixels that were decoded by different
    rules cannot be compared.
    """
    if first.splits["hash"] == other.splits["hash"]:
        return True
    if DecodeRules.of(first.card.preprocessing) != DecodeRules.of(other.card.preprocessing):
        return True
    if first.dataset is None or other.dataset is None:
        return first.config.data.source == other.config.data.source != ARRAYS
    ours, theirs = first.dataset.val, other.dataset.val
    return all(
        np.array_equal(ours.gather(at), theirs.gather(pairing.partner[at]))
        for at in np.array_split(np.arange(len(ours)), -(-len(ours) // AT_ONCE))
    )


def _corrected(pairing: Pairing, comparisons: int) -> PairedAccuracies:
    """The test and its interval, both corrected by Bonferroni's method so that they stay consistent."""
    result = pairing.test(corrected_level(comparisons))
    return replace(result, p=min(1.0, comparisons * result.p))


def _row(name: str, inputs: Inputs) -> dict[str, Any]:
    """A run's scores on the validation split, and its costs."""
    record, summary = inputs.evaluation, inputs.summary
    return {
        "name": name,
        **worth_showing(record),  # an older edition did not record all of them
        "accuracy_ci95": accuracy_interval(record),
        "n": record["n"],
        **{key: summary[key] for key in ("best_epoch", "epochs", "parameters", "seconds")},
    }


def _default_path(runs: Sequence[Path]) -> Path:
    """Beside the first run: ``compare-<first>-<second>....html``."""
    name = "-".join(["compare", *(path.resolve().name for path in runs)])
    folder = runs[0].parent if runs[0].name else runs[0].resolve().parent
    return folder / f"{name[:LONGEST_NAME]}.html"


def _page(comparison: Comparison, inputs: Mapping[str, Inputs]) -> str:
    """The comparison as one self-contained HTML file."""
    first = next(iter(inputs.values()))
    gallery = Gallery(first.dataset.val if first.dataset else None, first.predictions.ids)
    rows, alike = side_by_side(comparison.table, comparison.differences)
    values = {
        "names": list(inputs),
        "rows": rows,
        "columns": [name for name in rows[0] if name not in ("run", SETTINGS)],
        "settings": [[(key, values[at]) for key, values in comparison.differences] for at in range(len(rows))],
        "alike": alike,
        "charts": [_chart(inputs, *chart) for chart in CHARTS],
        "legend": [(at % KINDS, name) for at, name in enumerate(inputs)],
        "versus": [_images_of(inputs, one, gallery) for one in comparison.versus],
        "comparisons": sum(one.pairing is not None for one in comparison.versus),
        "absent": first.absent,
        "command": command("compare", *(one.run.path for one in inputs.values())),
    }
    return render(TEMPLATES / "compare.html", values)


CHARTS = (
    ("val_accuracy", "validation accuracy (%)", True),
    ("val_loss", "validation loss (nats)", False),
    ("train_loss", "training loss (nats)", False),
)


def _chart(runs: Mapping[str, Inputs], key: str, label: str, percent: bool) -> tuple[str, Any]:
    lines = [
        Line(name, at % KINDS, [(row["epoch"], row[key]) for row in inputs.rows])
        for at, (name, inputs) in enumerate(runs.items())
    ]
    words = "; ".join(f"{name} ends at {inputs.rows[-1][key]:.4g}" for name, inputs in runs.items())
    return label, line_chart(label, f"By epoch: {words}.", Axes("epoch", label, percent=percent), lines)


def _images_of(runs: Mapping[str, Inputs], versus: Versus, gallery: Gallery) -> dict[str, Any]:
    """The sentence of a comparison, and the images that only one of the two models classifies correctly."""
    first_name, first = next(iter(runs.items()))
    section: dict[str, Any] = {"name": versus.name, "words": versus.words, "ways": []}
    if versus.pairing is None:
        return section
    second = runs[versus.name].predictions
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
        section["ways"].append({"winner": winner, "loser": loser, "count": len(positions), "shots": shots})
    return section


def _ordered(predictions: Predictions, pairing: Pairing) -> Predictions:
    """The second model's predictions in the first one's order."""
    order = pairing.partner
    ids = tuple(predictions.ids[at] for at in order)
    return Predictions(ids, predictions.labels[order], predictions.probabilities[order], predictions.classes)
