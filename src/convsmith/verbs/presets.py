"""convsmith presets [NAME]."""

from __future__ import annotations

import argparse

from convsmith.config import presets
from convsmith.terminal import say, say_lines

PLACE, LINE = 160, "list the presets, or show one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this preset's file")


def run(args: argparse.Namespace) -> int:
    known = presets(args.name)
    if args.name is not None:
        say_lines(known[args.name])
        return 0
    width = max(map(len, known))
    for name, text in known.items():
        say(f"{name:{width}}  {text.splitlines()[0].lstrip('# ')}", indent=width + 2)
    say()
    say("next: convsmith presets NAME   or   convsmith train --preset NAME --data DATA")
    return 0
