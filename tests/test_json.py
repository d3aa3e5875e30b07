"""JSON that is read: what JSON's own rules allow, and nothing that surprises a reader later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsmith import files, records
from convsmith.errors import UserError
from convsmith.files import DEEPEST, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_what_json_writes_is_read(value: object, ascii_only: bool) -> None:
    try:
        text = json.dumps(value, ensure_ascii=ascii_only)
        text.encode()
    except UnicodeEncodeError:
        return
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 1_000_000, "nested"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested more than 50 levels"),
        ("NaN", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("1e999", "1e999 is too large"),
        ("1" + "0" * 30, "more than 64 bits"),
        ("9" * 5_000, "more than 64 bits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        ('"\\ud800"', "surrogates not allowed"),
        ("\ufeff1", "BOM"),
        ("", "Expecting value"),
        ("1 2", "Extra data"),
    ],
)
def test_other_text_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_the_deepest_value_and_the_largest_integers_are_read() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    assert parse_json(f"[{2**63 - 1}, {-(2**63)}]") == [2**63 - 1, -(2**63)]
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"


def test_a_file_that_is_too_large_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text('["12345678"]')
    (tmp_path / "a.jsonl").write_text("{}\n" * 5)
    monkeypatch.setattr(json, "loads", None)
    monkeypatch.setattr(files, "LARGEST_JSON", 11)
    monkeypatch.setattr(records, "LARGEST_JSON", 11)
    with pytest.raises(ValueError, match="more than 11 characters"):
        parse_json('["12345678"]')
    with pytest.raises(UserError, match=r"a\.json' is damaged \(it has more than 11 bytes\)"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"a\.jsonl' is damaged \(it has more than 11 bytes\)"):
        records.read_lines(tmp_path / "a.jsonl", records.TestAccess)
    monkeypatch.undo()
    monkeypatch.setattr(files, "LARGEST_JSON", 12)
    assert files.read_json(tmp_path / "a.json") == ["12345678"]
