"""Do the verdicts hold on real nets? Studies of arms that differ by seed alone, and of arms that differ truly.

    python benchmarks/small_trainings.py CIFAR10_PARQUET_FOLDER WORK       the trainings, resumable
    python benchmarks/real_studies.py WORK                                 the studies made of them, in minutes
    python benchmarks/real_studies.py page                                 the tables alone

It writes docs/results/real_studies.json and the tables between the marks in docs/statistics.md.

Each population of small_trainings.py is a world of its own, on which complete studies are made of the trainings that
are there. An A/A study compares nets of one width that differ by seed alone, so that the true difference is 0; no two
A/A studies of a design share a training. B and C are nets of fewer channels, compared with A of the same seeds; the
true difference is the mean over all trainings of all populations of a kind. Each study is judged by four methods:

- folds: the corrected t-test over folds (`statistics.paired_comparison`), the test of studies before there was another;
- ordinary: the t-test that takes folds for independent;
- images: the variation between images alone, as if the trainings had no noise of their own;
- by image: `variance.compare_by_image`, the test of studies today.

Counted are p < 0.05 (false alarms in A/A, the power in the others), the 95% intervals that hold the true difference,
and what is called equivalent with the true difference of B or C as the margin, which is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from small_trainings import WIDTHS, kept, key

from convsmith.prediction.influence import BY_IMAGE
from convsmith.prediction.metrics import Outcomes, probabilities
from convsmith.studies.statistics import Comparison, holm, paired_comparison
from convsmith.studies.variance import Moments, Training, compare_by_image, detectable, moments, shared_excess

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULT, PAGE = DOCS / "results" / "real_studies.json", DOCS / "statistics.md"
BEGIN, END = "<!-- tables: benchmarks/real_studies.py -->", "<!-- end of tables -->"
METRICS = ("accuracy", "f1", "loss")
LEVEL = 0.95
Floats = NDArray[np.float64]
Seeds = tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One side of a study: nets of an arm, from some seeds."""

    arm: str
    seeds: Seeds


class Population:
    """What was kept of a population: the values by image of any of its trainings, and their differences."""

    def __init__(self, path: Path) -> None:
        self.kept = kept(path)
        self.values: dict[tuple[str, str], Floats] = {}

    def has(self, side: Side, repeats: Seeds) -> bool:
        return all(key(side.arm, seed, repeat) in self.kept for seed in side.seeds for repeat in repeats)

    def by_image(self, metric: str, arm: str, seed: int, repeat: int) -> Floats:
        """float64 [images], fold by fold, so that the mean over a fold's images is its metric."""
        place = key(arm, seed, repeat)
        if (metric, place) not in self.values:
            scores, labels, fold_of = self.kept[place], self.kept["labels"], self.kept[f"fold-{repeat}"]
            found = np.empty(len(labels))
            for fold in range(fold_of.max() + 1):
                held = fold_of == fold
                outcomes = Outcomes(labels[held], scores[held], probabilities(scores[held]))
                found[held] = BY_IMAGE[metric](outcomes)
            self.values[metric, place] = found
        return self.values[metric, place]

    def mean(self, metric: str, arm: str) -> float:
        """The mean of an arm's trainings, each repeat with all of its seeds counting the same."""
        places = [name.split("-") for name in self.kept if name.startswith(f"{arm}-")]
        return float(np.mean([self.by_image(metric, arm, int(seed), int(repeat)).mean() for _, seed, repeat in places]))

    def study(self, metric: str, one: Side, other: Side, repeats: Seeds) -> list[Training]:
        """The differences of two sides, one minus other, training by training."""
        found = []
        for repeat in repeats:
            fold_of = self.kept[f"fold-{repeat}"]
            for number, (ours, theirs) in enumerate(zip(one.seeds, other.seeds, strict=True), start=1):
                values, reference = (
                    self.by_image(metric, side.arm, seed, repeat) for side, seed in ((one, ours), (other, theirs))
                )
                for fold in range(fold_of.max() + 1):
                    held = np.flatnonzero(fold_of == fold)
                    found.append(Training(repeat, fold + 1, number, held, (values - reference)[held]))
        return found


