"""convsmith ablate STUDY.yaml."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from convsmith.errors import UserError
from convsmith.verbs.flags import add_config_arguments, add_jobs_arguments, add_run_arguments, at_least, read_flags

PLACE, LINE = 100, "which change helps, by how much, and how sure: arms compared on the same folds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY.yaml", help="a study file, or the name of one that comes along")
    add_run_arguments(parser)
    parser.add_argument("--folds", type=int, metavar="N", help="folds, instead of the study's")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="give arms up early to keep within this time")
    add_jobs_arguments(parser)
    add_config_arguments(parser, file=False)


def run(args: argparse.Namespace) -> int:
    from convsmith.studies.config import read_study

    config = read_study(args.study)
    if args.folds is not None:
        at_least(2, "--folds", args.folds)
        config = config.model_copy(update={"folds": args.folds})
    at_least(1, "--jobs", args.jobs)
    if args.budget is not None and not 0 < args.budget < math.inf:
        raise UserError(f"--budget {args.budget:g}: must be minutes above 0")
    from convsmith.display import Display
    from convsmith.studies import ablation

    flags = read_flags(args)
    runs_dir = Path(args.runs_dir)
    return ablation.begin(config, flags, args.jobs, args.backend, args.budget, runs_dir, args.name, Display())
