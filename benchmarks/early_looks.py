"""Do the looks of `ablate --budget` keep the rate of false alarms, what do they save, and what power do they cost?

    python benchmarks/early_looks.py      about four minutes on one core

It writes docs/results/early_looks.json, and the table between the marks in docs/statistics.md.

Studies are simulated, and their course decided by `interim.look`, as in `ablate --budget`: the test by image at each
look, what is spent of the 5%, Holm's correction over the arms, and which arms go on. Beside it stands the fixed design:
all planned trainings (or as many of each arm as the budget pays), one test at the end, Holm's correction.

Of each image of each training an arm is right and the base wrong (+1), or the other way about (-1), on 20% of the
images together. That is decided by a normal number, beyond a threshold on either side, which consists of a part of the
image (the same in all trainings), a part of the training (the same for all images, its excess noise), and a rest. Half
of each part's variance comes from the base, which all arms of a study share.

The worlds: arms that differ by chance alone; arms that differ from image to image, but not on the average; arms with
excess noise of trainings. Counted are the studies with any false verdict over all looks (at most 5% are allowed), arms
found, intervals that hold the truth, whatever their look, and trainings, also where the budget is half of the plan.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from convsmith.studies import interim
from convsmith.studies.interim import Course, Found
from convsmith.studies.statistics import Comparison, holm
from convsmith.studies.variance import Training, compare_by_image, moments, shared_excess

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULT, PAGE = DOCS / "results" / "early_looks.json", DOCS / "statistics.md"
BEGIN, END = "<!-- tables: benchmarks/early_looks.py -->", "<!-- end of tables -->"
DISCORDANT, ALPHA = 0.2, 0.05
THRESHOLD = float(norm.isf(DISCORDANT / 2))
BASE = "base"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """`effects` are the arms' true differences in accuracy; `of_image` and `of_training` are shares of the variance."""

    effects: tuple[float, ...]
    of_image: float = 0.0
    of_training: float = 0.0
    images: int = 600
    folds: int = 5
    repeats: int = 2
    budget: float = 1.0  # as a share of the plan
    margin: float | None = None

    @property
    def runs(self) -> int:
        return self.folds * self.repeats


WORLDS = {
    "6 null arms, chance alone": World((0.0,) * 6),
    "6 null arms, images differ": World((0.0,) * 6, of_image=0.5),
    "6 null arms, noise of trainings": World((0.0,) * 6, of_image=0.2, of_training=0.0016),
    "6 null arms, 5 folds x 4": World((0.0,) * 6, of_training=0.0016, repeats=4),
    "6 null arms, half the budget": World((0.0,) * 6, of_image=0.2, of_training=0.0016, budget=0.5),
    "0, 0, 2, 5 points": World((0.0, 0.0, 0.02, 0.05), of_image=0.2),
    "0, 0, 2, 5 points, noise of trainings": World((0.0, 0.0, 0.02, 0.05), of_image=0.2, of_training=0.0016),
    "0, 0, 2, 5 points, half the budget": World((0.0, 0.0, 0.02, 0.05), of_image=0.2, budget=0.5),
    "2 null arms and 2 at the margin of 3 points": World((0.0, 0.0, 0.03, 0.03), of_image=0.2, margin=0.03),
}


def shift(effect: float) -> float:
    """The mean of the normal number with which a share `effect` more of the images is +1 than -1."""
    found: float = brentq(lambda mean: norm.sf(THRESHOLD - mean) - norm.cdf(-THRESHOLD - mean) - effect, -2, 2)
    return found


