"""Tables that fit every terminal: nothing is cut, nothing is wider than the terminal, what matters has columns."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from convsmith import stacked
from convsmith.display import Console, Display
from convsmith.terminal import visible

FIRST = ["difference (points)", "95% interval", "verdict", "mean accuracy (%)", "p (Holm)"]
ROWS = [
    {
        "arm": name,
        "changes": changes,
        "mean accuracy (%)": "57.31",
        "difference (points)": "+1.04",
        "95% interval": "-0.05 to +2.13",
        "p (Holm)": "0.1755",
        "verdict": verdict,
        "seconds": "11.7",
        "cost": "1.3x",
    }
    for name, changes, verdict in [
        ("base", "model.activation=relu", "base"),
        ("a long name of an arm that has its own line", 'model.blocks=[{"channels": 4}]', "no difference shown"),
    ]
]


def told(width: int, wide: bool = False) -> list[str]:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, color_system=None, width=width))
    stacked.show(display, ROWS, FIRST, words=("verdict",), under=("changes",), wide=wide)
    assert display.console.width == width
    return out.getvalue().splitlines()


def test_at_eighty_columns_verdict_and_interval_have_columns_and_the_rest_stands_below() -> None:
    lines = told(80)
    assert lines[:3] == [
        "arm                mean  difference    95% interval       p  verdict",
        "               accuracy    (points)                  (Holm)",
        "                    (%)",
    ]
    assert lines[3:] == [
        "base              57.31       +1.04  -0.05 to +2.13  0.1755  base",
        "  model.activation=relu",
        "  seconds 11.7  cost 1.3x",
        "a long name of an arm that has its own line",
        "                  57.31       +1.04  -0.05 to +2.13  0.1755  no difference shown",
        '  model.blocks=[{"channels": 4}]',
        "  seconds 11.7  cost 1.3x",
    ]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_nothing_is_cut_and_nothing_is_wider_than_the_terminal(width: int) -> None:
    lines = told(width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for row in ROWS:
        for cell in row.values():
            assert set(cell.split()) <= set(words), cell


def test_where_there_is_room_or_on_request_all_columns_stand_side_by_side() -> None:
    whole = told(200)
    assert len(whole) == 3
    assert told(40, wide=True) == [line.rstrip() for line in whole]


@given(
    rows=st.lists(st.tuples(*[st.text("ab 日\u00a0\x1b-", max_size=30)] * 4), min_size=1, max_size=4),
    width=st.integers(32, 100),
)
def test_names_of_any_kind_fit(rows: list[tuple[str, ...]], width: int) -> None:
    named = [dict(zip(("name", "number", "verdict", "changes"), row, strict=True)) for row in rows]
    found = list(stacked.lines(named, width, ["verdict", "number"], words=("verdict",), under=("changes",)))
    assert max(map(cell_len, found)) <= width
    written = "".join("".join(found).split())
    for row in rows:
        if not visible(row[1]).split():
            continue
        assert set("".join(visible(row[0]).split())) <= set(written)
