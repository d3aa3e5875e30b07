"""convsmith summary [CONFIG.yaml | --preset NAME | RUN]."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.verbs.flags import add_config_arguments, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    given = Path(args.config) if args.config else None
    if given and given.is_dir():
        from convsmith.rundir import open_run

        args.config = str(open_run(given).config)
    config = read_config(args)

    from convsmith import weights
    from convsmith.data.dataset import input_shape
    from convsmith.display import Display
    from convsmith.nets.build import build
    from convsmith.nets.shapes import trace

    config, spec = weights.expected(config)
    channels, size, classes = input_shape(config.data, spec)
    rows = trace(build(config.model, channels, size, classes), channels, size)
    Display().layers(rows, f"{config.model.name} on {size} x {size} x {channels}, {classes} classes")
    return 0
