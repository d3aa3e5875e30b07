"""The evidence book: run its studies, and make docs/evidence.md of what they found.

python benchmarks/evidence_book.py run CIFAR10_PARQUET_FOLDER [--only STUDY ...]   can be stopped and called again
python benchmarks/evidence_book.py page

The studies of transfer learning take their weights from tf_efficientnet_lite0.safetensors in the current folder;
that of photographs is `run ANTS_BEES_FOLDER --only transfer`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convsmith.cli import verb_parser
from convsmith.config import Layer
from convsmith.figures.style import save
from convsmith.files import write_json
from convsmith.studies import book, text
from convsmith.studies.comparison import forest
from convsmith.studies.config import BASE, arms_of, read_study, studies
from convsmith.verbs.flags import read_flags

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/evidence"
IMAGES = ROOT / "docs/images"
#: the order of the page; the other results come after, by name
ORDER = (
    "pooling activations initialisation optimisers schedules learning-rates batch-sizes epochs batch-norm dropout "
    "penalties augmentation transfer-10 transfer-50 transfer-250 transfer"
).split()
_WEIGHTS = ("--transfer.weights", "tf_efficientnet_lite0.safetensors")
#: what a study was run with besides its data
FLAGS = dict.fromkeys(("transfer-10", "transfer-50", "transfer-250"), _WEIGHTS) | {
    "transfer": ("--model", "timm/tf_efficientnet_lite0", "--data.image_size", "96", *_WEIGHTS)
}
#: a record's data -> what to write for its folder in a command, and how it is called
DATA = {"cifar10": ("<CIFAR-10>", "CIFAR-10"), "ants_bees": ("<ANTS-BEES>", "PyTorch's tutorial's ants and bees")}
GRADIENTS = "gradients"
HEAD = """# The evidence book

What each technique was worth when we measured it: one study a technique, anyone can rerun it with one command. All
numbers on this page are made from the result files in `docs/results/evidence/` (`python
benchmarks/evidence_book.py page`); a test fails where page and results differ.

## How to read it

