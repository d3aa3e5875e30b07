"""convsmith ablate STUDY.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.errors import command
from convsmith.studies import nursery
from convsmith.verbs.flags import (
    add_config_arguments,
    add_jobs_arguments,
    add_run_arguments,
    read_flags,
    setting_words,
)

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.studies.ablation import AblationResult
    from convsmith.studies.planning import AblationPlan

PLACE, LINE = 100, "compare changes on the same folds: which helps, by how much, with what confidence"
EXAMPLES = {
    "convsmith ablate activations --data photos/ --jobs 2": "a shipped study on images of yours",
    "convsmith ablate study.yaml --detect 0.5": "how large it must be to find half a point, and what that costs",
    "convsmith ablate study.yaml --repeats 4 --budget 60": "a study of yours, in at most an hour",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY.yaml", help="a study file, or the name of a shipped one")
    add_run_arguments(parser)
    numbers = {"folds": "folds", "repeats": "divisions into folds", "seeds": "trainings of each fold"}
    for option, what in numbers.items():
        parser.add_argument(f"--{option}", type=int, metavar="N", help=f"number of {what}, instead of the study's")
    _add_budget(parser)
    parser.add_argument(
        "--detect",
        type=float,
        metavar="POINTS",
        help="say how large the study must be to find such a difference, and train nothing",
    )
    parser.add_argument("--wide", action="store_true", help="all columns of the table side by side, however wide")
    add_jobs_arguments(parser)
    add_config_arguments(parser, file=False)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    help = "stop arms whose verdict is clear, and all when this is spent"
    parser.add_argument("--budget", type=float, metavar="MINUTES", help=help)


def run(args: argparse.Namespace) -> int:
    from convsmith.studies.config import read_study

    config = read_study(args.study)
    nursery.prepare(args.jobs, args.backend)
    from convsmith.studies.ablation import ablate
    from convsmith.studies.planning import plan
    from convsmith.study_display import StudyDisplay

    options: dict[str, Any] = {
        key: getattr(args, key) for key in ("folds", "repeats", "seeds", "jobs", "backend", "budget")
    }
    options["runs_dir"] = Path(args.runs_dir)
    with StudyDisplay() as shown:
        if args.detect is None:
            result = ablate(config, read_flags(args), name=args.name, listener=shown, **options)
        else:
            planned = plan(config, read_flags(args), detect=args.detect, listener=shown, **options)
    return show(result, shown.display, args.wide) if args.detect is None else show_plan(planned, shown.display, args)


def show_plan(plan: AblationPlan, display: Display, args: argparse.Namespace) -> int:
    """Print what a study needs and the command that runs it, and return the exit code."""
    from convsmith import stacked

    rows = plan.table()
    stacked.show(display, rows, list(rows[0]), words=("",), wide=args.wide)
    display.line()
    display.prose(plan.conclusion)
    if plan.needed is not None:
        sizes = [word for key, number in plan.options.items() for word in (f"--{key}", str(number))]
        display.next(command("ablate", args.study, *sizes, *_given(args), *setting_words(args)))
    return 0


def _given(args: argparse.Namespace) -> list[str]:
    """The flags besides those of the plan that differ from their default, for the command that runs the study."""
    others = argparse.ArgumentParser(add_help=False)
    add_run_arguments(others)
    add_jobs_arguments(others)
    _add_budget(others)
    typed = [(action.option_strings[0], getattr(args, action.dest), action.default) for action in others._actions]
    shown = [(flag, f"{value:g}" if isinstance(value, float) else value) for flag, value, was in typed if value != was]
    return [str(word) for pair in shown for word in pair]


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