def draw(world: World, rng: np.random.Generator) -> list[list[Training]]:
    """The trainings of each arm of one study: run k of all arms has the same fold."""
    arms, n, runs = len(world.effects), world.images, world.runs

    def part(*shape: int) -> Floats:
        return math.sqrt(0.5) * (rng.normal(size=(arms, *shape)) + rng.normal(size=(1, *shape)))

    image = math.sqrt(world.of_image) * part(n)
    training = math.sqrt(world.of_training) * part(runs)
    rest = math.sqrt(1 - world.of_image - world.of_training)
    means = [shift(effect) for effect in world.effects]
    found: list[list[Training]] = [[] for _ in range(arms)]
    for repeat in range(world.repeats):
        divided = np.array_split(rng.permutation(n), world.folds)
        for fold, held_out in enumerate(map(np.sort, divided)):
            index = repeat * world.folds + fold
            number = image[:, held_out] + training[:, index, None] + rest * part(len(held_out))
            for arm in range(arms):
                moved = number[arm] + means[arm]
                values = (moved > THRESHOLD).astype(np.float64) - (moved < -THRESHOLD)
                found[arm].append(Training(repeat + 1, fold + 1, index, held_out, values))
    return found


def judged(world: World, trainings: Sequence[Sequence[Training]], levels: Sequence[float]) -> list[Comparison]:
    """The comparisons of all arms, as `ablate` makes them of the trainings that there are."""
    known = [moments(of) for of in trainings]
    return [
        compare_by_image(of, world.margin, level, shared_excess([one for one in known if one.cells >= own.cells]))
        for of, level, own in zip(trainings, levels, known, strict=True)
    ]


def fixed(world: World, trainings: Sequence[Sequence[Training]]) -> list[dict[str, Any]]:
    """All planned trainings, or as many of each arm as the budget pays, and one test."""
    runs = round(world.budget * world.runs)
    trainings = [of[:runs] for of in trainings]
    compared = judged(world, trainings, [1 - ALPHA] * len(trainings))
    return [
        {
            "called": p is not None and p < ALPHA,
            "equivalent": bool(one.equivalent),
            "interval": (one.low, one.high),
            "trainings": runs,
        }
        for one, p in zip(compared, holm([one.p for one in compared]), strict=True)
    ]


def with_looks(world: World, trainings: Sequence[Sequence[Training]]) -> list[dict[str, Any]]:
    """The same study as `ablate --budget` runs it; each training takes one second."""
    names = [f"arm {number}" for number in range(len(trainings))]
    budget = world.budget * world.runs * (1 + len(names))
    course = Course(tuple(names), BASE, world.runs, world.folds, budget, 1, world.margin, ALPHA)
    looks: list[dict[str, Any]] = []
    following = course.first()
    while following:
        done = [of[: following[arm]] for arm, of in zip(names, trainings, strict=True)]
        compared = judged(world, done, [1 - ALPHA] * len(names))
        found = {arm: Found(following[arm], one) for arm, one in zip(names, compared, strict=True)}
        seconds = {arm: [1.0] * done for arm, done in following.items()}
        looks.append(interim.look(course, looks, found, seconds))
        following = looks[-1]["next"]
    result = []
    called = interim.called(course, looks)
    stops = [stop for arm in names if (stop := interim.stopped_of(looks, arm))]
    done = [of[:number] for of, (_, _, number) in zip(trainings, stops, strict=True)]
    compared = judged(world, done, [interim.level_of(looks, arm, ALPHA) for arm in names])
    for arm, (because, _, number), one in zip(names, stops, compared, strict=True):
        result.append(
            {
                "called": arm in called,
                "equivalent": interim.equivalent(course, looks, arm),
                "interval": (one.low, one.high),
                "trainings": number,
                "because": because,
            }
        )
    return result


