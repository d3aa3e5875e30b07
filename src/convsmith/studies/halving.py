"""Successive halving of an ablation's arms: the rule by which studies of older versions keep their budget."""

from __future__ import annotations

from collections.abc import Sequence

from convsmith.records import METRICS
from convsmith.studies.comparison import Plan, mean_of
from convsmith.studies.config import BASE


def given_up(plan: Plan, alive: Sequence[str], done: int, max_workers: int) -> list[str]:
    """The worse half of the arms, if running all of them would exceed the budget.

    The decision uses only the records of the first `done` runs of each arm, so a resumed study decides the same.
    """
    recorded = plan.scores()
    scores = {arm: {index: records[index] for index in records if index < done} for arm, records in recorded.items()}
    spent = sum(record["seconds"] for records in scores.values() for record in records.values())
    rate = {arm: mean_of(scores[arm], "seconds") for arm in alive if scores[arm]}
    left = sum(rate.values()) * (plan.runs - done)
    arms = [arm for arm in alive if arm != BASE and scores[arm]]
    if (spent + left) / max_workers <= 60 * plan.spec["budget"] or len(arms) < 2:
        return []
    metric = METRICS[plan.spec["metric"]]
    ranked = sorted(arms, key=lambda arm: metric.sign * mean_of(scores[arm], metric.name))
    return ranked[: len(arms) // 2]
