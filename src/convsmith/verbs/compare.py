"""convsmith compare RUN RUN... [--out FILE]."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.report.compare import Compared

PLACE, LINE = 50, "runs side by side: configs, curves, and McNemar's test on paired predictions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directories", nargs="+", metavar="RUN", help="finished runs; the first is the reference")
    parser.add_argument("--out", metavar="FILE", help="the page to write [compare-<runs>.html beside the first run]")


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.report.compare import compare, default_path, write_page

    paths = [Path(directory) for directory in args.directories]
    compared = compare(paths)
    out = Path(args.out) if args.out else default_path(paths)
    write_page(compared, out)
    _print(compared, Display())
    print(f"\nwritten: {out}")
    print("next: convsmith ablate STUDY.yaml   (compares techniques over folds, not two trained models)")
    return 0


def _print(compared: Compared, display: Display) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from convsmith.display import duration
    from convsmith.records import METRICS
    from convsmith.report.compare import results

    rows = results(compared)
    table = Table("val split", *(escape(row["name"]) for row in rows), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, metric in METRICS.items():
        table.add_row(metric.label, *(row["shown"][name] for row in rows))
        if name == "accuracy":
            table.add_row("95% interval", *("{:.2%} to {:.2%}".format(*row["interval"]) for row in rows))
    table.add_row("parameters", *(f"{row['parameters']:,}" for row in rows))
    table.add_row("time", *(duration(row["seconds"]) for row in rows))
    display.console.print(table)
    if compared.differences:
        keys = Table("differs", *(escape(name) for name in compared.runs), box=None)
        for key, values in compared.differences:
            keys.add_row(Text(key), *map(Text, values))
        display.line("")
        display.console.print(keys)
    else:
        display.line("\ntheir configs are the same")
    display.line("")
    first = next(iter(compared.runs))
    for one in compared.versus:
        display.line(one.words(first))
