"""convsmith auto DATA."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.config import validate
from convsmith.errors import command
from convsmith.studies.auto_keys import decided
from convsmith.verbs.flags import add_config_arguments, add_run_arguments, read_flags

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.studies.auto import AutoResult

PLACE, LINE = 15, "the best classifier that some minutes on this machine can make, with an honest estimate"
EXAMPLES = {
    "convsmith auto photos/": "the best that five minutes can make",
    "convsmith auto photos/ --minutes 30 --name flowers": "with more time and a name; after a kill, the same again",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--minutes", type=float, default=5.0, metavar="M", help="time for everything [5]")
    add_config_arguments(parser, file=False, refused=decided())
    parser.add_argument(
        "data.source", nargs="?", default=argparse.SUPPRESS, metavar="DATA", help="labelled images, as for train --data"
    )


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    config = validate(read_flags(args))
    from convsmith.studies.auto import auto
    from convsmith.study_display import StudyDisplay

    with StudyDisplay() as shown:
        result = auto(
            config,
            minutes=args.minutes,
            name=args.name,
            runs_dir=Path(args.runs_dir),
            listener=shown,
            began=began,
        )
    return show(result, shown.display)


def show(result: AutoResult, display: Display) -> int:
    """Print the race and its estimate, and return the exit code."""
    from convsmith.display import duration
    from convsmith.records import shown

    display.line()
    rows = result.table()
    display.table(
        {
            "candidate": [row["candidate"] for row in rows],
            "inner accuracy": ["" if row["accuracy"] is None else shown("accuracy", row["accuracy"]) for row in rows],
            "loss": ["" if row["loss"] is None else shown("loss", row["loss"]) for row in rows],
            "time": [duration(row["seconds"]) for row in rows],
            "end": [row["end"] for row in rows],
        },
        below=("end",),
    )
    display.line()
    display.written(f"{result.directory}/ (auto.json, model/, report.html), in {duration(result.record['seconds'])}")
    display.next(f"{command('predict', result.directory)} IMAGE...")
    display.line()
    display.prose(result.sentence)
    return 0
