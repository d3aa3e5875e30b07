"""convsmith train."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.verbs.flags import add_config_arguments, add_run_arguments, print_config, read_settings

PLACE, LINE = 10, "train a classifier on a data set, into a new run directory"
EXAMPLES = {
    "convsmith train": "handwritten digits; nothing is downloaded",
    "convsmith train --data photos/": "a folder with one subfolder of images per class",
    "convsmith train --data photos/ --preset strong --epochs 30 --name first": "from a preset, with settings of yours",
    "convsmith train --data photos/ --model timm/resnet18 --preset finetune": "a pretrained network",
    "convsmith train runs/first/config.yaml --seed 1": "an earlier run again, with another seed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--resume", action="store_true", help="with --name: go on with that run if it exists, and else begin it"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    settings = read_settings(args)
    if args.print_config:
        return print_config(settings)
    from convsmith.display import Display
    from convsmith.recipes import decide
    from convsmith.run import train

    with Display() as display:
        train(
            decide(settings, listener=display),
            name=args.name,
            runs_dir=Path(args.runs_dir),
            listener=display,
            resume_named=args.resume,
        )
    return 0
