"""convsmith report RUN."""

from __future__ import annotations

import argparse

from convsmith.errors import command
from convsmith.terminal import say
from convsmith.verbs.flags import add_reading_arguments, read_moved

PLACE, LINE = 40, "write a page about a run: diagnosis, curves, confusion matrix, mistakes, calibration, data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="the directory of a finished run or cross-validation")
    add_reading_arguments(parser, "the data, where they have moved")


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.report.run import report
    from convsmith.rundir import open_run

    run = open_run(args.directory)
    path = report(run.path, read_moved(args, run), listener=Display())
    say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser, it needs no network")
    say(f"next: {command('train', run.config) if run.study.exists() else command('compare', run.path, 'OTHER_RUN')}")
    return 0
