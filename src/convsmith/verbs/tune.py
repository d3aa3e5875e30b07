"""convsmith tune STUDY.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.errors import command
from convsmith.studies import nursery
from convsmith.verbs.flags import add_config_arguments, add_jobs_arguments, add_run_arguments, read_flags

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.studies.tuning import TuningResult

SHOWN = 5  # trials in the table at the end
ENDED = ("complete", "pruned", "failed")
PLACE, LINE = 110, "search for the best values of any keys with Optuna, resumably and without the test split"
EXAMPLES = {
    "convsmith tune study.yaml --data photos/ --trials 30 --jobs 2": "thirty trials, two at a time",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY.yaml", help="a study file, or the name of a shipped one")
    add_run_arguments(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="total number of trials, instead of the study's")
    add_jobs_arguments(parser)
    add_config_arguments(parser, file=False)


def run(args: argparse.Namespace) -> int:
    from convsmith.studies.tune_config import read_tuning

    config = read_tuning(args.study)
    nursery.prepare(args.jobs, args.backend)
    from convsmith.studies.tuning import tune
    from convsmith.study_display import StudyDisplay

    with StudyDisplay() as shown:
        result = tune(
            config,
            read_flags(args),
            trials=args.trials,
            jobs=args.jobs,
            backend=args.backend,
            name=args.name,
            runs_dir=Path(args.runs_dir),
            listener=shown,
        )
    return show(result, shown.display)


def show(result: TuningResult, display: Display) -> int:
    """Print the results of the trials, and return the exit code."""
    _results(result, display)
    if result.missing:
        wanted = result.missing + sum(trial["state"] in ENDED for trial in result.trials)
        display.line(f"not done: {result.missing} of {wanted} trials ({result.failed})")
        display.next(command("resume", result.directory))
    return 0 if result.best and not result.missing else 1


def _results(result: TuningResult, display: Display) -> None:
    from convsmith import stacked
    from convsmith.display import duration
    from convsmith.rundir import RunDir
    from convsmith.studies.tuning import TRIALS
    from convsmith.study_display import word

    path, metric, ranked = result.directory, result.metric, result.ranked
    best = RunDir(path).best
    states = [trial["state"] for trial in result.trials]
    counted = [f"{states.count(state)} {state}" for state in dict.fromkeys(("complete", *states)) if state in states]
    display.line()
    display.line(f"trials: {', '.join(counted) or 'none'}")
    if not ranked:
        display.line()
        display.written(path / TRIALS, "trials/")
        return
    rows = [
        {
            "trial": str(trial["number"]),
            metric: f"{trial['value']:.4f}",
            "epochs": str(trial["epochs"]),
            "time": duration(trial["seconds"]),
            **{key: word(trial["values"][key]) for key in result.keys},
        }
        for trial in ranked[:SHOWN]
    ]
    stacked.show(display, rows, [metric, *result.keys, "epochs", "time"])
    display.line()
    if result.importances:
        shares = "  ".join(f"{key} {share:.0%}" for key, share in result.importances.items())
        display.line(f"importance  {shares}   (share of the variance, fANOVA)")
    else:
        display.line(f"importance  not estimated: {result.unexplained}")
    display.line()
    display.prose(
        f"The best {metric} of {len(ranked)} trials is optimistic: the trial was chosen by it, on the same images "
        "that it was measured on.\nFor an unbiased score, cross-validate best.yaml, or train it and evaluate once on "
        "the test split, which no trial has seen."
    )
    figures = ["figures/history.png", *(["figures/importance.png"] if result.importances else [])]
    display.line()
    display.written(best, TRIALS, *figures, "trials/")
    display.next(command("report", path), command("crossval", best), command("train", best))
