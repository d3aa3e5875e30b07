"""Pairs of models: whether interval, p and verdict agree, and what is refused or cannot be paired."""

import shutil

import numpy as np
import pytest
from PIL import Image

import convsmith
from convsmith.prediction.evaluation import Predictions
from convsmith.report.analysis import Pairing, pair
from convsmith.report.compare import Versus, _corrected


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
    assert found.test().difference == -0.25
    assert found.test().p == 1.0
    assert [second.ids[at] for at in found.partner] == list("xyzw")


def test_other_images_and_other_labels_are_not_paired():
    first = predictions("xyz", "aab", "aab")
    other = pair(first, predictions("xyv", "aab", "aab"))
    assert other == "their validation splits contain different images (2 of 3 and 3 in common)"
    assert pair(first, predictions("xyz", "abb", "aab")) == "their images have different labels"


def trained(data, folder):
    options = {"epochs": 1, "track": {"wandb": "off"}, "train": {"threads": 1, "layout": "contiguous"}, "show": False}
    return convsmith.train(data, name=data.name, runs_dir=folder, **options).directory


def test_images_that_have_the_same_name_in_two_data_sets_are_not_paired(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one", "other"):
        for file in (f"{split}/{label}/{at}.png" for split in ("train", "val") for label in "ab" for at in range(6)):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    shutil.copytree(tmp_path / "one", tmp_path / "more")
    shutil.copy(tmp_path / "other/train/a/0.png", tmp_path / "more/train/a/6.png")  # the val split stays the same
    runs = [trained(tmp_path / name, tmp_path / "runs") for name in ("one", "more", "other")]
    more, other = convsmith.compare(runs).versus
    assert more.result is not None
    assert other.words == (
        "other and one cannot be paired: the images of their val splits have the same names and are not the same."
    )
    shutil.rmtree(tmp_path / "other")
    assert convsmith.compare(runs).versus[1].result is None


@pytest.mark.parametrize("comparisons", [1, 2, 5])
@pytest.mark.parametrize(("losses", "wins", "n"), [(0, 3, 18), (0, 6, 18), (0, 0, 18), (2, 11, 40), (9, 30, 359)])
def test_the_interval_in_the_sentence_excludes_zero_where_a_difference_is_shown_and_only_there(
    losses, wins, n, comparisons
):
    first, second = np.ones((2, n), dtype=bool)
    second[:losses] = False
    first[losses : losses + wins] = False
    pairing = Pairing(first, second, np.arange(n))
    versus = Versus("b", "a", pairing, "", _corrected(pairing, comparisons), comparisons)
    words = versus.words
    shown = versus.result.low > 0 or versus.result.high < 0
    assert shown == ("no difference shown" not in words)
    assert f"{100 * versus.result.low:+.2f} to {100 * versus.result.high:+.2f}" in words
    assert (f"for {comparisons} comparisons" in words) == (comparisons > 1)
