"""The sections of an ablation's page that show its arms: differences, classes, images, curves, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from convsmith.errors import UserError
from convsmith.records import METRICS
from convsmith.report import effects
from convsmith.report.charts import Axes, Line, line_chart
from convsmith.report.effects import ClassEffect, Paired, Seen, Sides, seen
from convsmith.report.images import Gallery
from convsmith.report.inputs import FOLD_CHARTS, read_metrics
from convsmith.report.intervals import SHAPES, Row, histogram, interval_chart
from convsmith.rundir import RunDir
from convsmith.studies.comparison import Plan
from convsmith.studies.config import BASE
from convsmith.studies.text import Unit, heading, unit

EACH_WAY = 12  # images shown that changed sides in one direction
MOST_CLASSES = 20  # classes with a row of their own: those that gain most and those that lose most
BINS = 20

Arm = Mapping[str, Any]
Section = dict[str, Any]


def forest(arms: Sequence[Arm], record: Mapping[str, Any], shown: Unit) -> Markup | None:
    """Each arm's difference with its interval, over those of its trainings; None where no arm has a difference."""
    rows = [
        Row(
            name=arm["name"],
            word=f"{shown.difference(arm['difference'])}  {arm['verdict']}",
            value=shown.scale * arm["difference"],
            interval=_ends(arm["ci95"], shown.scale),
            kind=arm["verdict"] if arm["verdict"] in SHAPES else "unclear",
            dots=[shown.scale * one["difference"] for one in arm["per_fold"]],
        )
        for arm in arms
        if arm["difference"] is not None
    ]
    if not rows:
        return None
    label = f"difference in {heading(METRICS[record['metric']].label, shown.written_out)}"
    margin = shown.scale * record["margin"] if record["margin"] else None
    return interval_chart("Difference of each arm from the base", label, rows, margin=margin)


def _ends(interval: Sequence[float] | None, scale: float) -> tuple[float, float] | None:
    return None if interval is None else (scale * interval[0], scale * interval[1])


def details(plan: Plan, arms: Sequence[Arm], gallery: Gallery) -> tuple[list[Section], str]:
    """A section for each of `arms`, and why some have none: files of their trainings are gone or damaged."""
    found, unread, base = [], "", dict[int, Seen]()
    for arm in arms:
        try:
            base = base or seen(plan, BASE)
            paired = Paired.of(plan, arm["name"], base)
            found.append(
                {
                    "name": arm["name"],
                    "verdict": arm["verdict"],
                    "distribution": _distribution(paired, effects.of_an_image(plan.spec["metric"])),
                    "classes": _classes(arm["name"], effects.class_effects(paired)),
                    "changed": _changed(paired, gallery),
                }
            )
        except UserError as error:
            unread = str(error)
    return found, unread


def _distribution(paired: Paired, metric: str) -> Section:
    """How the differences of the images are distributed; a chart where there are more than a few values."""
    shown = unit(metric)
    means = shown.scale * effects.by_image(paired.differences(metric))
    sign = 1 if shown.higher_is_better else -1
    moved = means[means != 0]
    section: Section = {
        "images": len(means),
        "better": int((sign * means > 0).sum()),
        "worse": int((sign * means < 0).sum()),
        "same": int((means == 0).sum()),
        "chart": None,
    }
    if len(np.unique(moved)) > 2:
        label = f"difference of an image ({shown.of_differences})" if shown.of_differences else "difference of an image"
        most = float(np.abs(moved).max())
        edges = np.linspace(-most, most, BINS + 1)
        counts, _ = np.histogram(moved, edges)
        words = f"{len(moved):,} images differ, by {moved.min():.4g} to {moved.max():.4g}; their median is "
        words += f"{np.median(moved):.4g}. {section['same']:,} images that do not differ are left out."
        section["chart"] = histogram(
            "Differences by image", label, words, edges.tolist(), counts.tolist(), shown.higher_is_better
        )
    return section


