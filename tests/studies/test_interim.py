"""What follows from a look at a study with a budget: which arms stop, and who gets the time."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some

from convsmith import records
from convsmith.studies import interim
from convsmith.studies.interim import Course, Found
from convsmith.studies.statistics import holm, of_moments

ARMS = ("a", "b", "c")


def course(**changes: Any) -> Course:
    known = {"runs": 10, "folds": 5, "seconds": 1e6, "workers": 1, "margin": None, "alpha": 0.05}
    return Course(ARMS, "base", **known | changes)


def follow(course: Course, effects: dict[str, float], cost: float = 1.0, noise: float = 0.03) -> list[dict[str, Any]]:
    """All looks at arms whose differences are `effects` at every look, with an error that falls with the trainings."""
    looks: list[dict[str, Any]] = []
    following = course.first()
    while following:
        found = {
            arm: Found(done, of_moments(done, effects[arm], noise, noise / done**0.5, 100.0, course.margin, 0.95))
            for arm, done in following.items()
            if arm in effects
        }
        looks.append(interim.look(course, looks, found, {arm: [cost] * done for arm, done in following.items()}))
        one = looks[-1]
        assert records.problem(records.Look, one | {"finished": one["trainings"]}) is None
        assert one["seconds"] <= course.seconds or len(looks) == 1
        following = one["next"]
    return looks


def test_an_arm_with_a_clear_verdict_stops_and_the_others_go_on() -> None:
    looks = follow(course(), {"a": 0.3, "b": 0.021, "c": 0.022})
    assert interim.stopped_of(looks, "a") == ("verdict", 1, 3)
    assert interim.stopped_of(looks, "b") == ("plan", len(looks), 10)
    assert looks[1]["trainings"] == {"base": 4, "a": 3, "b": 4, "c": 4}
    assert list(looks[1]["arms"]) == ["b", "c"]


def test_an_arm_that_will_hardly_have_a_verdict_stops_once_each_image_was_held_out() -> None:
    looks = follow(course(), {"a": 0.0, "b": 0.0, "c": 0.02})
    because, number, done = interim.stopped_of(looks, "a") or ("", 0, 0)
    assert because == "no chance"
    assert 5 <= done < 10
    assert looks[number - 1]["arms"]["a"]["chance"] < interim.HARDLY


def test_an_arm_is_equivalent_where_it_is_within_the_margin_over_all_looks() -> None:
    one = course(margin=0.05)
    looks = follow(one, {"a": 0.0, "b": 0.045, "c": 0.02})
    assert interim.stopped_of(looks, "a")[0] == "verdict"  # type: ignore[index]
    assert interim.equivalent(one, looks, "a")
    p = interim.p_equivalent_of(looks, "a")
    assert p is not None
    assert p < 0.05
    assert not interim.equivalent(one, looks, "b")


def test_a_budget_that_does_not_suffice_goes_to_the_arm_that_it_is_likeliest_to_decide() -> None:
    looks = follow(course(seconds=28.0), {"a": 0.0, "b": 0.027, "c": 0.01})
    assert looks[-1]["trainings"] == {"base": 10, "a": 3, "b": 10, "c": 5}  # when b is done, 2 are left
    assert interim.stopped_of(looks, "b")[0] == "verdict"  # type: ignore[index]
    assert interim.stopped_of(looks, "c")[0] == "budget"  # type: ignore[index]


def test_what_the_first_look_needs_is_run_whatever_the_budget() -> None:
    (only,) = follow(course(seconds=0.1), {"a": 0.01, "b": 0.01, "c": 0.01})
    assert only["stopped"] == dict.fromkeys(ARMS, "budget")
    assert only["next"] == {}


def test_an_arm_without_a_comparison_goes_on_to_the_plans_end() -> None:
    looks = follow(course(), {"a": 0.02, "b": 0.02})
    assert interim.stopped_of(looks, "c") == ("plan", len(looks), 10)
    assert interim.p_of(looks, "c") is None
    assert interim.level_of(looks, "c", 0.05) == 0.95


def test_many_trainings_have_few_looks_and_many_workers_take_long_steps() -> None:
    assert len(follow(course(runs=500), {"a": 0.002, "b": 0.002, "c": 0.002})) <= interim.MOST_LOOKS + 1
    assert follow(course(workers=16), {"a": 0.02, "b": 0.02, "c": 0.02})[1]["trainings"]["a"] == 7


@settings(max_examples=15, deadline=None)
@given(some.dictionaries(some.sampled_from(ARMS), some.floats(-0.05, 0.05), min_size=1))
def test_arms_are_called_by_holms_correction_of_their_p_values_over_looks(effects: dict[str, float]) -> None:
    one = course()
    looks = follow(one, effects)
    adjusted = holm([interim.p_of(looks, arm) for arm in ARMS])
    assert all(p is None or abs(p - 0.05) > 1e-4 for p in adjusted)
    assert interim.called(one, looks) == {arm for arm, p in zip(ARMS, adjusted, strict=True) if p and p < 0.05}
    for arm in effects:
        low = 1 - interim.level_of(looks, arm, 0.05)
        assert 0 < low <= 0.05
