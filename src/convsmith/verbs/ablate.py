"""convsmith ablate STUDY.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.errors import command
from convsmith.studies import nursery
from convsmith.verbs.flags import add_config_arguments, add_jobs_arguments, add_run_arguments, read_flags

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.studies.ablation import AblationResult

PLACE, LINE = 100, "compare changes on the same folds: which helps, by how much, with what confidence"
EXAMPLES = {
    "convsmith ablate activations --data photos/ --jobs 2": "a shipped study on images of yours",
    "convsmith ablate study.yaml --folds 5 --budget 60": "a study of yours, in an hour",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY.yaml", help="a study file, or the name of a shipped one")
    add_run_arguments(parser)
    parser.add_argument("--folds", type=int, metavar="N", help="number of folds, instead of the study's")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="give up arms early to stay within this time")
    parser.add_argument("--wide", action="store_true", help="all columns of the table side by side, however wide")
    add_jobs_arguments(parser)
    add_config_arguments(parser, file=False)


def run(args: argparse.Namespace) -> int:
    from convsmith.studies.config import read_study

    config = read_study(args.study)
    nursery.prepare(args.jobs, args.backend)
    from convsmith.studies.ablation import ablate
    from convsmith.study_display import StudyDisplay

    with StudyDisplay() as shown:
        result = ablate(
            config,
            read_flags(args),
            folds=args.folds,
            jobs=args.jobs,
            backend=args.backend,
            budget=args.budget,
            name=args.name,
            runs_dir=Path(args.runs_dir),
            listener=shown,
        )
    return show(result, shown.display, args.wide)


def show(result: AblationResult, display: Display, wide: bool = False) -> int:
    """Print how the arms compare, and return the exit code; `wide` has all columns side by side."""
    from convsmith import stacked
    from convsmith.rundir import RunDir
    from convsmith.studies.text import by_importance

    rows, directory = result.table(), result.directory
    display.line()
    stacked.show(display, rows, by_importance(rows), words=("verdict",), under=("changes",), wide=wide)
    display.line()
    display.prose(result.conclusion)
    for name, reason in result.failed.items():
        display.line(f"failed: {name}: {reason}")
    display.line()
    files = "ablation.csv", "ablation.tex", "conclusion.md", "figures/forest.png", "arms/"
    display.written(RunDir(directory).ablation, *files)
    if result.failed:
        display.next(f"{command('resume', directory)}   (tries the failed runs again)", command("report", directory))
    else:
        display.next(command("report", directory), command("train", directory / "arms" / result.best / "config.yaml"))
    return 1 if result.failed else 0
