"""The evidence book: run its studies, and make docs/evidence.md of what they found.

python benchmarks/evidence_book.py run CIFAR10_PARQUET_FOLDER [--only STUDY ...]   can be stopped and called again
python benchmarks/evidence_book.py page
python benchmarks/evidence_book.py retest [--only STUDY ...]     judge the runs in --runs-dir anew, by image, and page

The studies of transfer learning take their weights from tf_efficientnet_lite0.safetensors in the current folder;
that of photographs is `run ANTS_BEES_FOLDER --only transfer`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convsmith import records
from convsmith.cli import verb_parser
from convsmith.config import Layer, RunConfig
from convsmith.figures.style import save
from convsmith.files import write_json
from convsmith.records import test_of
from convsmith.report.advice import ALIKE
from convsmith.rundir import RunDir
from convsmith.studies import book, text
from convsmith.studies.comparison import compared, forest, read_plan
from convsmith.studies.config import BASE, arms_of, read_study, studies
from convsmith.verbs.flags import read_flags

CLASSES = {"cifar10": 10, "ants_bees": 2}  # of the data that the shipped studies were run on
KEPT = ("metric", "test", "folds", "repeats", "seeds", "data", "n_images", "epochs")
KEPT_OF_ARM = ("name", "changes", "difference", "ci95", "p_holm", "verdict")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/evidence"
IMAGES = ROOT / "docs/images"
#: the order of the page; the other results come after, by name
ORDER = (
    "pooling activations initialisation optimisers schedules learning-rates batch-sizes epochs batch-norm dropout "
    "penalties augmentation transfer-10 transfer-50 transfer-250 transfer"
).split()
_WEIGHTS = ("--transfer.weights", "tf_efficientnet_lite0.safetensors")
#: the flags of a study besides its data
FLAGS = dict.fromkeys(("transfer-10", "transfer-50", "transfer-250"), _WEIGHTS) | {
    "transfer": ("--model", "timm/tf_efficientnet_lite0", "--data.image_size", "96", *_WEIGHTS)
}
#: a record's data -> a placeholder for its folder in a command, and its name
DATA = {"cifar10": ("<CIFAR-10>", "CIFAR-10"), "ants_bees": ("<ANTS-BEES>", "the ants and bees of PyTorch's tutorial")}
GRADIENTS = "gradients"
HEAD = """# The evidence book

This page shows the measured effect of each technique. There is one study per technique, which anyone can rerun with one
command. All numbers on this page come from the result files in `docs/results/evidence/` (`python
benchmarks/evidence_book.py page`); a test fails if the page and the results differ.

## How to read it

