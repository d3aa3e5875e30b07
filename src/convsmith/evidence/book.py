"""The evidence book: a page made of the committed results of the shipped studies, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from convsmith.evidence import wording
from convsmith.evidence.config import studies

#: the order of the page; the other results come after, by name
ORDER = (
    "pooling activations initialisation optimisers schedules learning-rates batch-sizes epochs batch-norm dropout "
    "penalties augmentation"
).split()
GRADIENTS = "gradients"
HEAD = """# The evidence book

What each technique was worth when we measured it: one study a technique, anyone can rerun it with one command. All
numbers on this page are made from the result files in `src/convsmith/evidence/results/` (`python
benchmarks/evidence_book.py page`); a test fails where page and results differ.

**Read it with care.** The studies are small, so that the whole book fits a laptop: {images} images of CIFAR-10, {folds}
folds, {epochs} epochs, {base}. They say what a technique does in *short trainings on few images*; with all of CIFAR-10
and many epochs it may be otherwise. The corrected resampled t-test that judges them is cautious: with {folds} folds of
{held_out} held-out images, only differences of some points can be told from none. "No difference shown" is not "no
difference". Rerun a study on your own data: `--data YOUR_FOLDER`.

Differences are in percentage points of accuracy against the study's base, with the 95% interval; p is corrected for the
number of arms (Holm). Cost is the time of one training relative to the base's. "Equivalent" means: surely within
{margin} point(s).

The whole book took {hours:.1f} hours of training time ({runs} trainings, two at once on 2 cores).
"""


def results() -> dict[str, dict[str, Any]]:
    """The committed results by study, in the page's order."""
    folder = resources.files("convsmith") / "evidence" / "results"
    found = {
        item.name.removesuffix(".json"): json.loads(item.read_text(encoding="utf-8"))
        for item in folder.iterdir()
        if item.name.endswith(".json")
    }
    return {name: found[name] for name in sorted(found, key=lambda name: [*ORDER, name].index(name))}


def page() -> str:
    """The text of docs/evidence.md."""
    found = results()
    ablations = {name: record for name, record in found.items() if name != GRADIENTS}
    first = next(iter(ablations.values()))
    runs = [
        one for record in ablations.values() for arm in (record["base"], *record["arms"]) for one in arm["per_fold"]
    ]
    parts = [
        HEAD.format(
            images=f"{first['n_images']:,}",
            folds=first["folds"],
            epochs=first["epochs"],
            base="simple-cnn with Adam at a constant learning rate where nothing else is said",
            held_out=first["n_images"] // first["folds"],
            margin=f"{100 * first['margin']:g}",
            hours=sum(one["seconds"] for one in runs) / 3600,
            runs=len(runs),
        ),
        _glance(ablations),
        *(_section(name, record) for name, record in ablations.items()),
    ]
    if GRADIENTS in found:
        parts.append(_gradients(found[GRADIENTS]))
    return "\n".join(parts)


def surprises(record: Mapping[str, Any]) -> list[str]:
    """Where the result is not what common wisdom expects, in words."""
    said = []
    for arm in record["arms"]:
        expected = record["expected"].get(arm["name"])
        if expected and arm["verdict"] in ("helps", "hurts", "equivalent") and arm["verdict"] != expected:
            found = "is equivalent to the base" if arm["verdict"] == "equivalent" else arm["verdict"]
            said.append(f"common wisdom says that {arm['name']} {expected}; here it {found}")
        elif expected and arm["verdict"] == "no difference shown":
            said.append(f"common wisdom says that {arm['name']} {expected}; here no difference was shown")
    return said


def _glance(ablations: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "## At a glance",
        "",
        "| study | helps | hurts | no difference shown | equivalent |",
        "|---|---|---|---|---|",
    ]
    for name, record in ablations.items():
        cells = []
        for verdict in ("helps", "hurts", "no difference shown", "equivalent"):
            arms = [arm for arm in record["arms"] if arm["verdict"] == verdict]
            shown = wording.unit(record["metric"])
            cells.append(", ".join(f"{arm['name']} ({shown.difference(arm['difference'])})" for arm in arms))
        lines.append(f"| [{name}](#{name}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _section(name: str, record: Mapping[str, Any]) -> str:
    rows = wording.table(record)
    lines = [
        f"## {name}",
        "",
        f"*{record['question']}*",
        "",
        f"    convsmith ablate {name} --data <CIFAR-10> --jobs 2",
        "",
    ]
    lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    lines += ["", f"![{name}](images/evidence-{name}.svg)", ""]
    if record["choices"]:
        knobs = sorted(
            {f"{section}.{key}" for layer in record["choices"] for section, keys in layer.items() for key in keys}
        )
        lines += [
            f"For every arm and fold {', '.join(f'`{knob}`' for knob in knobs)} was chosen anew among "
            f"{len(record['choices'])} values, by trainings of {record['choice_epochs']} epoch(s) on the inner "
            "validation part (their time counts).",
            "",
        ]
    if surprises(record):
        lines += ["Against expectation: " + "; ".join(surprises(record)) + ".", ""]
    if record["detectable"]:
        shown = wording.unit(record["metric"])
        lines += [
            f"This study would have found a difference of {shown.value(record['detectable'])} {shown.of_differences} "
            "in 8 of 10 repetitions.",
            "",
        ]
    return "\n".join(lines)


def _gradients(record: Mapping[str, Any]) -> str:
    lines = [
        "## Vanishing gradients",
        "",
        f"    {record['command']}",
        "",
        "The root mean square of the loss's gradient with respect to each convolution's weights, before the first "
        f"step, in a net of {len(record['layers'])} 3 x 3 convolutions without batch norm, on {record['images']} "
        "images of CIFAR-10:",
        "",
        "| net | first convolution | last convolution | first / last |",
        "|---|---|---|---|",
    ]
    for name, values in record["series"].items():
        lines.append(f"| {name} | {values[0]:.2g} | {values[-1]:.2g} | {values[0] / values[-1]:.2g} |")
    lines += ["", "![gradients by layer](images/evidence-gradients.svg)", ""]
    return "\n".join(lines)


def shipped() -> list[str]:
    """The studies of the book that come with the package."""
    return [name for name in ORDER if name in studies()]
