"""convsmith resume RUN."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory")


def run(args: argparse.Namespace) -> int:
    from convsmith.rundir import open_run

    directory = open_run(args.directory, "checkpoints")
    if directory.summary.exists():
        print(f"{directory.path} is finished: there is nothing to resume.")
        print(f"next: convsmith evaluate {directory.path} --split test")
        return 0
    from convsmith import parts
    from convsmith.display import Display

    with directory.lock():
        return Display().follow(parts.resume(directory))
