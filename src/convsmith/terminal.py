"""What may reach a terminal: names with hidden characters are shown escaped. Knows no rich; `display` builds on this.

Names of classes, files, runs and tensors, and what other libraries say of them, are data: they may contain characters
that move a terminal's cursor, colour it, reverse the order of letters, or cannot be seen at all.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence

#: What Unicode calls ignorable by default and Python printable: fillers and selectors that have no look of their own.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
#: Format characters that are drawn: the signs of Arabic, Syriac and Kaithi that stand before a number.
_DRAWN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
#: Zero-width (non-)joiners, which Persian, the scripts of India and emoji need.
_JOINERS = frozenset("\u200c\u200d")

_GLUE = "\ue000"  # in place of a blank at which no line ends; visible text has no such character
NARROWEST = 32  # columns at which lines are still wrapped
#: A command in a sentence. It stays in one line, so that it can be pasted; what it is followed by may stay with it.
_COMMAND = re.compile(r"\b(?:convsmith|wandb|pip) [a-z](?:'[^']*'|[^,;()'])*[^\s,;()']?")


def visible(text: str) -> str:
    r"""`text` with an escape for each character that is not seen: ``\x1b``, ``\n``, ``\u202e``, ``\U000e0041``.

    These are controls, format and bidirectional characters, surrogates, characters for private use, unassigned ones,
    fillers, and separators of lines and paragraphs. A byte of a file name that is not UTF-8 is shown as ``\xff``. All
    scripts stay as they are: joiners and selectors are escaped only where they follow nothing that they could change.
    Escapes contain only ASCII, so that applying the function twice changes nothing more.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    before = " "  # the character before, or a blank after an escape
    for at, character in enumerate(text):
        after = text[at + 1 : at + 2]
        if _is_seen(character, before, after):
            shown.append(character)
            before = character
        else:
            shown.append(_escape(character))
            before = " "
    return "".join(shown)


def spelled(name: str) -> str:
    r"""A class name in which nothing is hidden, for a sentence.

    A name with letters that are not composed (NFC), or with blanks other than the plain one, is escaped, as in
    ``cafe\u0301``; one with blanks at its ends, or several in a row, is put in quotes.
    """
    is_plain = unicodedata.normalize("NFC", name) == name and not any(c.isspace() for c in name.replace(" ", ""))
    shown = name if is_plain else name.encode("unicode_escape").decode()
    return shown if shown == " ".join(shown.split()) else f"'{shown}'"


def lines_of(text: str) -> str:
    """Text of several lines, each of them visible; only a newline ends a line."""
    return "\n".join(map(visible, text.split("\n")))


def wrap(line: str, width: int, indent: int = 0) -> list[str]:
    """A sentence in lines of at most `width` columns, those after the first indented; names in it must be visible.

    No word, path or command is broken: one that is wider than the terminal stands in a line of its own.
    """
    glued = _COMMAND.sub(lambda found: found[0].replace(" ", _GLUE), line)
    lines = textwrap.wrap(
        glued,
        max(width, NARROWEST),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_GLUE, " ") for line in lines] or [""]


def plural(number: float, what: str) -> str:
    """``1 thread``, ``1,438 threads``, ``0.5 minutes``."""
    count = f"{number:g}" if isinstance(number, float) else f"{number:,}"
    return f"{count} {what}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def say(line: str = "", error: bool = False, indent: int = 0) -> None:
    """Print one line of plain text to stdout, or to stderr; a terminal gets it wrapped between words, then indented."""
    stream = sys.stderr if error else sys.stdout
    shown = visible(line)
    lines = wrap(shown, shutil.get_terminal_size().columns, indent) if stream.isatty() else [shown]
    print("\n".join(lines), file=stream)


def warn(line: str) -> None:
    """Give one line to Python's logger `convsmith`, which by itself writes it to stderr."""
    logging.getLogger("convsmith").warning("warning: %s", visible(line))


def say_lines(text: str) -> None:
    """Print text of several lines, such as a file of ours, to stdout; tabs and newlines are its layout."""
    for line in text.removesuffix("\n").split("\n"):
        print("\t".join(map(visible, line.split("\t"))))


def _is_seen(character: str, before: str, after: str) -> bool:
    if character in _JOINERS:  # between two characters that may join
        return _may_join(before) and _may_join(after)
    if _is_selector(character):  # of one variant of the character before it, such as of a digit on a key
        return (
            (before in "0123456789#*" or not before.isascii()) and not _is_selector(before) and before not in _JOINERS
        )
    if character in _FILLERS:
        return False
    return character.isprintable() or character in _DRAWN or unicodedata.category(character) == "Zs"


def _may_join(character: str) -> bool:
    return not character.isascii() and character.isprintable() and character not in _FILLERS


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte of a file name (PEP 383)
        code -= 0xDC00
        return f"\\x{code:02x}"
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return named.get(character) or (
        f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