def count(world: World, studies: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Shares over the studies, and over the arms of the same effect."""
    null = [index for index, effect in enumerate(world.effects) if effect == 0]
    result: dict[str, Any] = {
        "any_false_alarm": np.mean([any(study[index]["called"] for index in null) for study in studies]),
        "trainings_of_arms": np.mean([sum(arm["trainings"] for arm in study) for study in studies]),
        "trainings_of_base": np.mean([max(arm["trainings"] for arm in study) for study in studies]),
        "by_effect": {},
    }
    for effect in dict.fromkeys(world.effects):
        arms = [study[index] for study in studies for index, mine in enumerate(world.effects) if mine == effect]
        covered = [low is None or low <= effect <= high for low, high in (arm["interval"] for arm in arms)]
        result["by_effect"][f"{100 * effect:g} points"] = {
            "called_different": np.mean([arm["called"] for arm in arms]),
            "covered": np.mean(covered),
            "width": np.mean([high - low for low, high in (arm["interval"] for arm in arms) if low is not None]),
            "trainings": np.mean([arm["trainings"] for arm in arms]),
            **({"called_equivalent": np.mean([arm["equivalent"] for arm in arms])} if world.margin else {}),
            **(
                {reason: np.mean([arm["because"] == reason for arm in arms]) for reason in interim.REASONS}
                if "because" in arms[0]
                else {}
            ),
        }
    return result


def table(result: Mapping[str, Any]) -> str:
    """The table of the page: for each world the fixed design beside that with looks."""
    lines = [
        f"Of {result['studies']} studies each (Monte Carlo error of 5%: ± {100 * result['mc_error']:.1f} points): all "
        "trainings and one test, beside looks.",
        "",
        "| arms, true differences | any false verdict | trainings | found | intervals that hold the truth |",
        "|---|---|---|---|---|",
    ]
    for name, world in result["worlds"].items():
        cells = []
        for of in (world["fixed"], world["looks"]):
            effects = of["by_effect"]
            found = [f"{arm['called_different']:.0%}" for effect, arm in effects.items() if effect != "0 points"]
            found += [
                f"{effect} equivalent {arm['called_equivalent']:.0%}"
                for effect, arm in effects.items()
                if "called_equivalent" in arm
            ]
            trainings = of["trainings_of_arms"] + of["trainings_of_base"]
            covered = min(arm["covered"] for arm in effects.values())
            cells.append([f"{of['any_false_alarm']:.1%}", f"{trainings:.1f}", ", ".join(found), f"{covered:.1%}"])
        pairs = [" → ".join(filter(None, pair)) for pair in zip(*cells, strict=True)]
        lines.append(f"| {name} | {' | '.join(pairs)} |")
    return "\n".join(lines)


def with_table(page: str, result: Mapping[str, Any]) -> str:
    """The text of the page with the table of `result` between its marks."""
    before, _, after = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(result)}\n\n{END}{after.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1_000, help="per world")
    args = parser.parse_args()
    here, began = machine(), time.process_time()
    worlds = {}
    for number, (name, world) in enumerate(WORLDS.items()):
        rng = np.random.default_rng(number)
        drawn = [draw(world, rng) for _ in range(args.studies)]
        designs = {"fixed": fixed, "looks": with_looks}
        found = {design: count(world, [way(world, study) for study in drawn]) for design, way in designs.items()}
        worlds[name] = {
            "effects": world.effects,
            "runs": world.runs,
            "budget": None if math.isinf(world.budget) else world.budget,
            **found,
        }
        print(f"{name} ({time.process_time() - began:.0f} s)")
        for design in designs:
            whole = found[design]["trainings_of_arms"] + found[design]["trainings_of_base"]
            arms = "; ".join(
                f"{effect}: " + " ".join(f"{key} {value:.3g}" for key, value in of.items())
                for effect, of in found[design]["by_effect"].items()
            )
            print(f"  {design:6} any false alarm {found[design]['any_false_alarm']:.1%}, {whole:.1f} trainings; {arms}")
    result = {
        "command": f"python benchmarks/early_looks.py --studies {args.studies}",
        "machine": here,
        "cpu_seconds": round(time.process_time() - began, 1),
        "studies": args.studies,
        "mc_error": math.sqrt(0.05 * 0.95 / args.studies),
        "worlds": worlds,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