@dataclass(frozen=True)
class Pair:
    """Two sides, and the repeats in which they are compared."""

    ours: Side
    theirs: Side
    repeats: Seeds


@dataclass(frozen=True)
class Design:
    """How studies are made of the trainings in a folder; `seeds` and `repeats` are those of A/B and A/C."""

    title: str
    folder: str
    repeats: Seeds
    seeds: Seeds
    null: tuple[Pair, ...]


def pairs(arm: str, count: int, each: int, repeats: Seeds = (1,)) -> tuple[Pair, ...]:
    """As many studies, of `each` seeds a side, as the first `count` seeds give without sharing any."""
    sides = [Side(arm, tuple(range(first, first + each))) for first in range(1, count + 2 - each, each)]
    return tuple(Pair(ours, theirs, repeats) for ours, theirs in zip(sides[::2], sides[1::2], strict=False))


OTHER_NULL = (*pairs("A", 2, 1, (2,)), *pairs("B", 2, 1), *pairs("C", 2, 1))
DESIGNS = (
    Design("600 images, 5 folds", "600-5", (1,), (1,), (*pairs("A", 8, 1), *OTHER_NULL)),
    Design("600 images, 5 folds x 2", "600-5", (1, 2), (1,), pairs("A", 2, 1, (1, 2))),
    Design("600 images, 5 folds, 2 seeds", "600-5", (1,), (1, 2), pairs("A", 8, 2)),
    Design("600 images, 5 folds, 3 seeds", "600-5", (1,), (1, 2, 3), pairs("A", 6, 3)),
    Design("600 images, 10 folds", "600-10", (1,), (1,), pairs("A", 2, 1)),
    Design("2,000 images, 5 folds", "2000-5", (1,), (1,), pairs("A", 2, 1)),
    Design("600 imbalanced images, 5 folds", "skewed-5", (1,), (1,), pairs("A", 2, 1)),
)
NULL_ARMS = 6  # against one base, in the first repeat of 600-5


def over_folds(trainings: Sequence[Training]) -> Floats:
    """The differences of the folds of all repeats, their seeds averaged."""
    cells: dict[tuple[int, int], list[float]] = {}
    for one in trainings:
        cells.setdefault((one.repeat, one.fold), []).append(float(one.values.mean()))
    return np.array([np.mean(found) for found in cells.values()])


@dataclass(frozen=True)
class Found:
    """What a method says of a study: p, the interval, and the p of equivalence within a margin."""

    p: float
    low: float
    high: float
    p_equivalent: float

    @classmethod
    def of(cls, compared: Comparison) -> Found:
        """Where all folds differ by the same number there is no test: nothing is called, and anything covered."""
        return cls(
            1.0 if compared.p is None else compared.p,
            -math.inf if compared.low is None else compared.low,
            math.inf if compared.high is None else compared.high,
            1.0 if compared.p_equivalent is None else compared.p_equivalent,
        )


def images_alone(trainings: Sequence[Training], margin: float) -> Found:
    found = moments(trainings)
    error = math.sqrt(found.images)
    if error == 0:
        return Found(1.0, -math.inf, math.inf, 1.0)
    half = stats.t.ppf((1 + LEVEL) / 2, found.units - 1) * error
    p = 2 * stats.t.sf(abs(found.mean) / error, found.units - 1)
    within = stats.t.sf((margin - abs(found.mean)) / error, found.units - 1)
    return Found(float(p), found.mean - half, found.mean + half, float(within))


Arms = Sequence[Sequence[Training]]