def _classes(arm: str, found: Sequence[ClassEffect]) -> Section | None:
    """The effects on classes, or None where there is no class to compare."""
    if not found:
        return None
    half = MOST_CLASSES // 2
    drawn = [*found] if len(found) <= MOST_CLASSES else [*found[:half], *found[-half:]]
    rows = [
        Row(
            name=one.name,
            word=f"{100 * one.difference:+.1f}, {one.images:,} images",
            value=100 * one.difference,
            interval=_ends(one.interval, 100),
            kind=one.kind,
        )
        for one in drawn
    ]
    gained = effects.gains(found)
    told = [
        f"{verb}: {_names(names[:3])}{' and others' if len(names) > 3 else ''}"
        for names, verb in ((gained["helps"], "gaining"), (gained["hurts"], "losing"))
        if names
    ]
    none = f"none of {len(found)} classes is shown to gain or to lose"
    sentence = f"under '{arm}' {'; '.join(told) or none}"
    return {
        "chart": interval_chart(f"Difference of '{arm}' by class", "accuracy on the class (percentage points)", rows),
        "left_out": len(found) - len(drawn),
        "of": len(found),
        "sentence": sentence,
    }


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _changed(paired: Paired, gallery: Gallery) -> Section:
    """The images that are right more often, and less often, under the arm than under the base."""
    sides = paired.sides
    section: Section = {"images": int((sides.trainings > 0).sum()), "ways": []}
    for better in (True, False):
        changed = sides.changed(better)
        chosen = [int(at) for at in changed[:EACH_WAY]]
        gallery.add(chosen)
        section["better" if better else "worse"] = len(changed)
        shots = [_shot(paired, sides, at, gallery) for at in chosen]
        section["ways"].append({"better": better, "count": len(changed), "shots": shots})
    return section


def _shot(paired: Paired, sides: Sides, at: int, gallery: Gallery) -> Section:
    classes = paired.classes
    return {
        "id": paired.pool[at],
        "uri": gallery.uris.get(at),
        "true": classes[sides.labels[at]],
        "said": [
            (who, int(right[at]), int(sides.trainings[at]), classes[said[at]] if said[at] >= 0 else None)
            for who, right, said in (("base", sides.base, sides.base_said), ("arm", sides.arm, sides.arm_said))
        ],
    }


def curves(plan: Plan, arms: Sequence[Arm]) -> Section:
    """The mean over the trainings of each arm by epoch, and their range; without those whose metrics.csv is gone."""
    names = [BASE, *(arm["name"] for arm in arms)]
    of_arms, lost = {}, 0
    for name in names:
        files = [RunDir(Path(job.directory)).metrics for job in plan.done(name).values()]
        there = [read_metrics(file) for file in files if file.exists()]
        lost += len(files) - len(there)
        if there:
            of_arms[name] = there
    charts = [(label, _curve(of_arms, names, key, label, percent)) for key, label, percent in FOLD_CHARTS]
    return {
        "legend": [(kind, name) for kind, name in enumerate(names) if name in of_arms],
        "charts": charts if of_arms else [],
        "lost": lost,
    }


def _curve(
    of_arms: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    names: Sequence[str],
    key: str,
    label: str,
    percent: bool,
) -> Markup:
    lines, ends = [], []
    for name, runs in of_arms.items():
        shared = min(map(len, runs))  # up to the epoch that all of them have reached
        values: NDArray[np.float64] = np.array([[row[key] for row in rows[:shared]] for rows in runs], dtype=np.float64)
        epochs = [row["epoch"] for row in runs[0][:shared]]
        means = values.mean(axis=0).tolist()
        band = list(zip(epochs, values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True))
        lines.append(
            Line(name, names.index(name), list(zip(epochs, means, strict=True)), band=band if len(runs) > 1 else ())
        )
        ends.append(f"{name} ends at {means[-1]:.4g}")
    words = f"The mean over the trainings by epoch, and their range: {'; '.join(ends)}."
    return line_chart(label, words, Axes("epoch", label, percent=percent), lines)


def cost(arms: Sequence[Arm], record: Mapping[str, Any], shown: Unit) -> Section | None:
    """Each arm's difference against the time of a training; None where no time was recorded."""
    base = record["base"]["seconds"]
    known = [arm for arm in arms if arm["seconds"] and arm["difference"] is not None]
    if not base or not known:
        return None
    lines = [Line("base", 7, [(1.0, 0.0)], joined=False, label="base")]
    for number, arm in enumerate(known, start=1):
        kind = {"helps": 2, "hurts": 1, "equivalent": 0}.get(arm["verdict"], 3)
        point = (arm["seconds"] / base, shown.scale * arm["difference"])
        lines.append(Line(arm["name"], kind, [point], joined=False, label=str(number)))
    told = "; ".join(
        f"{line.name}: {line.points[0][0]:.2g} times the time, {line.points[0][1]:+.3g}" for line in lines[1:]
    )
    difference = f"difference in {heading(METRICS[record['metric']].label, shown.of_differences)}"
    axes = Axes("seconds of a training (base = 1)", difference, whole_x=False)
    return {
        "chart": line_chart("Cost against gain", f"{difference} by time: {told}.", axes, lines),
        "label": difference,
        "arms": [arm["name"] for arm in known],
    }