A study trains a *base* and several *arms*, each of which changes one or two settings. All are trained on the same folds
of the images and scored on the same held-out images ([how](guide.md#what-helps-ablation-studies)), so that each image
gives a difference between an arm and the base, whose mean is [tested](statistics.md).

- **difference**: the mean of these differences, in percentage points of accuracy. +1.00 means that one more image in a
  hundred is classified correctly.
- **95% interval**: the uncertainty of that mean. An interval from -1 to +3 means between one point worse and three
  points better.
- **p (Holm)**: the probability that chance alone would show such a large difference if the arm changed nothing. It is
  corrected for the number of arms, since otherwise one in twenty arms that change nothing would be "significant".
- **verdict**: *helps* or *hurts* means that p is below 0.05. *Equivalent* means within {margin} of the base, by two
  one-sided tests at the same level (the 90% interval lies within the margin). *No difference shown* is everything else.
  It does **not** mean that there is no difference: the text under each table says how large one must be to be found.
- **seconds**, **cost**: the time of one training, and that time relative to the base's. These are rough figures, since
  the machine had other work to do.

**Limitations.** The studies are small, so that a laptop can run the whole book: {sizes}.
They show what a technique does in *short trainings of a small net on few images*, and each study says in which regime
that was: its net, images, epochs, and the accuracy that its base reaches. Techniques that need long trainings (dropout,
augmentation, penalties) can hardly show their benefit here; that "augmentation hurts" is true in such a regime, and
misleading where nets are trained to their end. The report of a run quotes a study only where the run is in its regime:
a net of the same kind that starts alike, and epochs, images per class and the share of wrong images within a factor of
{alike}. Each base is defined in its file in `src/convsmith/study_files/`. To rerun a study on your own data, use
`convsmith ablate dropout --data YOUR_FOLDER --jobs 2`.

The studies of [transfer learning](#transfer-10) use a pretrained network and even fewer images. The features of a
frozen backbone are computed once for all runs of a study; their time counts towards the first run.

The whole book took {hours:.1f} hours of training time ({runs} trainings, two at once on 2 cores).
"""


def results() -> dict[str, dict[str, Any]]:
    """The committed results by study, in the page's order."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    return {name: found[name] for name in sorted(found, key=lambda name: [*ORDER, name].index(name))}


def digest_of(record: Mapping[str, Any], base: RunConfig) -> dict[str, Any]:
    """The part of an ablation.json, whose base was trained with the config `base`, that the digest keeps."""
    return {
        **{key: record[key] for key in KEPT if key in record},
        "n_classes": CLASSES[record["data"]],
        "base": {
            "model": base.model.name,
            "weights": "none" if base.transfer.weights == "none" else "pretrained",
            "optimizer": base.optim.name,
            "lr": base.optim.lr,
            "batch_size": base.train.batch_size,
            "image_size": base.data.image_size,
            "accuracy": record["base"]["mean"],
        },
        "arms": [{key: arm[key] for key in KEPT_OF_ARM} for arm in record["arms"]],
    }


def digest() -> dict[str, Any]:
    """The part of the results that the package contains: each arm's difference, and the setting it was measured in."""
    return {name: _digest_of(name, record) for name, record in results().items() if name != GRADIENTS}


def _digest_of(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return digest_of(record, arms_of(read_study(name), flags_of(name))[BASE])


def flags_of(study: str) -> Layer:
    """The flags of a study besides its data, as sections of a config."""
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
            alike=ALIKE,
            hours=sum(one["seconds"] for one in runs) / 3600,
            runs=len(runs),
        ),
        _overview(ablations),
        *(_section(name, record) for name, record in ablations.items()),
    ]
    if GRADIENTS in found:
        parts.append(_gradients(found[GRADIENTS]))
    return "\n".join(parts)


def contradicted(record: Mapping[str, Any]) -> list[str]:
    """The results that contradict common wisdom, in words."""
    return [
        f"common wisdom says that '{arm['name']}' {expected}; here it "
        + ("is equivalent to the base" if arm["verdict"] == "equivalent" else arm["verdict"])
        for arm in record["arms"]
        if (expected := record["expected"].get(arm["name"]))
        and arm["verdict"] in ("helps", "hurts", "equivalent")
        and arm["verdict"] != expected
    ]


def unconfirmed(record: Mapping[str, Any]) -> list[str]:
    """The expectations that the study could neither confirm nor contradict, in words."""
    return [
        f"'{arm['name']}' {expected}"
        for arm in record["arms"]
        if (expected := record["expected"].get(arm["name"])) and arm["verdict"] == "no difference shown"
    ]


def _size(record: Mapping[str, Any]) -> str:
    repeats = f" repeated {record['repeats']} times" if record["repeats"] > 1 else ""
    _, data = DATA[record["data"]]
    return f"{record['n_images']:,} images of {data}, {record['folds']} folds{repeats}, {record['epochs']} epochs"


def _tested(record: Mapping[str, Any]) -> str:
    by_image = test_of(record) == "images"
    return "tested by image" if by_image else "tested over folds, as before there was the test by image"


def _overview(ablations: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "## Overview",
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
    found = [f"- [{name}](#{name}): {one}." for name, record in ablations.items() for one in contradicted(record)]
    lines += ["", "Results that contradict common wisdom:", "", *(found or ["There are none."])]
    return "\n".join(lines) + "\n"


def _section(name: str, record: Mapping[str, Any]) -> str:
    rows = text.table(record)
    words = ["convsmith ablate", name, "--data", DATA[record["data"]][0], *FLAGS.get(name, ()), "--jobs 2"]
    lines = [
        f"## {name}",
        "",
        f"*{record['question']}*",
        "",
        f"{_size(record)[0].upper()}{_size(record)[1:]}; {_tested(record)}.",
        "",
        f"Regime: {book.regime(_digest_of(name, record))}. To run it again:",
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
            f"For every arm and fold, {', '.join(f'`{knob}`' for knob in knobs)} was chosen among "
            f"{len(record['choices'])} values by trainings of {record['choice_epochs']} epoch(s), scored on the inner "
            "validation part (their time is included).",
            "",
        ]
    if found := contradicted(record):
        lines += ["**Against expectation:** " + "; ".join(found) + ".", ""]
    if found := unconfirmed(record):
        lines += ["These expectations were neither confirmed nor contradicted here: " + "; ".join(found) + ".", ""]
    if record["detectable"]:
        shown = text.unit(record["metric"])
        lines += [
            f"A true difference of {shown.value(record['detectable'])} {shown.of_differences} (the median over the "
            "arms) would be found by 8 of 10 such studies, and smaller ones less often.",
            "",
        ]
    return "\n".join(lines)


def _gradients(record: Mapping[str, Any]) -> str:
    lines = [
        "## Vanishing gradients",
        "",
        f"    {record['command']}",
        "",
        "The table shows the root mean square of the gradient of the loss with respect to a convolution's weights, "
        f"before the first step, in a net of {len(record['layers'])} 3 x 3 convolutions without batch norm, on "
        f"{record['images']} images of CIFAR-10. Where first / last is far below 1, the first layers hardly learn:",
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


def retest(only: list[str], runs_dir: str) -> None:
    """Judge the recorded runs of studies by image, also of those which an older version started."""
    for name in only or [name for name in shipped() if Path(runs_dir, name).exists()]:
        record = records.versioned(retested(RunDir(Path(runs_dir, name))))
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def retested(run: RunDir) -> dict[str, Any]:
    """The content that ablation.json would have if its study had been started with the test by image."""
    plan, before = read_plan(run), records.read(run.ablation, records.Ablation)
    known = replace(plan, spec={**plan.spec, "test": "images"})
    return compared(known, before["failed"], before["dropped"])


def page() -> None:
    """Write docs/evidence.md, its figures and the package's digest from the results."""
    for name in shipped():
        figure = forest(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        assert figure, f"no arm of {name} has a difference"
        save(figure, IMAGES / f"evidence-{name}.svg")
    write_json(book.DIGEST, digest())
    (ROOT / "docs/evidence.md").write_text(page_text(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "retest", "page"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--runs-dir", default="runs/evidence")
    args = parser.parse_args()
    if args.what == "run":
        if not args.folder:
            parser.error("run needs the folder of images")
        run(args.folder, args.only, args.runs_dir)
    elif args.what == "retest":
        retest(args.only, args.runs_dir)
    page()


if __name__ == "__main__":
    main()