def methods(folds: int) -> dict[str, Callable[[Arms, float], list[Found]]]:
    """Each judges all arms of a study, within a margin."""

    def by_folds(arms: Arms, margin: float, share: float) -> list[Found]:
        differences = [over_folds(trainings) for trainings in arms]
        return [Found.of(paired_comparison(one, np.zeros(len(one)), share, margin, LEVEL)) for one in differences]

    def by_image(arms: Arms, margin: float) -> list[Found]:
        shared = shared_excess([moments(trainings) for trainings in arms])
        return [Found.of(compare_by_image(trainings, margin, LEVEL, shared)) for trainings in arms]

    return {
        "folds": lambda arms, margin: by_folds(arms, margin, 1 / folds),
        "ordinary": lambda arms, margin: by_folds(arms, margin, 0.0),
        "images": lambda arms, margin: [images_alone(trainings, margin) for trainings in arms],
        "by image": by_image,
    }


class World:
    """The populations of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folds = int(folder.name.split("-")[1])
        self.populations = [Population(path) for path in sorted(folder.glob("[0-9][0-9][0-9].npz"))]

    @cache  # noqa: B019
    def mean(self, arm: str, metric: str, less: str | None = None) -> tuple[float, float]:
        """The mean of an arm over the populations, and its standard error; `less` another arm, from all trainings."""
        there = [one for one in self.populations if one.has(Side(arm, (1,)), (1,))]
        each = [one.mean(metric, arm) - (one.mean(metric, less) if less else 0) for one in there]
        return float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each)))

    def truth(self, arm: str, metric: str) -> tuple[float, float]:
        """The true difference of an arm from A, and its standard error."""
        return (0.0, 0.0) if arm == "A" else self.mean(arm, metric, "A")

    def summary(self) -> dict[str, Any]:
        """How many populations and nets there are, and the accuracy of each arm."""
        arms = [arm for arm in WIDTHS if any(one.has(Side(arm, (1,)), (1,)) for one in self.populations)]
        return {
            "populations": len(self.populations),
            "nets": sum(self.folds for one in self.populations for name in one.kept if name[0] in WIDTHS),
            "accuracy": {arm: self.mean(arm, "accuracy")[0] for arm in arms},
        }

    def studies(self, design: Design, metric: str, arm: str) -> Iterator[list[Training]]:
        """Those of an arm against A, or for A itself the null studies."""
        true = Pair(Side(arm, design.seeds), Side("A", design.seeds), design.repeats)
        for population in self.populations:
            for one in design.null if arm == "A" else (true,):
                if population.has(one.ours, one.repeats) and population.has(one.theirs, one.repeats):
                    yield population.study(metric, one.ours, one.theirs, one.repeats)


def rate(count: int, of: int) -> dict[str, float]:
    """A share and its Monte Carlo error: that of Agresti and Coull (1998), which is not 0 where nothing was counted."""
    about = (count + 2) / (of + 4)
    return {"share": count / of, "mc_error": math.sqrt(about * (1 - about) / (of + 4))}


def case(world: World, design: Design, metric: str, arm: str) -> dict[str, Any] | None:
    """All studies of a design, by all methods; None where none could be made yet."""
    studies = list(world.studies(design, metric, arm))
    if len(studies) < 2:
        return None
    truth, error = world.truth(arm, metric)
    margin = abs(world.truth("B" if arm == "A" else arm, metric)[0])
    judged = {name: [method([one], margin)[0] for one in studies] for name, method in methods(world.folds).items()}
    components = [moments(one) for one in studies]
    return {
        "design": design.title,
        "arms": f"A/{arm}",
        "metric": metric,
        "studies": len(studies),
        "trainings_each": len(studies[0]),
        "truth": truth,
        "truth_error": error,
        "margin": margin,
        "correlation": correlation(np.stack([over_folds(one) for one in studies]), truth, len(design.repeats)),
        "assumed_correlation": 1 / world.folds,
        "power": None if arm == "A" else power(components, truth),
        "variance": {
            "of_the_mean": float(np.mean([(one.mean - truth) ** 2 for one in components])),
            "images": float(np.mean([one.images for one in components])),
            "excess": float(np.mean([one.between - one.expected for one in components])),
        },
        "methods": {
            name: {
                "different": rate(sum(one.p < 1 - LEVEL for one in found), len(found)),
                "covered": rate(sum(one.low <= truth <= one.high for one in found), len(found)),
                "equivalent": rate(sum(one.p_equivalent < 1 - LEVEL for one in found), len(found)),
                "half_width": float(np.median([(one.high - one.low) / 2 for one in found])),
            }
            for name, found in judged.items()
        },
    }


def power(studies: Sequence[Moments], truth: float) -> float:
    """How often `variance.detectable` predicts that the true difference is found, from the studies' mean components."""
    one = studies[0]
    images, excess = (
        float(np.mean(values))
        for values in zip(*((of.images, of.between - of.expected) for of in studies), strict=True)
    )
    images_std, trainings_std = math.sqrt(images * one.units), math.sqrt(max(0.0, excess) * one.trainings)

    def surplus(chance: float) -> float:
        found = detectable(images_std, trainings_std, one.units, one.trainings, LEVEL, chance, one.cells)
        return found - abs(truth)

    return float(brentq(surplus, 0.08, 0.999))


