"""convsmith evaluate RUN [--split val|test]."""

from __future__ import annotations

import argparse

from convsmith.errors import command
from convsmith.verbs.flags import add_device_argument

PLACE, LINE = 30, "accuracy, precision, recall, F1 and confusion matrix on the val or test split"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--split", choices=["val", "test"], default="val", help="test: open the sealed split, which is recorded [val]"
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.prediction.evaluate import evaluate
    from convsmith.rundir import open_single

    directory = open_single(args.directory, "splits.json", "model/model.json")
    typed = command("evaluate", args.directory, "--split", args.split)
    record = evaluate(directory, args.split, typed, device=args.device)
    Display().evaluated(directory, args.split, record)
    return 0
