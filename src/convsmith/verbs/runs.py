"""convsmith runs [DIR]."""

from __future__ import annotations

import argparse

from convsmith.errors import command

PLACE, LINE = 155, "list the runs and studies in a folder, with their accuracies, sizes and states"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="folder of the run directories [runs]")


def run(args: argparse.Namespace) -> int:
    import convsmith

    found = convsmith.runs(args.folder)
    if not found:
        print(f"there are no runs in '{args.folder}'\nnext: {command('train')}")
        return 0
    from rich.table import Table
    from rich.text import Text

    from convsmith.display import Display

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
        table.add_row(Text(row["directory"].name), *map(Text, cells))
    display.console.print(table)
    stopped = next((row for row in found if row["state"] in ("stopped", "incomplete")), None)
    finished = [str(row["directory"]) for row in found if (row["kind"], row["state"]) == ("run", "finished")]
    if stopped is not None:
        print(f"\nnext: {command('resume', stopped['directory'])}")
    elif len(finished) > 1:
        print(f"\nnext: {command('compare', *finished[:2])}")
    return 0
