"""The evidence book's page and digest are what the committed results say, and these belong to the shipped studies."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from convsmith.rundir import RunDir
from convsmith.studies import book as packaged
from convsmith.studies.config import BASE, arms_of, changes, read_study

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("evidence_book", ROOT / "benchmarks/evidence_book.py")
assert _spec
assert _spec.loader
book = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(book)


def ablations() -> list[str]:
    return [name for name in book.results() if name != book.GRADIENTS]


def test_the_page_is_made_of_the_results() -> None:
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert page == book.page_text(), "run: python benchmarks/evidence_book.py page"


def test_the_digest_says_what_the_full_results_say() -> None:
    digest = packaged.results()
    assert digest == book.digest(), "run: python benchmarks/evidence_book.py page"
    assert list(digest) == ablations()
    for name, record in digest.items():
        full = book.results()[name]
        assert record["n_images"] == full["n_images"]
        for arm, whole in zip(record["arms"], full["arms"], strict=True):
            differences = [one["difference"] for one in whole["per_fold"]]
            assert arm["difference"] == pytest.approx(sum(differences) / len(differences))
            assert arm["ci95"][0] <= arm["difference"] <= arm["ci95"][1]
            assert arm["verdict"] in ("helps", "hurts", "equivalent", "no difference shown")


def test_a_study_of_an_older_version_is_judged_anew_by_image(tmp_path: Path) -> None:
    """Its runs recorded all that the test needs; the fixture has 3 folds of 80 images."""
    shutil.copytree(ROOT / "tests/first_edition/ablation", tmp_path / "ablation")
    before = json.loads((tmp_path / "ablation/ablation.json").read_text(encoding="utf-8"))
    after = book.retested(RunDir(tmp_path / "ablation"))
    assert after["test"] == "images"
    for old, new in zip(before["arms"], after["arms"], strict=True):
        assert new["difference"] == pytest.approx(old["difference"])
        assert new["p"] < old["p"]
        assert new["ci95"][1] - new["ci95"][0] < old["ci95"][1] - old["ci95"][0]
    assert json.loads((tmp_path / "ablation/ablation.json").read_text(encoding="utf-8")) == before


def test_every_study_of_the_book_has_its_result_and_figure() -> None:
    assert set(ablations()) == set(book.shipped())
    for name in [*ablations(), book.GRADIENTS]:
        assert (ROOT / f"docs/images/evidence-{name}.svg").exists(), name


@pytest.mark.parametrize("name", ablations())
def test_a_result_is_that_of_the_study_as_it_is_now(name: str) -> None:
    study, record = read_study(name), book.results()[name]
    arms = arms_of(study, book.flags_of(name))
    assert record["question"] == study.question
    assert (record["folds"], record["repeats"], record["seeds"]) == (study.folds, study.repeats, study.seeds)
    assert {arm["name"]: arm["changes"] for arm in record["arms"]} == {
        arm: changes(arms[BASE], config) for arm, config in arms.items() if arm != BASE
    }
    base = arms[BASE]
    if base.data.limit is not None:  # else the data decide how many images there are, and so how many epochs
        assert (record["n_images"], record["epochs"]) == (base.data.limit, base.train.epochs)
    assert not record["failed"]
    for arm in record["arms"]:
        assert len(arm["per_fold"]) == study.folds * study.repeats * study.seeds


def test_what_nobody_expected_is_told_from_what_was_not_shown() -> None:
    arms = [
        {"name": "a", "verdict": "hurts"},
        {"name": "b", "verdict": "helps"},
        {"name": "c", "verdict": "no difference shown"},
        {"name": "d", "verdict": "equivalent"},
        {"name": "e", "verdict": "hurts"},
    ]
    record = {"arms": arms, "expected": {"a": "helps", "b": "helps", "c": "helps", "d": "hurts"}}
    assert book.contradicted(record) == [
        "common wisdom says that 'a' helps; here it hurts",
        "common wisdom says that 'd' hurts; here it is equivalent to the base",
    ]
    assert book.unconfirmed(record) == ["'c' helps"]
