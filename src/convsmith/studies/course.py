"""The order in which the trainings of an ablation run: all of them, or from look to look under a budget.

`interim` decides at a look, and `halving` in studies of older versions; what they decide upon is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from convsmith import records
from convsmith.events import ArmGivenUp, ArmStopped, Listener
from convsmith.studies import interim
from convsmith.studies.comparison import LOOKS, Plan, compare_all
from convsmith.studies.config import BASE
from convsmith.studies.fold_job import FoldJob
from convsmith.studies.halving import given_up
from convsmith.studies.interim import Course, Found, Look
from convsmith.studies.statistics import LEVEL

Train = Callable[[Sequence[FoldJob]], dict[str, str]]  # runs jobs, and returns why some failed, by name


def whole(plan: Plan, train: Train) -> dict[str, str]:
    """Run all trainings; returns why some failed."""
    return train([plan.job(arm, index) for index in range(plan.runs) for arm in plan.arms])


def halved(plan: Plan, train: Train, max_workers: int, listener: Listener) -> tuple[dict[str, str], dict[str, int]]:
    """Run the trainings of a study of an older version; also returns after how many an arm was given up, by name."""
    failed: dict[str, str] = {}
    alive, dropped = list(plan.arms), {}
    for index in range(plan.runs):
        failed |= train([plan.job(arm, index) for arm in alive])
        for arm in given_up(plan, alive, index + 1, max_workers):
            alive.remove(arm)
            dropped[arm] = index + 1
            listener(ArmGivenUp(arm, index + 1, plan.runs))
    return failed, dropped


def course_of(plan: Plan, workers: int) -> Course:
    """What the looks of a study follow, as its files say."""
    arms = tuple(arm for arm in plan.arms if arm != BASE)
    seconds, folds = 60 * plan.spec["budget"] * workers, plan.spec["folds"]
    return Course(arms, BASE, plan.runs, folds, seconds, workers, plan.spec["margin"], 1 - LEVEL)


def looked_at(plan: Plan, train: Train, listener: Listener) -> dict[str, str]:
    """Run the trainings of a study with a budget, from look to look; returns why some failed.

    Every look is written before anything follows from it, and those that are written stand. Trainings that failed are
    tried again when the study is resumed. If that fills the gaps of a study that was over, its last look is repeated.
    """
    record = records.read(plan.run.path / LOOKS, records.Looks)
    course, looks = course_of(plan, record["workers"]), list(record["looks"])
    failed: dict[str, str] = {}
    tried: set[str] = set()
    while True:
        is_over = bool(looks) and not looks[-1]["next"]
        until = (looks[-1]["trainings" if is_over else "next"]) if looks else course.first()
        there = replace(plan, until=until)
        jobs = [job for job in there.jobs() if job.name not in tried]
        tried |= {job.name for job in jobs}
        failed |= train(jobs)
        if is_over and there.finished() == looks[-1]["finished"]:
            return failed
        found = _look(there, course, looks[:-1] if is_over else looks)
        looks = [*looks[:-1], found] if is_over else [*looks, found]
        records.write(plan.run.path / LOOKS, records.Looks, {**record, "looks": looks})
        for arm, reason in found["stopped"].items():
            listener(ArmStopped(arm, reason, until[arm], plan.runs))


def _look(plan: Plan, course: Course, before: Sequence[Look]) -> Look:
    """The next look at what is done of the trainings of `plan.until`."""
    scores = plan.scores()
    results, _ = compare_all(plan, scores)  # of what cannot be had the summary says why
    found = {
        arm: Found(len(scores[arm].keys() & scores[BASE].keys()), result) for arm, result in results.items() if result
    }
    seconds = {arm: [one["seconds"] for one in of.values()] for arm, of in scores.items()}
    return {**interim.look(course, before, found, seconds), "finished": plan.finished()}
