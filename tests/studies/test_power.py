"""How large a study must be: repeats average out what does not last, and only that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convsmith.studies.power import Components, Design, assumed, enough, images_for, power
from convsmith.studies.variance import detectable

DESIGN = Design(folds=5, repeats=1, seeds=1, arms=3, images=1_000)


def test_a_design_finds_what_the_test_by_image_detects() -> None:
    known = Components(lasting=0.3, passing=0.4, trainings=0.01, source="")
    expected = detectable((0.09 + 0.16 / 6) ** 0.5, 0.01, 1_000, 30, level=1 - 0.05 / 3, cells=15)
    assert replace(DESIGN, repeats=3, seeds=2).finds(known) == pytest.approx(expected)


def test_enough_is_the_fewest_repeats() -> None:
    found = enough(DESIGN, assumed(), 0.02)
    assert found is not None
    assert found.finds(assumed()) <= 0.02 < found.repeated(found.repeats - 1).finds(assumed())
    assert enough(DESIGN, assumed(), 0.5) == DESIGN


def test_what_lasts_from_training_to_training_needs_images() -> None:
    assert enough(DESIGN, assumed(), 0.001) is None
    images = images_for(DESIGN, assumed(), 0.001)
    large = replace(DESIGN, images=images).repeated(DESIGN.most_repeats)
    assert large.finds(replace(assumed(), trainings=0.0)) == pytest.approx(0.001, rel=0.1)


def test_a_small_study_is_told_what_it_would_need() -> None:
    small = power(replace(DESIGN, images=600), assumed(), "accuracy")
    assert "too small a study for the differences that are usual: --repeats " in small
    assert "trainings of each arm) finds 2.00 percentage points" in small
    tiny = power(replace(DESIGN, images=20, units="groups of images"), assumed(), "accuracy")
    assert "for 2.00 percentage points no number of repeats suffices, but at least " in tiny
    assert tiny.endswith(" groups of images with many repeats")
    assert "too small" not in power(replace(DESIGN, images=50_000), assumed(), "accuracy")
