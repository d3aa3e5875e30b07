"""convsmith doctor."""

from __future__ import annotations

import argparse

from convsmith.terminal import say

PLACE, LINE = 170, "versions, devices, threads, cache and W&B of this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This verb takes no arguments."""


def run(args: argparse.Namespace) -> int:
    from convsmith.machine import description

    found = description()
    width = max(map(len, found))
    for name, value in found.items():
        say(f"{name:{width}}  {value}")
    return 0
