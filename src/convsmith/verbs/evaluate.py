"""convsmith evaluate RUN [--split val|test | --data OTHER [--split train|val|test]]."""

from __future__ import annotations

import argparse

from convsmith.errors import command
from convsmith.verbs.flags import add_device_argument, add_reading_arguments, read_reading, setting_words

PLACE, LINE = 30, "accuracy, precision, recall, F1 and confusion matrix on the val or test split, or on other data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--split",
        choices=["train", "val", "test"],
        help="test: open the sealed split, which is recorded; with --data, a split of its own [val; all of --data]",
    )
    add_reading_arguments(parser, "other labelled images with the model's classes, or the run's where they have moved")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.prediction.evaluate import evaluate, evaluate_other
    from convsmith.rundir import open_single

    directory = open_single(args.directory, "splits.json", "model/model.json")
    data = read_reading(args)
    with Display() as display:
        if data is None:
            split = args.split or "val"
            typed = command("evaluate", args.directory, "--split", split)
            record = evaluate(directory, split, typed, device=args.device)
        else:
            split = args.split
            typed = command("evaluate", args.directory, *setting_words(args), *(["--split", split] if split else []))
            record = evaluate_other(directory, data, split, typed, device=args.device, listener=display)
    display.evaluated(directory, split, record)
    return 0
