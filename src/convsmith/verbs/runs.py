"""convsmith runs [DIR]."""

from __future__ import annotations

import argparse

from convsmith.errors import command
from convsmith.terminal import say

PLACE, LINE = 155, "list the runs and studies in a folder, with their accuracies, sizes and states"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="folder of the run directories [runs]")


def run(args: argparse.Namespace) -> int:
    import convsmith

    found = convsmith.runs(args.folder)
    if not found:
        say(f"there are no runs in '{args.folder}'")
        say(f"next: {command('train')}")
        return 0
    from convsmith.display import Display

    display = Display()
    shares = {
        name: ["" if row[key] is None else f"{row[key]:.1%}" for row in found]
        for name, key in (("val", "val_accuracy"), ("test", "test_accuracy"))
    }
    columns = {
        "run": [row["directory"].name for row in found],
        "kind": [row["kind"] for row in found],
        "state": [row["state"] for row in found],
        **shares,
        "size": [f"{row['bytes'] / 1e6:,.1f} MB" for row in found],
        "changed": [f"{row['changed']:%Y-%m-%d %H:%M}" for row in found],
    }
    display.table(columns, below=("kind", "size", "changed"))
    stopped = next((row for row in found if row["state"] in ("stopped", "incomplete")), None)
    finished = [
        str(row["directory"])
        for row in found
        if (row["kind"], row["state"]) == ("run", "finished") and row["val_accuracy"] is not None
    ]
    if stopped is not None:
        step = command("resume", stopped["directory"])
    elif len(finished) > 1:
        step = command("compare", *finished[:2])
    else:
        return 0
    display.line()
    display.next(step)
    return 0
