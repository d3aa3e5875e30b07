"""convsmith data check SOURCE [--out FILE.json]."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.config import validate
from convsmith.data.config import LABELLING
from convsmith.errors import command, nearest
from convsmith.verbs.flags import add_reading_arguments, read_flags, setting_words

PLACE, LINE = 130, "check a data set: broken files, duplicates, class counts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", type=_action, choices=["check"], help="check every file; nothing is changed")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="+",
        help="a data set's name, a folder or an archive of images, or Parquet; several are joined",
    )
    add_reading_arguments(parser, keys=LABELLING)
    parser.add_argument(
        "--range",
        default="full",
        help="data.range of samples of more than 8 bits: full, auto or '[low, high]' [full]",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="write all results, with a verdict for each file, to a .json file"
    )


def _action(word: str) -> str:
    """The action; a word that is not even similar may be the data, and the error says how to check them."""
    if word != "check" and not nearest(word, ["check"]):
        raise argparse.ArgumentTypeError(
            f"'{word}' is not check; for data of that name: {command('data', 'check', word)}"
        )
    return word


def run(args: argparse.Namespace) -> int:
    labelling = read_flags(args).get("data", {})
    config = validate({"data": {"source": args.source, "range": args.range, **labelling}}).data
    from convsmith.data.audit import check_data, summary_lines
    from convsmith.display import Display

    display = Display()
    out = Path(args.out) if args.out else None
    audit = check_data(config, out=out, listener=display)
    for line in summary_lines(audit):
        display.line(line)
    if out:
        display.written(out)
    typed = setting_words(args)
    steps = (
        [] if out else [f"{command('data', 'check', *args.source, *typed)} --out FILE.json   (a verdict for each file)"]
    )
    sources = [word for source in args.source for word in ("--data", source)]
    flags = [*typed, *(["--data.range", args.range] if args.range != "full" else [])]
    if audit.is_broken:
        flags += ["--data.on_error", "skip"]
    steps.append(command("train", *sources, *flags))
    display.next(*steps)
    return 0
