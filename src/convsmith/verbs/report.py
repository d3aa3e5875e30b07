"""convsmith report RUN."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="the directory of a finished run")


def run(args: argparse.Namespace) -> int:
    from convsmith.report.write import write_report

    path = write_report(Path(args.directory))
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser, nothing in it needs a network")
    print(f"next: convsmith compare {args.directory} OTHER_RUN")
    return 0
