"""Which jobs are divided so that no worker waits for the last ones; test_crossval holds that it happens."""

from __future__ import annotations

import pytest

from convsmith.studies.runner import shares_first


@pytest.mark.parametrize(
    ("jobs", "max_workers", "divided"),
    [
        (5, 2, {4: 0.5}),  # McNaughton's wrap-around: 2.5 jobs a worker
        (4, 2, {}),
        (1, 4, {}),
        (4, 3, {3: 2 / 3, 2: 1 / 3}),
        (10, 4, {9: 0.5, 8: 0.5}),
    ],
)
def test_the_last_jobs_are_divided(jobs: int, max_workers: int, divided: dict[int, float]) -> None:
    assert shares_first(jobs, max_workers) == pytest.approx(divided)
