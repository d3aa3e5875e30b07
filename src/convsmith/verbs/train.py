"""convsmith train."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.verbs.flags import add_config_arguments, add_run_arguments, read_config

PLACE, LINE = 10, "train a classifier on a data set, into a new run directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = read_config(args)
    if args.print_config:
        print(config.to_yaml(), end="")
        return 0
    from convsmith import rundir
    from convsmith.display import Display
    from convsmith.training import setup

    display = Display()
    runs_dir = Path(args.runs_dir)
    rundir.refuse_taken(runs_dir, args.name)
    prepared = setup.prepare(config, progress=display.counting("decoding"))
    started = setup.start(prepared, runs_dir, args.name)
    with started.run.lock():
        code = display.follow(started)
        if code == 0:
            from convsmith.report.write import after_training

            after_training(started.run, display.line)
        return code
