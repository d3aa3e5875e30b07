"""convsmith compare RUN RUN... [--out FILE]."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.report.compare import Comparison
    from convsmith.studies.crossvals_compared import CrossvalComparison

PLACE, LINE = 50, "runs side by side: configs, curves, and McNemar's test on paired predictions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directories",
        nargs="+",
        metavar="RUN",
        help="finished runs, or cross-validations on the same folds; the first is the reference",
    )
    parser.add_argument("--out", metavar="FILE", help="the page to write [compare-<runs>.html beside the first run]")


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.report.compare import compare
    from convsmith.studies.crossvals_compared import are_crossvals, compare_crossvals

    directories, out = [Path(directory) for directory in args.directories], Path(args.out) if args.out else None
    display = Display()
    if are_crossvals(directories):
        _print_crossvals(compare_crossvals(directories, out), display)
        return 0
    comparison = compare(directories, out)
    _print(comparison, display)
    display.line()
    display.written(comparison.path)
    display.next("convsmith ablate STUDY.yaml   (compares techniques over folds, not two trained models)")
    return 0


def _print_crossvals(comparison: CrossvalComparison, display: Display) -> None:
    from convsmith import stacked
    from convsmith.records import METRICS

    rows = comparison.table()
    stacked.show(display, rows, ["metric", "difference", "95% interval", "verdict", "p"])
    display.line()
    for key, values in comparison.settings:
        display.wrapped(f"{key}: {', '.join(values)}", indent=0)
    for name, reasons in comparison.refused.items():
        for metric, reason in reasons.items():
            display.wrapped(f"not compared: {METRICS[metric].label} of '{name}': {reason}", indent=0)
    display.wrapped(
        "Differences are those to expect when nets are trained anew, on training sets of this size and with new seeds; "
        "in points, nats, or without a unit. p and intervals are corrected for the number of studies "
        "compared, but not for that of metrics: decide before by which to choose.",
        indent=0,
    )


def _print(comparison: Comparison, display: Display) -> None:
    from convsmith import stacked
    from convsmith.report.side_by_side import SETTINGS, side_by_side

    rows, alike = side_by_side(comparison.table, comparison.differences)
    headings = [name for name in rows[0] if name != SETTINGS]
    stacked.show(display, rows, headings[1:], under=(SETTINGS,))
    display.line()
    if alike:
        display.wrapped(f"The same in all: {', '.join(f'{name} {cell}' for name, cell in alike.items())}.", indent=0)
    if not comparison.differences:
        display.line("The configs are the same.")
    display.line()
    for one in comparison.versus:
        display.wrapped(one.words, indent=0)
