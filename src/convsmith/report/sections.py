"""The sections of a report that hold numbers, curves and words, each as plain values for the template."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from convsmith.errors import command
from convsmith.figures.page import percent
from convsmith.nets.shapes import totals, trace
from convsmith.prediction.evaluation import Predictions
from convsmith.prediction.metrics import accuracy_interval
from convsmith.records import METRICS, MONITORS, shown, worth_showing
from convsmith.report.advice import Setting, proposals, results
from convsmith.report.analysis import class_scores, scaling
from convsmith.report.charts import Axes, Line, Mark, line_chart
from convsmith.report.diagnosis import NO_FAULT, ROOM, RULES, TOO_SHORT, course, diagnose, not_judged, standard_error
from convsmith.report.inputs import Inputs
from convsmith.transfer.unfreezing import plan

Section = dict[str, Any]
DECADES = 1e-4  # of the highest learning rate: a curve that goes lower is not drawn on a logarithmic axis
CUTTING = ("step", "plateau")  # schedules that cut the rate in steps; for the others the curve itself is clearer
CUT = 0.9
MOST_CUTS = 8  # if there are more, only the curve shows them


def result(inputs: Inputs) -> Section:
    """The scores on the validation split, on the test split if it was opened, and on other data."""
    others = [_scores(record) | {"data": record["data"]} for record in inputs.others]
    test = _scores(inputs.test) if inputs.test else None
    return {"val": _scores(inputs.evaluation), "test": test, "others": others}


def _scores(record: Mapping[str, Any]) -> Section:
    low, high = accuracy_interval(record)
    return {
        "n": record["n"],
        "accuracy": record["accuracy"],
        "interval": (low, high),
        "further": [
            (METRICS[name].heading, shown(name, value))
            for name, value in worth_showing(record).items()
            if name != "accuracy"
        ],
    }


def diagnosis(inputs: Inputs) -> Section:
    """Findings with their rules, and the next experiments."""
    classes, train = len(inputs.card.classes), len(inputs.splits["splits"]["train"])
    seen = course(inputs.rows, inputs.summary, inputs.config, classes, train, inputs.evaluation["n"])
    findings = diagnose(seen)
    setting = Setting(inputs.config, train / classes, seen.room)
    own = inputs.config.is_own
    return {
        "findings": [asdict(finding) | {"rule": RULES.get(finding.name)} for finding in findings],
        "rules": RULES,
        "own": own,
        "not_judged": not_judged(seen),
        "room": seen.room,
        "has_room": seen.room >= ROOM,
        "proposals": proposals(findings, setting, inputs.run.config, results()),
    }


def curves(inputs: Inputs) -> Section:
    """Loss, accuracy and learning rate by epoch, with marks at the best epoch, cuts of the rate and unfreezings."""
    rows, best = inputs.rows, inputs.summary["best_epoch"]
    cuts = rate_cuts(rows) if inputs.config.schedule.name in CUTTING else []
    clean = [row for row in rows if row.get("clean_train_accuracy") is not None]  # measured in some epochs only
    marks = [Mark(best, f"best: {best}"), *cuts, *unfreezings(inputs)]
    charts = []
    for metric, title, unit, as_percent in (
        ("loss", "Loss", "loss (cross-entropy, nats)", False),
        ("accuracy", "Accuracy", "accuracy (%)", True),
    ):
        lines = [_line(rows, f"train_{metric}", "training", 0), _line(rows, f"val_{metric}", "validation", 1)]
        if clean:
            key = f"clean_train_{metric}"
            lines.append(Line("clean training images", 3, [(row["epoch"], row[key]) for row in clean]))
        first, last = rows[0][f"val_{metric}"], rows[-1][f"val_{metric}"]
        words = f"{title} by epoch. Validation goes from {first:.4g} to {last:.4g}; the best epoch is {best}."
        charts.append((unit, line_chart(title, words, Axes("epoch", unit, percent=as_percent), lines, marks)))
    rates = [row["learning_rate"] for row in rows]
    # A cosine schedule ends near zero: eight decades for its last epoch would hide all the others.
    wide = DECADES * max(rates) < min(rates) < max(rates) / 30
    words = f"Learning rate by epoch, from {rates[0]:.3g} to {rates[-1]:.3g}."
    axes = Axes("epoch", "learning rate", logarithmic=wide)
    charts.append(
        ("learning rate", line_chart("Learning rate", words, axes, [_line(rows, "learning_rate", "rate", 2)], marks))
    )
    names = [(0, "training"), (1, "validation"), (2, "learning rate")]
    names += [(3, "clean training images")] if clean else []
    recorded = [name for name in MONITORS if name in rows[0]]  # older editions recorded fewer
    return {"charts": charts, "names": names, "rows": rows, "metrics": recorded, "clean": bool(clean)}


def rate_cuts(rows: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """A mark at each epoch whose learning rate is below `CUT` times that of the epoch before, unless there are many."""
    cuts = [
        after
        for before, after in itertools.pairwise(rows)
        if before["learning_rate"] and after["learning_rate"] < CUT * before["learning_rate"]
    ]
    if len(cuts) > MOST_CUTS:
        return []
    return [Mark(row["epoch"], f"rate {row['learning_rate']:.2g}") for row in cuts if row["learning_rate"]]


def unfreezings(inputs: Inputs) -> list[Mark]:
    """A mark at the first epoch of each phase of finetuning, with the stages that train from then on."""
    if inputs.model is None or not inputs.config.transfer.freeze:
        return []
    finetuning = plan(inputs.model, inputs.config.transfer, inputs.config.train.epochs)
    phases = finetuning.phases[1:] if finetuning else ()
    return [
        Mark(phase.epoch + 1, f"+ {', '.join(phase.unfrozen)}") for phase in phases if phase.epoch < len(inputs.rows)
    ]


def _line(rows: Sequence[Mapping[str, Any]], key: str, name: str, kind: int) -> Line:
    return Line(name, kind, [(row["epoch"], row[key]) for row in rows])


def per_class(predictions: Predictions) -> list[Section]:
    """The scores of each class, the lowest F1 first; classes without images last."""
    found = class_scores(predictions.confusion, predictions.classes, np.random.default_rng(0))
    return [asdict(scores) for scores in sorted(found, key=lambda one: (not one.support, one.f1))]


def calibration(predictions: Predictions) -> Section | None:
    """The reliability diagram as trained and after temperature scaling; None for too few images."""
    found = scaling(predictions, np.random.default_rng(0))
    if found is None:
        return None
    lines = [Line("perfect", 3, [(0.0, 0.0), (1.0, 1.0)])]
    for name, kind, bins in (("as trained", 1, found.before), ("after temperature scaling", 0, found.after)):
        filled = np.flatnonzero(bins.count)
        points = [(float(bins.confidence[at]), float(bins.accuracy[at])) for at in filled]
        lines.append(Line(name, kind, points, [int(bins.count[at]) for at in filled]))
    words = (
        f"Accuracy by confidence. The expected calibration error is {100 * found.before.error:.2f}% as trained and "
        f"{100 * found.after.error:.2f}% after temperature scaling."
    )
    axes = Axes("confidence", "accuracy (%)", percent=True, whole_x=False, y_range=(0.0, 1.0))
    table = [
        {
            "low": float(found.before.edges[at]),
            "high": float(found.before.edges[at + 1]),
            "count": int(found.before.count[at]),
            "confidence": float(found.before.confidence[at]),
            "accuracy": float(found.before.accuracy[at]),
        }
        for at in np.flatnonzero(found.before.count)
    ]
    return {
        "chart": line_chart("Reliability diagram", words, axes, lines),
        "names": [(line.kind, line.name) for line in lines],
        "bins": table,
        "temperature": found.temperature,
        "ece": (found.before.error, found.after.error),
        "loss": (found.loss_before, found.loss_after),
    }


def layers(inputs: Inputs) -> Section | None:
    """The network layer by layer; None where the module is the user's own and was not passed in."""
    if inputs.model is None:
        return None
    preprocessing = inputs.card.preprocessing
    rows = trace(inputs.model, preprocessing.channels, preprocessing.image_size)
    total = totals(rows)
    return {"rows": rows, "parameters": total.parameters, "macs": total.macs}