A study trains a *base* and some *arms*, each of which changes a thing or two. All are trained on the same parts of
the images and scored on the same held-out ones ([how](guide.md#what-helps-ablation-studies)), so that each part
gives one difference between an arm and the base.

- **difference**: the mean of these, in percentage points of accuracy. +1.00 is one more image in a hundred
  classified rightly.
- **95% interval**: how far off that mean may be. From -1 to +3 says: between one point worse and three better.
- **p (Holm)**: how often chance alone would show so large a difference, if the arm changed nothing. It is corrected
  for the number of arms, since of twenty arms that change nothing one would otherwise be "significant".
- **verdict**: *helps* or *hurts* where p is below 0.05. *Equivalent*: within {margin} of the base, by two one-sided
  tests with the same small risk of error (the 90% interval lies within). *No difference shown*: all else. It does
  **not** mean that there is no difference: under each table stands how large one must be to be found.
- **seconds**, **cost**: the time of one training, and relative to the base's: rough figures, since the machine had
  other work too.

**How far it goes.** The studies are small, so that the whole book fits a laptop: {sizes}.
They say what a technique does in *short trainings of a small net on few images*. What needs long trainings to pay
(dropout, augmentation, penalties) can hardly show its worth here; with all of CIFAR-10 and many epochs much may be
otherwise. What each base is stands in its file in `src/convsmith/study_files/`. Rerun a study on your own data:
`convsmith ablate dropout --data YOUR_FOLDER --jobs 2`.

The studies of [transfer learning](#transfer-10) take a pretrained network and fewer images still. Features of a frozen
backbone are computed once for all runs of a study, and count as time of the run that came first.

The whole book took {hours:.1f} hours of training time ({runs} trainings, two at once on 2 cores).
"""


def results() -> dict[str, dict[str, Any]]:
    """The committed results by study, in the page's order."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    return {name: found[name] for name in sorted(found, key=lambda name: [*ORDER, name].index(name))}


def digest() -> dict[str, Any]:
    """What the package takes along of the results: each arm's difference, and the setting it was measured in."""
    return {
        name: book.digest_of(record, arms_of(read_study(name), flags_of(name))[BASE])
        for name, record in results().items()
        if name != GRADIENTS
    }


def flags_of(study: str) -> Layer:
    """What the study was run with besides its data, as a config's sections."""
    return read_flags(verb_parser("ablate").parse_all([study, *FLAGS.get(study, ())]))


def page_text() -> str:
    """The text of docs/evidence.md."""
    found = results()
    ablations = {name: record for name, record in found.items() if name != GRADIENTS}
    runs = [
        one for record in ablations.values() for arm in (record["base"], *record["arms"]) for one in arm["per_fold"]
    ]
    parts = [
        HEAD.format(
            sizes=" or ".join(dict.fromkeys(_size(record) for name, record in ablations.items() if name not in FLAGS)),
            margin=" or ".join(dict.fromkeys(f"{100 * record['margin']:g} point" for record in ablations.values())),
            hours=sum(one["seconds"] for one in runs) / 3600,
            runs=len(runs),
        ),
        _glance(ablations),
        *(_section(name, record) for name, record in ablations.items()),
    ]
    if GRADIENTS in found:
        parts.append(_gradients(found[GRADIENTS]))
    return "\n".join(parts)


def contradicted(record: Mapping[str, Any]) -> list[str]:
    """Where the result says otherwise than common wisdom, in words."""
    return [
        f"common wisdom says that '{arm['name']}' {expected}; here it "
        + ("is equivalent to the base" if arm["verdict"] == "equivalent" else arm["verdict"])
        for arm in record["arms"]
        if (expected := record["expected"].get(arm["name"]))
        and arm["verdict"] in ("helps", "hurts", "equivalent")
        and arm["verdict"] != expected
    ]


def unconfirmed(record: Mapping[str, Any]) -> list[str]:
    """What common wisdom says and the study could neither confirm nor contradict, in words."""
    return [
        f"'{arm['name']}' {expected}"
        for arm in record["arms"]
        if (expected := record["expected"].get(arm["name"])) and arm["verdict"] == "no difference shown"
    ]


def _size(record: Mapping[str, Any]) -> str:
    repeats = f", drawn {record['repeats']} times" if record["repeats"] > 1 else ""
    _, data = DATA[record["data"]]
    return f"{record['n_images']:,} images of {data}, {record['folds']} folds{repeats}, {record['epochs']} epochs"


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
            shown = text.unit(record["metric"])
            cells.append(", ".join(f"{arm['name']} ({shown.difference(arm['difference'])})" for arm in arms))
        lines.append(f"| [{name}](#{name}) | " + " | ".join(cells) + " |")
    said = [f"- [{name}](#{name}): {one}." for name, record in ablations.items() for one in contradicted(record)]
    lines += ["", "Where the results contradict common wisdom:", "", *(said or ["nowhere."])]
    return "\n".join(lines) + "\n"


def _section(name: str, record: Mapping[str, Any]) -> str:
    rows = text.table(record)
    words = ["convsmith ablate", name, "--data", DATA[record["data"]][0], *FLAGS.get(name, ()), "--jobs 2"]
    lines = [
        f"## {name}",
        "",
        f"*{record['question']}*",
        "",
        f"{_size(record)[0].upper()}{_size(record)[1:]}. To run it again:",
        "",
        "    " + " ".join(words),
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
    if said := contradicted(record):
        lines += ["**Against expectation:** " + "; ".join(said) + ".", ""]
    if said := unconfirmed(record):
        lines += ["Neither confirmed nor contradicted here: " + "; ".join(said) + ".", ""]
    if record["detectable"]:
        shown = text.unit(record["metric"])
        lines += [
            f"A true difference of {shown.value(record['detectable'])} {shown.of_differences} (the median over the "
            "arms) would be found by 8 of 10 such studies; smaller ones more rarely.",
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
        "images of CIFAR-10. Where first / last is far below 1, the first layers hardly learn:",
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


def run(folder: str, only: list[str], runs_dir: str) -> None:
    for name in only or [name for name in shipped() if name != "transfer"]:
        command = ["ablate", name, "--data", folder, *FLAGS.get(name, ()), "--jobs", "2"]
        command += ["--name", name, "--runs-dir", runs_dir]
        subprocess.run([sys.executable, "-m", "convsmith.cli", *command], check=True)
        study = Path(runs_dir, name)
        record = json.loads((study / "ablation.json").read_text(encoding="utf-8"))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def page() -> None:
    """docs/evidence.md, its figures and the package's digest, of the results alone."""
    for name in shipped():
        figure = forest(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        assert figure, f"no arm of {name} has a difference"
        save(figure, IMAGES / f"evidence-{name}.svg")
    write_json(book.DIGEST, digest())
    (ROOT / "docs/evidence.md").write_text(page_text(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--runs-dir", default="runs/evidence")
    args = parser.parse_args()
    if args.what == "run":
        if not args.folder:
            parser.error("run needs the folder of images")
        run(args.folder, args.only, args.runs_dir)
    page()


if __name__ == "__main__":
    main()
