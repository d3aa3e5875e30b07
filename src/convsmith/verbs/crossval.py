"""convsmith crossval."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.verbs.flags import add_config_arguments, add_jobs_arguments, add_run_arguments, at_least, read_config

PLACE, LINE = 90, "N-fold cross-validation: mean, deviation and interval of every metric"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--folds", type=int, default=5, metavar="N", help="how many parts the images are divided into [5]"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="R", help="how often, each time anew [1]")
    add_jobs_arguments(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = read_config(args)
    if args.print_config:
        print(config.to_yaml(), end="")
        return 0
    at_least(2, "--folds", args.folds)
    at_least(1, "--repeats", args.repeats)
    at_least(1, "--jobs", args.jobs)
    from convsmith.display import Display
    from convsmith.studies import crossval

    return crossval.begin(
        config, args.folds, args.repeats, args.jobs, args.backend, Path(args.runs_dir), args.name, Display()
    )
