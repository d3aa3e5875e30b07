"""convsmith presets [NAME]."""

from __future__ import annotations

import argparse

from convsmith.config import presets
from convsmith.errors import choose

PLACE, LINE = 160, "list the presets, or show one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this preset's file")


def run(args: argparse.Namespace) -> int:
    known = presets()
    if args.name is not None:
        if args.name not in known:
            raise choose("preset", args.name, known)
        print(known[args.name], end="")
        return 0
    width = max(map(len, known))
    for name, text in known.items():
        print(f"{name:{width}}  {text.splitlines()[0].lstrip('# ')}")
    print("\nnext: convsmith presets NAME   or   convsmith train --preset NAME --data DATA")
    return 0
