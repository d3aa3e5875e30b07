"""convsmith models [PATTERN]."""

from __future__ import annotations

import argparse

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

    import convsmith
    from convsmith.display import Display, cell
    from convsmith.zoo import matching

    found = convsmith.models(args.pattern, args.limit)
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
    if (more := len(matching(args.pattern)) - len(found)) > 0:
        display.line(f"{more:,} more match: narrow the pattern, or give --limit {len(found) + more}")
    display.wrapped(
        "par.: parameters with the library's head; input: the image size of the weights; weights: here, if they are on "
        "this machine; img/s: of a training step here, where one was measured",
        indent=0,
    )
    display.line(f"next: {command('train', '--model', found[0]['model'], '--data')} DATA")
    return 0
