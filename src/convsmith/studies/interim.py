"""The course of an ablation study with a budget: after each look, which arms go on. Decides; trains nothing.

A look follows whenever the arms have got more trainings. An arm is stopped where its verdict is clear, and where the
trainings that are left will hardly bring one; what that saves goes to the others. Where the budget does not suffice for
all, those come first that a training is likeliest to decide. Each look is written to looks.json before it is acted
upon, and depends on nothing but records, so that a study that was killed goes on as it would have done.

That an arm is stopped for want of a chance or of time raises no rate of false alarms, since a p-value over looks
holds wherever they end (`sequential`). The information at a look is the share of the planned trainings: exactly so
where two arms differ by chance alone. Where they differ from image to image the same way in all trainings, the looks
are more alike than that, and the boundaries err on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from convsmith.studies.sequential import LEAST_STEP, chance, nominal_levels, sequential_p
from convsmith.studies.statistics import Comparison

FIRST = 3  # trainings of each arm before the first look
MOST_LOOKS = 20  # more would cost power, and teach little
HARDLY = 0.05  # the chance of a verdict below which an arm is stopped, once each image has been held out

VERDICT, HOPELESS, BUDGET, PLAN = REASONS = ("verdict", "no chance", "budget", "plan")  # why an arm was stopped
Look = dict[str, Any]  # as in looks.json
Looks = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Course:
    """What the looks of a study depend on besides its results.

    `arms` are their names without that of the base, `runs` the trainings planned for each (in every `folds` of them
    each image is held out once), `seconds` of training the budget, and `workers` the number of trainings at a time when
    the study was started. `alpha` holds for all arms and all looks.
    """

    arms: tuple[str, ...]
    base: str
    runs: int
    folds: int
    seconds: float
    workers: int
    margin: float | None
    alpha: float

    def first(self) -> dict[str, int]:
        """The trainings of each arm and of the base at the first look."""
        return dict.fromkeys((self.base, *self.arms), min(FIRST, self.runs))


@dataclass(frozen=True)
class Found:
    """What a look finds of an arm: its comparison with the base over `trainings`, those that both have finished."""

    trainings: int
    comparison: Comparison


def look(course: Course, before: Looks, found: Mapping[str, Found], seconds: Mapping[str, Sequence[float]]) -> Look:
    """The next look: what the test says of each arm that was still in question, which stop, how far the others go.

    `before` are the earlier looks, `found` lacks arms of which too few trainings have not failed, and `seconds` says
    what each finished training took, of the base too. The result is what looks.json holds of it: see `records.Look`.
    """
    done = before[-1]["next"] if before else course.first()
    over = {arm for one in before for arm in one["stopped"]}
    tested = {}
    for arm in course.arms:
        if arm in found and arm not in over and (entry := _tested(course, before, arm, done[arm], found[arm])):
            tested[arm] = entry
    looks = [*before, {"arms": tested}]
    open_arms = [arm for arm in course.arms if arm not in over]
    decided = called(course, looks) | {arm for arm in open_arms if equivalent(course, looks, arm)}
    stopped = {arm: VERDICT for arm in open_arms if arm in decided}
    stopped |= {arm: PLAN for arm in open_arms if done[arm] == course.runs and arm not in decided}
    undecided = [arm for arm in open_arms if arm not in stopped]
    for arm in undecided:
        if arm in tested:
            level = course.alpha / len(undecided)  # Holm's for the likeliest of them, if those before were called
            tested[arm]["chance"] = _chance(course, looks, arm, level, done[arm], found[arm].comparison)
            if tested[arm]["chance"] < HARDLY and done[arm] >= course.folds:
                stopped[arm] = HOPELESS
    waiting = {arm: _last(looks, arm, "chance", 1.0) for arm in undecided if arm not in stopped}
    following = _next(course, done, waiting, seconds)
    if not following:
        stopped |= dict.fromkeys(waiting, BUDGET)
    return {
        "trainings": dict(done),
        "seconds": sum(map(sum, seconds.values())),
        "arms": tested,
        "stopped": stopped,
        "next": following,
    }


def called(course: Course, looks: Looks) -> set[str]:
    """The arms whose difference is called at some look: those that Holm's correction of `p_of` leaves below alpha.

    Of m arms that are not called yet, one is where a look of its own passes at alpha / m.
    """
    found: set[str] = set()
    while waiting := [arm for arm in course.arms if arm not in found]:
        passed = {arm for arm in waiting if _passes(looks, arm, "p", course.alpha / len(waiting))}
        if not passed:
            break
        found |= passed
    return found


def equivalent(course: Course, looks: Looks, arm: str) -> bool:
    """Whether some look has shown that the arm's difference lies within the margin: `p_equivalent_of` below alpha."""
    return _passes(looks, arm, "p_equivalent", course.alpha, sides=1)


def _passes(looks: Looks, arm: str, key: str, alpha: float, sides: int = 2) -> bool:
    fractions, entries = _history(looks, arm)
    if not entries:
        return False
    levels = _levels(2 * alpha / sides, fractions)
    return any(
        entry[key] is not None and entry[key] < level * sides / 2 for entry, level in zip(entries, levels, strict=True)
    )


