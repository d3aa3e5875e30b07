"""convsmith resume RUN."""

from __future__ import annotations

import argparse

from convsmith.errors import UserError, command
from convsmith.launch import place
from convsmith.studies import nursery
from convsmith.terminal import say
from convsmith.verbs.flags import add_jobs_arguments

PLACE, LINE = 20, "resume a run or a study that was stopped or killed, with exactly the same result"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="the directory of a run or of a study")
    add_jobs_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from convsmith import records
    from convsmith.config import read_run_config
    from convsmith.rundir import kind_of, next_steps, open_run

    directory = open_run(args.directory)
    if directory.study.exists():
        if place().size > 1:
            raise UserError("a study goes on in one process: start it without torchrun (--jobs trains several at once)")
        nursery.prepare(args.jobs, args.backend)
        from convsmith.studies import resuming
        from convsmith.study_display import StudyDisplay
        from convsmith.verbs import ablate, auto, crossval, tune

        show = {"crossval": crossval.show, "ablate": ablate.show, "tune": tune.show, "auto": auto.show}
        kind = kind_of(directory)  # a race ends as a run
        with StudyDisplay() as shown:
            result = resuming.resume(directory.path, jobs=args.jobs, backend=args.backend, listener=shown)
        code: int = show[kind](result, shown.display)  # type: ignore[operator]
        return code
    if directory.summary.exists():
        say(f"{directory.path} is finished: there is nothing to resume.")
        config, splits = read_run_config(directory.config), records.read(directory.splits, records.Splits)["splits"]
        label, steps = next_steps(directory, config.is_own, bool(splits.get("test")))
        if splits.get("val") and not (directory.path / "report.html").exists():  # writing it was interrupted
            steps.append(command("report", directory.path))
        for number, step in enumerate(steps):
            say(f"{'' if number else label:{len(label)}} {step}")
        return 0
    if directory.lr_find.exists():
        say(f"{directory.path} is a learning-rate range test: there is nothing to resume.")
        return 0
    if not directory.checkpoints.is_dir():
        raise UserError(f"run '{directory.path}' has no checkpoints to resume from: restore them, or train again")
    from convsmith.display import Display
    from convsmith.run import resume

    with Display() as display:
        resume(directory, listener=display)
    return 0