def data(inputs: Inputs) -> Section:
    """The number of images of each class in each split; for the test split only the total."""
    dataset, config, card = inputs.dataset, inputs.config.data, inputs.card
    sizes = {split: len(ids) for split, ids in inputs.splits["splits"].items()}
    classes: list[Section] = []
    if dataset is not None:
        train, val = (np.bincount(part.labels, minlength=len(card.classes)) for part in (dataset.train, dataset.val))
        most = max(int(train.max()), 1)
        classes = [
            {"name": name, "train": int(train[at]), "val": int(val[at]), "width": 100 * int(train[at]) / most}
            for at, name in enumerate(card.classes)
        ]
    return {
        "source": config.title,
        "name": config.short_name,
        "sizes": sizes,
        "classes": classes,
        "hash": inputs.splits["hash"],
        "skipped": inputs.summary.get("skipped_files", 0),
        "preprocessing": card.preprocessing,
        "absent": inputs.absent,
        "augment": inputs.config.augment.active,
    }


def reproduction(inputs: Inputs) -> Section:
    """Config, environment, and the commands that repeat the run or use it."""
    run = inputs.run.path
    commands = [
        ("train it again", command("train", inputs.run.config)),
        ("make this page again", command("report", run)),
        ("classify images", f"{command('predict', run)} IMAGE..."),
        ("compare it with another run", f"{command('compare', run)} OTHER_RUN"),
    ]
    if "test" in inputs.splits["splits"] and inputs.test is None:
        commands.insert(1, ("open the test split, once", f"{command('evaluate', run)} --split test"))
    return {
        "commands": commands,
        "config": inputs.config.to_yaml(),
        "environment": inputs.environment,
        "openings": inputs.openings,
    }


