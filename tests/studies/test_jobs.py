"""How jobs are laid out over workers, so that none waits while the last ones run."""

from __future__ import annotations

import heapq
from collections import deque
from fractions import Fraction

import pytest

from convsmith.studies.runner import shares_first


def makespan(jobs: int, at_once: int) -> Fraction:
    """When the last of `jobs` jobs of length 1 ends, if workers take them as `run_jobs` gives them."""
    first = {place: Fraction(share).limit_denominator(1000) for place, share in shares_first(jobs, at_once).items()}
    waiting = deque([(share, 1 - share) for share in first.values()])
    waiting.extend([(Fraction(1), Fraction(0))] * (jobs - len(first)))
    workers = [(Fraction(0), number, Fraction(0)) for number in range(at_once)]
    end = Fraction(0)
    while workers:
        now, number, rest = heapq.heappop(workers)
        if rest:
            waiting.append((rest, Fraction(0)))
        if waiting:
            length, left = waiting.popleft()
            heapq.heappush(workers, (now + length, number, left))
        end = max(end, now)
    return end


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("jobs", [1, 2, 3, 4, 5, 7, 10, 11, 25])
def test_no_worker_waits_for_the_last_jobs(jobs: int, at_once: int) -> None:
    assert makespan(jobs, at_once) == max(Fraction(1), Fraction(jobs, at_once))


def test_five_folds_two_at_a_time_divide_the_last_in_halves() -> None:
    assert shares_first(5, 2) == {4: 0.5}
    assert shares_first(4, 2) == {}
