"""convsmith compare RUN RUN... [--out FILE]."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.report.compare import Comparison

PLACE, LINE = 50, "runs side by side: configs, curves, and McNemar's test on paired predictions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directories", nargs="+", metavar="RUN", help="finished runs; the first is the reference")
    parser.add_argument("--out", metavar="FILE", help="the page to write [compare-<runs>.html beside the first run]")


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.report.compare import compare

    comparison = compare([Path(directory) for directory in args.directories], Path(args.out) if args.out else None)
    display = Display()
    _print(comparison, display)
    display.line()
    display.written(comparison.path)
    display.next("convsmith ablate STUDY.yaml   (compares techniques over folds, not two trained models)")
    return 0


def _print(comparison: Comparison, display: Display) -> None:
    from rich.table import Column, Table

    from convsmith.display import cell, duration
    from convsmith.records import METRICS, shown

    rows = comparison.table
    table = Table("validation split", *(Column(cell(row["name"]), justify="right") for row in rows), box=None)
    for name, metric in METRICS.items():
        if any(name in row for row in rows):
            table.add_row(metric.label, *(shown(name, row[name]) if name in row else "-" for row in rows))
        if name == "accuracy":
            table.add_row("95% interval", *("{:.2%} to {:.2%}".format(*row["accuracy_ci95"]) for row in rows))
    table.add_row("parameters", *(f"{row['parameters']:,}" for row in rows))
    table.add_row("time", *(duration(row["seconds"]) for row in rows))
    display.console.print(table)
    if comparison.differences:
        keys = Table("config", *(Column(cell(row["name"]), overflow="fold") for row in rows), box=None)
        for key, values in comparison.differences:
            keys.add_row(cell(key), *map(cell, values))
        display.line()
        display.console.print(keys)
    else:
        display.line()
        display.line("The configs are the same.")
    display.line()
    for one in comparison.versus:
        display.wrapped(one.words, indent=0)
