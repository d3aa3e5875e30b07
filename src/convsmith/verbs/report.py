"""convsmith report RUN, or STUDY."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convsmith.errors import command
from convsmith.terminal import say
from convsmith.verbs.flags import add_reading_arguments, read_moved

if TYPE_CHECKING:
    from convsmith.rundir import RunDir

PLACE, LINE = 40, "write a page about a run or a study: what was found, for which images, and how sure that is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="the directory of a finished run, or of a study")
    add_reading_arguments(parser, "the data, where they have moved")


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.report.run import report
    from convsmith.rundir import open_run

    run = open_run(args.directory)
    path = report(run.path, read_moved(args, run), listener=Display())
    say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser, it needs no network")
    say(f"next: {_next(run)}")
    return 0


def _next(run: RunDir) -> str:
    from convsmith.rundir import kind_of, state_of

    kind = kind_of(run)
    if kind == "run":
        return command("compare", run.path, "OTHER_RUN")
    if kind != "crossval" and state_of(run) != "finished":
        return command("resume", run.path)
    if kind == "ablate":
        from convsmith import records
        from convsmith.studies.ablation import AblationResult

        best = AblationResult(run.path, records.read(run.ablation, records.Ablation)).best
        return command("train", run.path / "arms" / best / "config.yaml")
    if kind == "tune":
        return command("crossval", run.best)
    return command("train", run.config)
