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
    from rich.table import Table

    from convsmith.display import Display, cell

    display = Display()
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "kind", "state", "val", "test", "size", "changed"):
        table.add_column(heading, justify="right" if heading in ("val", "test", "size") else "left")
    for row in found:
        shares = ("" if row[name] is None else f"{row[name]:.1%}" for name in ("val_accuracy", "test_accuracy"))
        cells = (
            row["kind"],
            row["state"],
            *shares,
            f"{row['bytes'] / 1e6:,.1f} MB",
            f"{row['changed']:%Y-%m-%d %H:%M}",
        )
        table.add_row(cell(row["directory"].name), *map(cell, cells))
    display.console.print(table)
    stopped = next((row for row in found if row["state"] in ("stopped", "incomplete")), None)
    finished = [str(row["directory"]) for row in found if (row["kind"], row["state"]) == ("run", "finished")]
    if stopped is not None:
        step = command("resume", stopped["directory"])
    elif len(finished) > 1:
        step = command("compare", *finished[:2])
    else:
        return 0
    display.line()
    display.line(f"next: {step}")
    return 0
