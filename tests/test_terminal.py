"""What reaches a terminal, in plain lines or through rich, has no hidden characters; other text is unchanged."""

from __future__ import annotations

import io
import subprocess
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from convsmith.display import Console, Display
from convsmith.errors import RunFailed, Stopped, UserError, command
from convsmith.plainyaml import parse_yaml, to_yaml
from convsmith.terminal import lines_of, plural, say, say_lines, visible, wrap

HOSTILE = (
    "\x1b[31m\x9b2J\x00\x07\r\n\t\x7f\u202e\u2066"
    "\u200f\u061c\u200b\u00ad\ufeff\u2028\u2029\x85\ue000\U000e0041\udcff\ud800\uffff"
)
ANY = st.text(st.characters())  # surrogates and unassigned ones included
INTERNATIONAL = (
    "Größe",
    "Zoe\u0308",
    "猫 犬",
    "고양이",
    "кошка",
    "γάτα",
    "قطة",
    "\u0645\u06cc\u200c\u062e",  # Persian, with a non-joiner
    "क्\u200dष",  # Devanagari, with a joiner
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family
    "\u2764\ufe0f\u200d\U0001f525",  # a heart on fire
    "1\ufe0f\u20e3",  # the key 1
    "\U0001f44d\U0001f3fd",
    "葛\U000e0100",  # an ideographic variant
    "\u00a0\u3000",
    "C:\\new\\x1b",
    "⠁⠿",
)


@pytest.mark.parametrize("text", INTERNATIONAL)
def test_international_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\r\n\tb\x7f", r"a\r\n\tb\x7f"),
        ("\x9b2J\u202egpj", r"\u009b2J\u202egpj"),
        ("caf\udce9", r"caf\xe9"),  # a Latin-1 name in a UTF-8 system
        ("\ud800", r"\ud800"),
        ("ca\u200dt", r"ca\u200dt"),  # a joiner where nothing joins
        ("\u732b\u200d\u200d\u732b", "猫" + r"\u200d\u200d" + "猫"),
        ("\u2764\ufe0f\ufe0f", "\u2764\ufe0f" + r"\ufe0f"),  # selectors in a row may hide data
        ("\u3164\U000e0041", r"\u3164\U000e0041"),
    ],
)
def test_hidden_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(ANY)
def test_what_is_visible_has_no_hidden_character_and_is_left_alone(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    kinds = {unicodedata.category(character) for character in shown if character not in "\u200c\u200d"}
    assert not kinds & {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not set(shown) & set(
        "\u200b\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u00ad"
    )
    assert lines_of(text).count("\n") == text.count("\n")


@given(ANY)
def test_a_console_shows_names_escaped_wherever_they_stand(text: str) -> None:
    """The one place that everything passes: also text, headings and titles that nobody has escaped before."""
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, color_system="truecolor", width=500))
    table = Table(text, text)
    table.add_row(text, Text(text))
    display.console.print(Panel(table, title=Text(text)), soft_wrap=False)
    display.console.print(text, Text(text, style="bold"))
    display.line(text)
    display.wrapped(text)
    display.table({text: [text], "b": [text]}, below=("b",))
    own = Text.from_ansi(out.getvalue()).plain  # without rich's own styles
    assert lines_of(own) == own
    assert "\x1b" not in own


@given(ANY)
def test_a_line_is_one_line_whatever_its_names_are(text: str) -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=10_000))
    display.line(f"written: {text}")
    assert out.getvalue() == f"written: {visible(text)}\n"


@pytest.mark.parametrize("width", [40, 200])
def test_a_table_stays_aligned_beside_a_hostile_name(width: int) -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=width, force_terminal=True, color_system=None))
    display.table({"class": ["cat", "\x1b[31mdog"], "n": ["1", "2"]}, below=())
    heading, cat, dog = out.getvalue().splitlines()
    assert dog.startswith(r"\x1b[31mdog")
    assert heading.index("n") == cat.index("1") == dog.index("2")


def test_errors_are_one_visible_line_in_python_too() -> None:
    for error in (UserError(HOSTILE), RunFailed(HOSTILE), Stopped(2, HOSTILE)):
        assert str(error) == visible(HOSTILE)


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"written: {HOSTILE}")
    say(f"error: {HOSTILE}", error=True)
    say_lines("a:\n\tb\x1b\n")
    out, err = capsys.readouterr()
    assert out == f"written: {visible(HOSTILE)}\na:\n\tb\\x1b\n"
    assert err == f"error: {visible(HOSTILE)}\n"


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_a_command_is_visible(name: str) -> None:
    shown = command("resume", name)
    assert visible(shown) == shown


@pytest.mark.parametrize("name", ["a b", "it's\x1b[31m", "back\\slash\n\u202e", "'\\'\t", "caf\udce9"])
def test_a_command_can_be_pasted_into_a_shell(name: str) -> None:
    script = f'convsmith() {{ printf %s "$2"; }}; {command("resume", name)}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout == name.encode("utf-8", "surrogateescape")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_yaml_of_ours_is_visible_and_reads_back(text: str) -> None:
    written = to_yaml({"source": text})
    assert lines_of(written) == written
    assert parse_yaml(written, "it") == {"source": text}


@pytest.mark.parametrize("width", [40, 60, 80])
def test_lines_end_between_words_and_no_command_is_broken(width: int) -> None:
    typed = "convsmith predict 'runs/my run' IMAGE... --out some-predictions.csv"
    line = f"error: 3 of 12,345 files cannot be read, which {typed}, tried again, leaves out of some-long-name.csv"
    lines = wrap(line, width, indent=2)
    assert sum(typed in one for one in lines) == 1
    assert " ".join(one.strip() for one in lines) == line
    assert all(len(one) <= width or typed in one for one in lines)
    assert wrap("", width) == [""]


def test_one_of_something_is_singular() -> None:
    assert [plural(number, "thread") for number in (0, 1, 1438)] == ["0 threads", "1 thread", "1,438 threads"]
