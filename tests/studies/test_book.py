"""The evidence book's page is what the committed results say, and these belong to the shipped studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from convsmith.cli import verb_parser
from convsmith.studies import book
from convsmith.studies.config import BASE, arms_of, changes, read_study
from convsmith.verbs.flags import read_flags

ROOT = Path(__file__).resolve().parents[2]


def ablations() -> list[str]:
    return [name for name in book.results() if name != book.GRADIENTS]


def test_the_page_is_made_of_the_results() -> None:
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert page == book.page(), "run: python benchmarks/evidence_book.py page"


def test_every_study_of_the_book_has_its_result_and_figure() -> None:
    assert set(ablations()) == set(book.shipped())
    for name in [*ablations(), book.GRADIENTS]:
        assert (ROOT / f"docs/images/evidence-{name}.svg").exists(), name


@pytest.mark.parametrize("name", ablations())
def test_a_result_is_that_of_the_study_as_it_is_now(name: str) -> None:
    study, record = read_study(name), book.results()[name]
    arguments = verb_parser("ablate").parse_all([name, *book.FLAGS.get(name, ())])
    arms = arms_of(study, read_flags(arguments))
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
