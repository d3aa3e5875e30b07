"""YAML that is read: plain values of bounded size, whatever the text is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsmith.errors import UserError
from convsmith.plainyaml import LARGEST, parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + above] * 10)}]\n"
    for above, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, r"line 4 is not read as YAML: .* at most 10,000 are read, since 2\d aliases count"),
        ("a: &a [*a]", "an alias stands for a value that it is in"),
        ("[" * (LARGEST - 1), "more than 50 levels"),
        ("- " * 50_000, "more than 50 levels"),
        ("? " * 50_000, "more than 50 levels"),
        ("{a: " * 40_000, "more than 50 levels"),
        ("".join(f"k{number}: 1\n" for number in range(20_000)), "10,001 values so far"),
        ("x" * (LARGEST + 1), "more than 200,000 characters"),
        ("a: !!bool x", "'x' is not a value of !!bool"),
        ("!!int [1]", "expected a scalar"),
        ("!!float x", "'x' is not a value of !!float"),
        ("!!map 1", "not valid YAML"),
        ("!!timestamp x", "the tag !!timestamp is not known"),
        ("!!set {a}", "the tag !!set is not known"),
        ("!!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not known"),
        ("a: " + "9" * 5_000, "integer of more than 64 bits"),
        ("a: 1" + "0" * 30, "integer of more than 64 bits"),
        ('"\\ud800"', "surrogates not allowed"),
        ('"\\UFFFFFFFF"', "not valid YAML"),
        ("a: \x00", "unacceptable character"),
    ],
)
def test_hostile_text_is_one_line_at_once(text: str, reason: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=reason) as raised:
        parse_yaml(text, "'study.yaml'")
    assert time.process_time() - began < 2
    assert str(raised.value).startswith("'study.yaml'")


def test_aliases_are_read_within_the_bounds() -> None:
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc: [*a, *a]", "it") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": [{"x": [1, 2]}, {"x": [1, 2]}],
    }


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with file.open("wb") as out:
        out.write(b"a: 1\n")
        out.truncate(10**9)
    with pytest.raises(UserError, match=r"config\.yaml' is not read as YAML: it has more than 200,000 characters"):
        read_yaml(file)


@given(st.text("[]{}:,-?&*!|>'\"%@`#\n ab1.~<=\\x", max_size=60))
def test_any_text_is_values_or_one_line(text: str) -> None:
    with contextlib.suppress(UserError):
        parse_yaml(text, "it")