def p_of(looks: Looks, arm: str) -> float | None:
    """The two-sided p-value of an arm's difference over all its looks; None where it has had none."""
    fractions, entries = _history(looks, arm)
    return sequential_p([entry["p"] for entry in entries], fractions) if entries else None


def p_equivalent_of(looks: Looks, arm: str) -> float | None:
    """The p-value of an arm's equivalence over all its looks; None where there is no margin."""
    fractions, entries = _history(looks, arm)
    values = [1.0 if (p := entry["p_equivalent"]) is None else min(1.0, 2 * p) for entry in entries]
    return sequential_p(values, fractions) / 2 if entries else None  # each of its two tests is one-sided


def level_of(looks: Looks, arm: str, alpha: float) -> float:
    """1 minus the nominal level of an arm's last look: of an interval at it, those of all looks hold together.

    (Repeated confidence intervals: Jennison and Turnbull 1989, JRSS B 51, 305-361.) 1 - alpha where there is no look.
    """
    fractions, _ = _history(looks, arm)
    return 1 - (_levels(alpha, fractions)[-1] if fractions else alpha)


def stopped_of(looks: Looks, arm: str) -> tuple[str, int, int] | None:
    """Why an arm was stopped, at which look (from 1), and after how many trainings; None where it goes on."""
    for number, one in enumerate(looks, start=1):
        if arm in one["stopped"]:
            return one["stopped"][arm], number, one["trainings"][arm]
    return None


def unordered(looks: Looks) -> str | None:
    """The first arm whose information does not rise from look to look, as in no file that was written here."""
    for arm in sorted({str(arm) for one in looks for arm in one["arms"]}):
        fractions, _ = _history(looks, arm)
        if any(later - earlier < LEAST_STEP for earlier, later in pairwise(fractions)):
            return arm
    return None


def _history(looks: Looks, arm: str) -> tuple[tuple[float, ...], list[Mapping[str, Any]]]:
    entries = [one["arms"][arm] for one in looks if arm in one["arms"]]
    return tuple(entry["fraction"] for entry in entries), entries


def _last(looks: Looks, arm: str, key: str, default: float) -> float:
    entries = _history(looks, arm)[1]
    return float(entries[-1].get(key, default)) if entries else default


def _tested(course: Course, before: Looks, arm: str, done: int, found: Found) -> dict[str, Any] | None:
    """An arm's entry in a look; None where there is no test, or hardly a training more than at its last look."""
    fraction = 1.0 if done == course.runs else found.trainings / course.runs
    if found.comparison.p is None or fraction < _last(before, arm, "fraction", 0.0) + LEAST_STEP:
        return None
    return {"fraction": fraction, "p": found.comparison.p, "p_equivalent": found.comparison.p_equivalent}


def _chance(course: Course, looks: Looks, arm: str, level: float, done: int, found: Comparison) -> float:
    """The chance that an arm has a verdict at the plan's end, where the variance is as small as it can become."""
    fractions = (*_history(looks, arm)[0], 1.0)
    last, one_sided = _levels(level, fractions)[-1], _levels(2 * course.alpha, fractions)[-1] / 2
    variance = found.standard_error**2
    planned = variance * done / course.runs
    return chance(found.mean_difference, variance, planned, last, course.margin or 0.0, one_sided)


@lru_cache(maxsize=1024)
def _levels(alpha: float, fractions: tuple[float, ...]) -> list[float]:
    return nominal_levels(alpha, fractions)


def _next(
    course: Course, done: Mapping[str, int], waiting: Mapping[str, float], seconds: Mapping[str, Sequence[float]]
) -> dict[str, int]:
    """The trainings that each arm and the base shall have at the next look; empty where the study is over.

    `waiting` are the arms in question, each with its chance of a verdict. All of them go on as long as the budget
    suffices for the whole plan; else those come first whose chance is the greatest for the time that they need, as many
    as can be finished. If not even one can, it gets what time is left.
    """
    known = [value for values in seconds.values() for value in values]
    mean = sum(known) / len(known) if known else 0.0
    each = {arm: sum(values) / len(values) if (values := seconds.get(arm, ())) else mean for arm in done}

    def cost(arms: Sequence[str], until: Mapping[str, int]) -> float:
        """Seconds until `arms` have the trainings `until`, and the base the most of them."""
        of_base = max([until[arm] for arm in arms], default=0) - done[course.base]
        own = sum(each[arm] * (until[arm] - done[arm]) for arm in arms)
        return own + each[course.base] * max(0, of_base)

    left = course.seconds - sum(known)
    whole = dict.fromkeys(waiting, course.runs)

    def promise(arm: str) -> float:
        return -waiting[arm] / max(cost([arm], whole), 1e-9)

    chosen: list[str] = []
    for arm in sorted(waiting, key=promise):
        if cost([*chosen, arm], whole) <= left:
            chosen.append(arm)
    if not chosen:
        chosen = sorted(waiting, key=promise)[:1]
    step = max(math.ceil(course.runs / MOST_LOOKS), math.ceil(course.workers / (len(chosen) + 1)))
    # What is left for the last look is not much less than a step.
    until = {arm: done[arm] + step if done[arm] + 1.5 * step <= course.runs else course.runs for arm in chosen}
    if not chosen or cost(chosen, until) > left:
        return {}
    return {**done, **until, course.base: max(done[course.base], *until.values())}
