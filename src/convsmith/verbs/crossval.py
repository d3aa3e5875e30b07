"""convsmith crossval."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.errors import command
from convsmith.studies import nursery
from convsmith.verbs.flags import (
    add_config_arguments,
    add_jobs_arguments,
    add_run_arguments,
    print_config,
    read_settings,
)

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.studies.crossval import CrossvalResult

PLACE, LINE = 90, "N-fold cross-validation: mean, standard deviation and interval of every metric"
EXAMPLES = {
    "convsmith crossval --data photos/ --folds 5 --jobs 2": "five trainings, two at a time",
    "convsmith crossval runs/first/config.yaml --repeats 2": "a run's settings on two divisions of its images",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--folds", type=int, default=5, metavar="N", help="number of parts that the images are divided into [5]"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="R", help="number of different divisions [1]")
    add_jobs_arguments(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    settings = read_settings(args)
    if args.print_config:
        return print_config(settings)
    nursery.prepare(args.jobs, args.backend)
    from convsmith.recipes import decide
    from convsmith.studies.crossval import crossval
    from convsmith.study_display import StudyDisplay

    with StudyDisplay() as shown:
        result = crossval(
            decide(settings, listener=shown),
            folds=args.folds,
            repeats=args.repeats,
            jobs=args.jobs,
            backend=args.backend,
            name=args.name,
            runs_dir=Path(args.runs_dir),
            listener=shown,
        )
    return show(result, shown.display)


def show(result: CrossvalResult, display: Display) -> int:
    """Print the results of the folds, and return the exit code."""
    from rich.table import Table

    from convsmith.records import HEADLINES, METRICS, shown
    from convsmith.rundir import RunDir

    directory = result.directory
    folds = Table("fold", *(METRICS[metric].label for metric in HEADLINES), "images", "seconds")
    for row in result.table():
        scores = (shown(metric, row[metric]) for metric in HEADLINES)
        folds.add_row(row["fold"], *scores, f"{row['images']:,}", f"{row['seconds']:.1f}")
    over_folds = Table("metric", "mean", "std", "95% low", "95% high")
    for row in result.intervals():
        values = (shown(row["metric"], row[key]) for key in ("mean", "std", "low", "high"))
        over_folds.add_row(METRICS[row["metric"]].label, *values)
    for table in (folds, over_folds) if result.std else (folds,):
        table.box, table.pad_edge = None, False
        for column in table.columns[1:]:
            column.justify = "right"
        display.line()
        display.console.print(table)
    for metric, reason in result.without_interval.items():
        display.line(f"no interval: {METRICS[metric].label}: {reason}")
    for name, reason in result.failed.items():
        display.line(f"missing: {name} failed: {reason}")
    if len(result.per_fold) < 2:
        display.line("fewer than two folds are done, so no interval can be computed")
    files = ("predictions-oof.csv", "figures/confusion.png", "folds/") if result.per_fold else ()
    display.line()
    display.written(RunDir(directory).crossval, *files)
    if result.failed:
        display.next(f"{command('resume', directory)}   (tries the failed folds again)")
    else:
        train = f"{command('train', directory / 'config.yaml')}   (one net, trained on the whole train split)"
        display.next(command("report", directory), train)
    return 1 if result.failed else 0
