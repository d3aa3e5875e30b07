"""convsmith data check SOURCE [--out FILE.json]."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from convsmith.config import validate
from convsmith.errors import UserError, command

PLACE, LINE = 130, "check a data set: broken files, duplicates, class counts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], help="look at every file; nothing is changed")
    parser.add_argument("source", metavar="SOURCE", help="a data set's name, a folder of images or Parquet")
    parser.add_argument("--out", metavar="FILE", help="write the whole finding, a verdict a file, to a .json file")


def run(args: argparse.Namespace) -> int:
    out = Path(args.out) if args.out else None
    if out and out.suffix != ".json":
        raise UserError(f"--out '{out}' must end in .json")
    from convsmith.data.audit import check, summary_lines
    from convsmith.display import Display
    from convsmith.files import explain_os_errors, write_text

    display = Display()
    audit = check(validate({"data": {"source": args.source}}).data, display.counting("looking at"))
    for line in summary_lines(audit):
        display.line(line)
    if out:
        with explain_os_errors(f"'{out}'"):
            write_text(out, json.dumps(audit.to_json(), indent=2, ensure_ascii=False) + "\n")
        display.line(f"written: {out}")
    steps = [] if out else [f"{command('data', 'check', args.source)} --out FILE.json   (a verdict a file)"]
    steps.append(command("train", "--data", args.source))
    for number, step in enumerate(steps):
        display.line(f"{'' if number else 'next:':6}{step}")
    return 0