def correlation(differences: Floats, truth: float, repeats: int) -> float:
    """The correlation of the differences [studies, folds of all repeats] of two folds of one repeat."""
    deviations = differences - truth
    folds = deviations.shape[1] // repeats
    products = [
        deviations[:, first] * deviations[:, second]
        for start in range(0, deviations.shape[1], folds)
        for first in range(start, start + folds)
        for second in range(start, first)
    ]
    return float(np.mean(products) / np.mean(deviations**2))


def null_arms(world: World, metric: str) -> dict[str, Any] | None:
    """Studies of a base and NULL_ARMS arms that differ by seed alone: how many have any verdict after Holm."""
    found: dict[str, list[bool]] = {}
    for population in world.populations:
        base, *arms = (Side("A", (seed,)) for seed in range(1, NULL_ARMS + 2))
        if not all(population.has(side, (1,)) for side in (base, *arms)):
            continue
        studies = [population.study(metric, arm, base, (1,)) for arm in arms]
        for name, method in methods(world.folds).items():
            adjusted = holm([one.p for one in method(studies, math.inf)])
            found.setdefault(name, []).append(any(p is not None and p < 1 - LEVEL for p in adjusted))
    if not found:
        return None
    studies_made = len(found["folds"])
    return {
        "metric": metric,
        "studies": studies_made,
        "any_verdict": {name: rate(sum(each), len(each)) for name, each in found.items()},
    }


def analyse(work: Path) -> dict[str, Any]:
    worlds = {folder: World(work / folder) for folder in dict.fromkeys(design.folder for design in DESIGNS)}
    cases = [
        found
        for design in DESIGNS
        for metric in METRICS
        for arm in WIDTHS
        if (found := case(worlds[design.folder], design, metric, arm))
    ]
    of_null = [found for metric in METRICS if (found := null_arms(worlds["600-5"], metric))]
    return {
        "worlds": {folder: world.summary() for folder, world in worlds.items()},
        "cases": cases,
        "null_arms": of_null,
    }


def of_all(cases: Sequence[Mapping[str, Any]], method: str, count: str) -> dict[str, float]:
    """A share over the studies of several cases."""
    studies = sum(one["studies"] for one in cases)
    return rate(round(sum(one["methods"][method][count]["share"] * one["studies"] for one in cases)), studies)


def percent(found: Mapping[str, float]) -> str:
    return f"{100 * found['share']:.1f}%"


