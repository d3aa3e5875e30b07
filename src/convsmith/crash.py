"""What becomes of an exception that nobody expected: one line, and its details in a file. Prints nothing."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from convsmith.errors import UserError, command, first_line
from convsmith.rundir import IN_RUN, RunDir, now
from convsmith.runtime import installed
from convsmith.terminal import visible

PACKAGE = Path(__file__).parent
#: Set to 1, it lets the command line show the traceback as Python does.
VARIABLE = "CONVSMITH_TRACEBACK"


def line(error: Exception, argv: Sequence[str]) -> str:
    """The line that a user sees; the details go to the log of the run that the command was about, or to a new file."""
    name, what = type(error).__name__, first_line(error)
    said = name if what == name else f"{name}: {what}"
    if isinstance(error, OSError) and error.filename:  # its text names the file
        said = f"'{error.filename}' cannot be used: {error.strerror}"
    try:
        details = f"are in {keep(error, argv)}"
    except OSError as trouble:
        details = f"could not be kept ({trouble.strerror or trouble}): {VARIABLE}=1 shows them"
    return (
        f"failed: {said} (unexpected, at {_place(error)}). This is a fault of convsmith: please report it with the "
        f"details, which {details}"
    )


def keep(error: Exception, argv: Sequence[str]) -> Path:
    """Write the details where they are found, and return that file. Raises OSError where there is no room for them."""
    python = sys.version.split()[0]
    told = [f"unexpected error of convsmith {installed('convsmith')}, Python {python}, in: {command(*argv)}"]
    told += "".join(traceback.format_exception(error)).splitlines()
    run: RunDir | None = getattr(error, IN_RUN, None) or _run_of(argv)
    if run is not None:
        with suppress(OSError, UserError):  # a full disk, a log that is a link
            for one in told:
                run.log(one)
            return run.log_file
    with tempfile.NamedTemporaryFile(
        "w", prefix="convsmith-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write("\n".join(map(visible, [now(), *told])) + "\n")
        return Path(file.name)


def _run_of(argv: Sequence[str]) -> RunDir | None:
    """The run or study that a command names, if it has a log."""
    for word in argv:
        with suppress(OSError, ValueError):  # a word that is no path
            run = RunDir(Path(word))
            if run.config.is_file() and run.log_file.is_file():
                return run
    return None


def _place(error: Exception) -> str:
    """Where in our code it came up, such as ``report/run.py:90``."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if (file := Path(frame.filename)).is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE).as_posix()}:{frame.lineno}"
    return "an unknown place"
