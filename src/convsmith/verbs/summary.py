"""convsmith summary [CONFIG.yaml | --preset NAME | RUN]."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.errors import UserError, command
from convsmith.nets.config import ModelConfig
from convsmith.verbs.flags import add_config_arguments, read_config

PLACE, LINE = 80, "the network layer by layer: sizes, equations, parameters, multiply-adds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    given = Path(args.config) if args.config else None
    if given and given.is_dir():
        from convsmith.prediction.model_file import read_card
        from convsmith.rundir import open_run

        card = read_card(open_run(given, "model/model.json").model)
        if card.architecture is None:
            raise UserError(
                f"the network of run '{given}' is a module of your own: its layers are not known without it"
            )
        seen = card.preprocessing
        _show(card.architecture, seen.channels, seen.image_size, len(card.classes))
        print(f"next: {command('predict', given)} IMAGE...")
        return 0
    from convsmith.data.dataset import input_shape
    from convsmith.transfer import weights

    config, spec = weights.expected(read_config(args))
    _show(config.model, *input_shape(config.data, spec))
    print("next: convsmith train with the same arguments")
    return 0


def _show(model: ModelConfig, channels: int, size: int, classes: int) -> None:
    from convsmith.display import Display
    from convsmith.nets.build import build
    from convsmith.nets.shapes import trace

    rows = trace(build(model, channels, size, classes), channels, size)
    Display().layers(rows, f"{model.name} on {size} x {size} x {channels}, {classes} classes")
