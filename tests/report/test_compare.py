"""Pairs of models: McNemar's test against scipy's binomial test, and what is refused or cannot be paired."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from convsmith.report.compare import _flat
from convsmith.report.files import Predictions
from convsmith.report.paired import mcnemar, pair


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_binomial_test(only_first, only_second):
    discordant = only_first + only_second
    expected = binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def predictions(ids, labels, predicted, classes=("a", "b")):
    chances = np.full((len(ids), len(classes)), 0.1)
    chances[np.arange(len(ids)), [classes.index(name) for name in predicted]] = 0.9
    return Predictions(tuple(ids), np.array([classes.index(name) for name in labels]), chances, classes)


def test_pairing_goes_by_id_and_by_class_name():
    first = predictions("xyzw", "abab", "abbb")
    second = predictions("wzyx", "baba", "bbaa", classes=("b", "a"))  # x, w right; z, y wrong
    found = pair(first, second)
    assert found.first.tolist() == [True, True, False, True]
    assert found.second.tolist() == [True, False, False, True]
    assert found.only_first.tolist() == [1]
    assert found.only_second.tolist() == []
    assert found.difference == -0.25
    assert found.p == 1.0
    assert [second.ids[at] for at in found.partner] == list("xyzw")


def test_other_images_and_other_labels_are_not_paired():
    first = predictions("xyz", "aab", "aab")
    other = pair(first, predictions("xyv", "aab", "aab"))
    assert other == "their val splits hold different images (2 of 3 and 3 in common)"
    assert pair(first, predictions("xyz", "abb", "aab")) == "their images have different labels"


def test_configs_are_compared_down_to_the_keys_of_a_block():
    config = {"model": {"blocks": [{"norm": "none"}, {"pool": None}], "hidden": [3, 4]}, "transfer": {}}
    flat = {"model.blocks[0].norm": "none", "model.blocks[1].pool": None, "model.hidden": [3, 4], "transfer": {}}
    assert dict(_flat(config)) == flat
