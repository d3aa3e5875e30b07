"""convsmith resume RUN."""

from __future__ import annotations

import argparse
import importlib

from convsmith.verbs.flags import add_jobs_arguments, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="the directory of a run or of a study")
    add_jobs_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from convsmith.rundir import open_run

    directory = open_run(args.directory)
    if directory.study.exists():
        at_least(1, "--jobs", args.jobs)
        from convsmith.display import Display
        from convsmith.evidence import study

        module = importlib.import_module(f"convsmith.evidence.{study.KINDS[study.read_asked(directory)['kind']]}")
        code: int = module.go_on(directory, args.jobs, args.backend, Display())
        return code
    if directory.summary.exists():
        print(f"{directory.path} is finished: there is nothing to resume.")
        print(f"next: convsmith evaluate {directory.path} --split test")
        return 0
    if directory.lr_find.exists():
        print(f"{directory.path} is a learning-rate range test: there is nothing to resume.")
        return 0
    open_run(args.directory, "checkpoints")
    from convsmith import parts
    from convsmith.display import Display

    display = Display()
    with directory.lock():
        code = display.follow(parts.resume(directory))
        if code == 0:
            from convsmith.report.write import after_training

            after_training(directory, display.line)
        return code
