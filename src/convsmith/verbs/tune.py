"""convsmith tune STUDY.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.verbs.flags import add_config_arguments, add_jobs_arguments, add_run_arguments, at_least, read_flags

PLACE, LINE = 110, "search the best values of any keys: Optuna's trials, resumable, without the test split"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY.yaml", help="a study file, or the name of one that comes along")
    add_run_arguments(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="trials in all, instead of the study's number")
    add_jobs_arguments(parser)
    add_config_arguments(parser, file=False)


def run(args: argparse.Namespace) -> int:
    from convsmith.studies.tune_config import read_tuning

    config = read_tuning(args.study)
    if args.trials is not None:
        at_least(1, "--trials", args.trials)
        config = config.model_copy(update={"trials": args.trials})
    at_least(1, "--jobs", args.jobs)
    flags = read_flags(args)
    from convsmith.display import Display
    from convsmith.studies import tuning

    return tuning.begin(config, flags, args.jobs, args.backend, Path(args.runs_dir), args.name, Display())
