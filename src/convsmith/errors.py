"""The errors that a user can cause, each a single line that names the thing and the mend."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: shown as one line, exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message.replace("\n", " "))


class RunFailed(RuntimeError):
    """A run that could not go on (NaN loss, full disk): shown as one line, exit code 1."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM ended work that has been saved; the text says how to go on. Exit code 128 + `signal`."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def command(*words: object) -> str:
    """A convsmith command that can be pasted into a shell, whatever blanks its words have."""
    return shlex.join(["convsmith", *map(str, words)])


def nearest(word: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the choice nearest to `word`, or nothing where none is near."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


def choose(what: str, word: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`: all of them, and the nearest."""
    names = sorted(choices)
    return UserError(f"{what} '{word}' does not exist.{nearest(word, names)} Choices: {', '.join(names)}")


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"this needs the package '{package}': pip install 'convsmith[{extra}]'")
