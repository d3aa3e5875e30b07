"""The errors that a user can cause, each a single line that names the problem and the fix. Handles none of them."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable

from convsmith.terminal import visible

LONGEST = 4_000  # characters of a message


def _one_line(message: str) -> str:
    """A message with its names made visible; of a very long one, which holds a value out of all measure, the ends."""
    line = visible(message)
    left_out = len(line) - LONGEST
    return (
        line if left_out <= 0 else f"{line[: LONGEST // 2]} ... ({left_out:,} characters) ... {line[-LONGEST // 2 :]}"
    )


class UserError(ValueError):
    """A mistake in the user's input: one line, in which names are made visible, exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class RunFailed(RuntimeError):
    """A run could not continue (NaN loss, full disk): one line, in which names are made visible, exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class OutOfMemory(RunFailed):
    """Memory could not be had, of the machine or of its accelerator: shown as one line, exit code 1."""


class EndedElsewhere(RunFailed):
    """This process, one of several that train together, ends because another one has failed, which says why."""

    def __init__(self) -> None:
        super().__init__("another process of this training has ended")


class Stopped(KeyboardInterrupt):
    """A signal that asks to end has ended work that is saved; the text says how to resume. Exit code 128 + `signal`."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(_one_line(message))
        self.signal = signal


class Terminated(BaseException):
    """SIGTERM or SIGHUP came outside a training (which would save first): an exception cleans up what is half made."""

    def __init__(self, signal: int) -> None:
        self.signal = signal


def command(*words: object) -> str:
    """A convsmith command that can be pasted into a shell, with quotes where its words need them."""
    return " ".join(map(quoted, ["convsmith", *map(str, words)]))


def quoted(word: str) -> str:
    """The word for a shell; one with hidden characters with escapes in ``$'...'``, as bash and zsh read it."""
    if visible(word) == word:
        return shlex.quote(word)
    return "$'" + visible(word.replace("\\", r"\\").replace("'", r"\'")) + "'"


def nearest(word: str, choices: Iterable[str], spelled: Callable[[str], str] = str) -> str:
    """``" Did you mean 'x'?"`` for the choice nearest to `word`, or an empty string if none is near."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{spelled(match[0])}'?" if match else ""


def choose(what: str, word: str, choices: Iterable[str], unlisted: Iterable[str] = ()) -> UserError:
    """The error for a name that is not among `choices`; it lists them all and suggests the nearest.

    What is `unlisted` may be suggested too.
    """
    names = sorted(choices)
    near = nearest(word, [*names, *unlisted])
    return UserError(f"{what} '{word}' does not exist.{near} Choices: {', '.join(names)}")


def damaged(path: object, reason: object) -> UserError:
    """The error for a file of a run that is not as it was written."""
    return UserError(f"'{path}' is damaged ({reason}): restore it, or run again")


def missing(path: object) -> UserError:
    """The error for a file of a run that is gone."""
    return UserError(f"'{path}' is missing: restore it, or run again")


def first_line(error: BaseException) -> str:
    """What an error of other origin says, for the middle of a sentence: its first line, or else its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"this needs the package '{package}': pip install 'convsmith[{extra}]'")