def with_error(found: Mapping[str, float]) -> str:
    return f"{percent(found)} ± {100 * found['mc_error']:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(result: Mapping[str, Any]) -> str:
    """The tables of the section, from the content of real_studies.json."""
    cases = result["cases"]

    def of(metric: str, arms: Sequence[str], design: str | None = None) -> list[Mapping[str, Any]]:
        return [
            one for one in cases if one["metric"] == metric and one["arms"] in arms and design in (None, one["design"])
        ]

    true = ("A/B", "A/C")
    methods_seen = list(cases[0]["methods"])
    whole = table(
        ["metric", "method", "A/A called different", "A/A covered", "A/B and A/C covered", "A/B found", "A/C found"],
        (
            [
                metric,
                method,
                with_error(of_all(of(metric, ["A/A"]), method, "different")),
                percent(of_all(of(metric, ["A/A"]), method, "covered")),
                with_error(of_all(of(metric, true), method, "covered")),
                *(percent(of_all(of(metric, [arms]), method, "different")) for arms in true),
            ]
            for metric in METRICS
            for method in methods_seen
        ),
    )
    each = table(
        [
            "studies",
            "metric",
            "A/A studies",
            "called different",
            "B covered",
            "B found (predicted; by folds)",
            "C covered",
            "C found (predicted; by folds)",
        ],
        (
            [
                design,
                metric,
                str(null["studies"]),
                with_error(null["methods"]["by image"]["different"]),
                *(
                    text
                    for one in (b, c)
                    for text in (
                        with_error(one["methods"]["by image"]["covered"]),
                        f"{percent(one['methods']['by image']['different'])} "
                        f"({100 * one['power']:.0f}%; {percent(one['methods']['folds']['different'])})",
                    )
                ),
            ]
            for design in dict.fromkeys(one["design"] for one in cases)
            for metric in METRICS
            for null, b, c in [[of(metric, [arms], design)[0] for arms in ("A/A", *true)]]
        ),
    )
    arms = table(
        ["metric", "studies", *(f"any verdict, {method}" for method in methods_seen)],
        (
            [one["metric"], str(one["studies"]), *(with_error(one["any_verdict"][method]) for method in methods_seen)]
            for one in result["null_arms"]
        ),
    )
    equivalent = table(
        ["metric", *(f"called equivalent, {method}" for method in methods_seen)],
        (
            [metric, *(with_error(of_all(of(metric, true), method, "equivalent")) for method in methods_seen)]
            for metric in METRICS
        ),
    )
    parts = table(
        ["metric", "arms", "correlation of two folds", "excess E / images' share V", "variance of the mean / (V + E)"],
        (
            [metric, kind, *(f"{value:.2f}" for value in variances(of(metric, [kind])))]
            for metric in METRICS
            for kind in ("A/A", *true)
        ),
    )
    return "\n".join(
        [
            f"{worlds(result['worlds'])} All designs together:\n",
            whole,
            "The test by image, by design; in brackets what `variance.detectable` predicts that it finds, and what the "
            "corrected test over folds finds:\n",
            each,
            f"Studies of {NULL_ARMS} arms that differ from the base by seed alone, after Holm's correction:\n",
            arms,
            "Called equivalent, where the margin is the true difference, so that at most 5% may be:\n",
            equivalent,
            "Where the variance comes from, means over all designs:\n",
            parts,
        ]
    )


def variances(cases: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Of several cases, each weighted by its studies: the columns of the last table."""
    weights = [one["studies"] for one in cases]

    def mean(values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=weights))

    return (
        mean(one["correlation"] for one in cases),
        mean(one["variance"]["excess"] / one["variance"]["images"] for one in cases),
        mean(one["variance"]["of_the_mean"] / (one["variance"]["images"] + one["variance"]["excess"]) for one in cases),
    )


def worlds(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What was trained, and how well."""
    names = {"600": "600 images", "2000": "2,000 images", "skewed": "600 imbalanced images"}
    texts = []
    for folder, one in found.items():
        kind, folds = folder.split("-")
        right = ", ".join(f"{arm} {100 * share:.1f}%" for arm, share in one["accuracy"].items())
        nets = f"{one['nets']:,} nets, accuracy {right}"
        texts.append(f"{one['populations']} populations of {names[kind]} in {folds} folds ({nets})")
    return f"{'; '.join(texts)}."


def with_tables(text: str, tables: str) -> str:
    """The page with the tables between the marks."""
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="the folder of the trainings; 'page' writes only the tables anew")
    args = parser.parse_args()
    if str(args.work) != "page":
        result = {"machine": machine(), **analyse(args.work)}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    tables = page(json.loads(RESULT.read_text(encoding="utf-8")))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