SURE = 2  # standard errors of the accuracy by which the mean confidence must differ to count


def summary(predictions: Predictions, values: Mapping[str, Any], findings: Sequence[str]) -> list[tuple[str, str, str]]:
    """The summary as (section id, title, sentence) each, from the sections in `values` and the names of `findings`."""
    labels, classes = predictions.labels, predictions.classes
    most = np.bincount(labels, minlength=len(classes))
    guess = f"always predicting '{classes[most.argmax()]}' would reach {percent(most.max() / len(labels))}"
    right, where, chosen = float(predictions.correct.mean()), "", ""
    if estimate := values.get("out_of_fold"):
        right, where = estimate["accuracy"], " out of fold"
        chosen = f" (on {len(labels):,} validation images, which took part in the choice of the winner)"
    found = [("result", "Result", f"{percent(right)} of the images are classified correctly{where}; {guess}")]
    if findings:
        found.append(("diagnosis", "Training", _training(findings)))
    there = [one for one in values["classes"] if one["support"]]
    low, high = there[0], there[-1]
    if low["f1"] < high["f1"]:
        easiest = f"the easiest '{high['name']}' ({percent(high['f1'])})"
        words = f"the hardest class is '{low['name']}' (F1 {percent(low['f1'])}) and {easiest}"
        found.append(("classes", "Classes", words + chosen))
    found.append(("confusion", "Mistakes", _mistakes(predictions) + chosen))
    if values["calibration"]:
        found.append(("calibration", "Confidence", _confidence(predictions) + chosen))
    if not values["suspected"]["reason"]:
        found.append(("labels", "Labels", _labels(values["suspected"])))
    return found


def _training(findings: Sequence[str]) -> str:
    if findings[0] == NO_FAULT:
        return "the learning curves show no fault"
    return "the run is too short for a diagnosis" if findings[0] == TOO_SHORT else ", ".join(findings)


def _mistakes(predictions: Predictions) -> str:
    """The total number of mistakes, and the most frequent confusion."""
    classes = predictions.classes
    counts = predictions.confusion.copy()
    of = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    if not counts.any():
        return "there are none: every image is classified correctly"
    true, guessed = np.unravel_index(counts.argmax(), counts.shape)
    most = counts[true, guessed]
    if most == 1:
        number = int(counts.sum())
        return "there is 1" if number == 1 else f"there are {number:,}, and no two of the same kind"
    pair = f"'{classes[true]}' is predicted as '{classes[guessed]}' ({most:,} of {of[true]:,})"
    return f"there are {counts.sum():,}; most often, {pair}"


def _labels(suspected: Mapping[str, Any]) -> str:
    count, of = suspected["count"], suspected["of"]
    if not count:
        return "no label looks wrong"
    if suspected["many"]:
        return f"{count:,} of {of:,} look wrong to this model, which says more about the model than about the labels"
    return f"{count:,} of {of:,} may be mislabelled"


def _confidence(predictions: Predictions) -> str:
    sure, right = float(predictions.probabilities.max(axis=1).mean()), float(predictions.correct.mean())
    if abs(sure - right) < SURE * standard_error(right, len(predictions.labels)):
        verdict = "well calibrated overall"
    else:
        verdict = "overconfident" if sure > right else "underconfident"
    return f"the model is {verdict}: its mean confidence is {percent(sure)}, its accuracy {percent(right)}"
