"""Early looks: boundaries that books list, false alarms by simulation, p-values that hold at any look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats

from convsmith.studies import sequential
from convsmith.studies.sequential import chance, nominal_levels, sequential_p

FIFTHS = [0.2, 0.4, 0.6, 0.8, 1.0]


def test_boundaries_are_those_that_books_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five equal looks at two-sided 5% with O'Brien and Fleming's spending (R's ldbounds, gsDesign's sfLDOF)."""
    monkeypatch.setattr(
        sequential, "spent", lambda alpha, t: 4 * stats.norm.sf(stats.norm.isf(alpha / 4) / np.sqrt(min(t, 1.0)))
    )
    boundaries = stats.norm.isf(np.array(nominal_levels(0.05, FIFTHS)) / 2)
    assert boundaries == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)


def test_one_look_at_the_end_is_an_ordinary_test() -> None:
    assert nominal_levels(0.05, [1.0]) == pytest.approx([0.05])
    assert sequential_p([0.03], [1.0]) == pytest.approx(0.03)
    assert sequential_p([], []) == 1.0


@pytest.mark.parametrize("fractions", [FIFTHS, [0.5, 0.55, 0.9, 1.0], [0.3, 0.7]])
def test_all_looks_together_raise_as_many_false_alarms_as_one(fractions: list[float]) -> None:
    rng = np.random.default_rng(0)
    steps = np.sqrt(np.diff([0.0, *fractions]))
    z = np.cumsum(rng.normal(size=(200_000, len(fractions))) * steps, axis=1) / np.sqrt(fractions)
    p_values = 2 * stats.norm.sf(np.abs(z))
    called = (p_values <= nominal_levels(0.05, fractions)).any(axis=1).mean()
    assert called == pytest.approx(0.05 * fractions[-1] ** 3, abs=3 * np.sqrt(0.05 * 0.95 / 200_000))
    assert (p_values <= 0.05).any(axis=1).mean() > 1.3 * called


@settings(max_examples=10, deadline=None)
@given(
    some.lists(some.floats(1e-6, 1.0), min_size=5, max_size=5),
    some.floats(0.001, 0.999),
)
def test_a_p_value_over_looks_is_below_alpha_where_a_look_calls_the_difference(p: list[float], alpha: float) -> None:
    found = [sequential_p(p[:look], FIFTHS[:look]) for look in range(6)]
    assert sorted(found, reverse=True) == found  # it never rises
    assert found[-1] >= min(p) - 1e-9
    if abs(np.log(found[-1] / alpha)) > 1e-3:
        called = any(mine <= level for mine, level in zip(p, nominal_levels(alpha, FIFTHS), strict=True))
        assert called == (found[-1] <= alpha)


def test_the_chance_of_a_verdict_is_what_simulated_studies_have() -> None:
    rng = np.random.default_rng(0)
    for difference, margin in [(0.02, 0.0), (0.0, 0.0), (0.005, 0.03), (-0.03, 0.03)]:
        variance, planned, level, one_sided = 0.01**2 * 2, 0.01**2, 0.04, 0.045
        end = rng.normal(difference, np.sqrt(variance - planned), 200_000)
        verdict = np.abs(end) > stats.norm.isf(level / 2) * 0.01
        verdict |= np.abs(end) + stats.norm.isf(one_sided) * 0.01 < margin
        assert chance(difference, variance, planned, level, margin, one_sided) == pytest.approx(
            verdict.mean(), abs=0.005
        )
    assert chance(0.03, 1e-4, 1e-4, 0.05) == 1.0  # nothing is to come
    assert chance(0.01, 1e-4, 1e-4, 0.05) == 0.0
    assert chance(0.0, 2e-4, 1e-4, 0.05, margin=1.0) == 1.0
