"""convsmith explain RUN [PATH...] [--class NAME] [--stage NAME] [--figure NAME]."""

from __future__ import annotations

import argparse

from convsmith.errors import UserError, command
from convsmith.explain.options import FIGURES
from convsmith.terminal import plural
from convsmith.verbs.flags import add_device_argument, add_reading_arguments, read_moved, setting_words

PLACE, LINE = 70, "heat maps of what the net looked at, and pictures of how it works"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory, or the folder of a model")
    parser.add_argument(
        "paths",
        nargs="*",
        default=[],
        metavar="PATH",
        help="files, folders or patterns; default: the most informative validation images",
    )
    parser.add_argument("--class", dest="target", metavar="NAME", help="the class to explain [the predicted one]")
    parser.add_argument(
        "--stage", metavar="NAME", help="the stage whose feature maps are used [the last one with maps]"
    )
    parser.add_argument("--figure", metavar="NAME", help=f"a picture of the net instead: {', '.join(FIGURES)}")
    add_reading_arguments(parser, "the run's data, where they have moved")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    from convsmith.display import Display
    from convsmith.explain.explanation import HEADINGS, cells, explain
    from convsmith.rundir import open_trained

    source = read_moved(args, open_trained(args.directory))
    options = (args.paths, args.target, args.stage, args.figure, args.device)
    with Display() as display:
        found = explain(args.directory, *options, source=source, listener=display, flags=setting_words(args))
    if args.figure is None:
        rows = [cells(row) for row in found.table]
        columns = {heading: [row[at] for row in rows] for at, heading in enumerate(HEADINGS)}
        display.table(columns, below=("deletion", "insertion", "file"))
        display.line()
    for paragraph in found.text:
        display.wrapped(paragraph, indent=0)
    if args.figure is None:
        display.line()
        display.written(f"{found.directory}/: {found.written[0].name}, and a PNG for each image")
    else:
        display.written(*found.written)
    names = list(FIGURES)
    after = names[(names.index(args.figure) + 1) % len(names)] if args.figure else "feature-maps"
    display.next(f"{command('explain', args.directory)} --figure {after}")
    if found.unreadable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.unreadable[:10])
        raise UserError(
            f"{plural(len(found.unreadable), 'file')} could not be read; the others were explained: {reasons}"
        )
    return 0
