"""The benchmark of early looks: its arms differ as they claim to, and the page has its table."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def looks() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("early_looks")


def test_simulated_arms_differ_as_they_claim_to(looks: Any) -> None:
    world = looks.World((0.0, 0.05), of_image=0.2, of_training=0.0016)
    rng = np.random.default_rng(0)
    studies = [looks.draw(world, rng) for _ in range(60)]
    means = np.array([[np.mean([one.values.mean() for one in arm]) for arm in study] for study in studies])
    assert means.mean(axis=0) == pytest.approx(world.effects, abs=4 * means.std() / np.sqrt(60))
    found = looks.with_looks(world, studies[0])
    assert {arm["because"] for arm in found} <= set(looks.interim.REASONS)
    assert all(3 <= arm["trainings"] <= world.runs for arm in found)


def test_the_page_has_the_table_of_the_results(looks: Any) -> None:
    result = json.loads(looks.RESULT.read_text(encoding="utf-8"))
    page = looks.PAGE.read_text(encoding="utf-8")
    assert page == looks.with_table(page, result)
