"""convsmith models [PATTERN]."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from convsmith.errors import command

PLACE, LINE = 158, "list networks with pretrained weights: size, cost, and whether the weights are on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="a part of the names, or a pattern such as 'timm/resnet*'; without it, those on this machine and those "
        "that train prefers",
    )
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="describe at most this many [20]")


def run(args: argparse.Namespace) -> int:
    from rich.table import Table

    from convsmith.display import Display, cell
    from convsmith.events import counter, nobody
    from convsmith.zoo import described, matching

    names = matching(args.pattern)
    with Display.of_errors() as waiting:
        progress = counter(waiting if waiting.live else nobody, "networks")
        found = described(names[: max(args.limit, 1)], progress)
    display = Display()
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "M par.", "G MACs", "input", "weights", "img/s"):
        table.add_column(heading, justify="left" if heading in ("model", "weights") else "right", overflow="fold")
    for row in found:
        cells = (
            "" if row["parameters"] is None else f"{row['parameters'] / 1e6:,.1f}",
            "" if row["macs"] is None else f"{row['macs'] / 1e9:,.2f}",
            str(row["image_size"] or ""),
            "here" if row["weights"] else "",
            "" if row["images_per_second"] is None else f"{row['images_per_second']:,.0f}",
        )
        table.add_row(cell(row["model"]), *cells)
    display.console.print(table)
    display.line()
    if (more := len(names) - len(found)) > 0:
        display.line(f"{more:,} more match: narrow the pattern, or give --limit {len(found) + more}")
    display.wrapped(
        "par.: parameters with the library's head; input: the image size of the weights; weights: here, if they are on "
        "this machine; img/s: of a training step here, where one was measured",
        indent=0,
    )
    first = next((row for row in found if row["weights"]), None) or min(found, key=_size)
    display.next(f"{command('train', '--model', first['model'], '--data')} DATA")
    return 0


def _size(row: Mapping[str, Any]) -> float:
    """The parameters, for the smallest network; one of unknown size is none that we would advise."""
    return math.inf if row["parameters"] is None else row["parameters"]
