"""convsmith summary [CONFIG.yaml | --preset NAME | RUN]."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.errors import command
from convsmith.verbs.flags import add_config_arguments, given_words, read_settings

PLACE, LINE = 80, "show the network layer by layer: sizes, equations, parameters, MACs"
EXAMPLES = {
    "convsmith summary --preset study-example": "the network of a preset",
    "convsmith summary runs/first": "the network of a run",
    "convsmith summary --model convnet --model.blocks '[{channels: 8}, {channels: 16}]'": "a network of your own",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    given = Path(args.config) if args.config else None
    is_run = given is not None and given.is_dir()
    settings = None if is_run else read_settings(args)
    from convsmith.display import Display
    from convsmith.modelsummary import of_config, of_run
    from convsmith.recipes import decide

    display = Display()
    found = of_config(decide(settings, listener=display)) if settings else of_run(Path(args.config))
    display.layers(found.layers, found.title)
    step = f"{command('predict', given)} IMAGE..." if is_run else command("train", *given_words(args))
    display.next(step)
    return 0
