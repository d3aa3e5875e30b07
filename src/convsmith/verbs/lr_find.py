"""convsmith lr-find [as train] [--low RATE] [--high RATE] [--steps N]."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.errors import command
from convsmith.verbs.flags import add_config_arguments, add_run_arguments, given_words, read_settings

if TYPE_CHECKING:
    from convsmith.studies.lr_find import Sweep

PLACE, LINE = 120, "learning-rate range test: the curve of the loss, and a suggested learning rate"
EXAMPLES = {
    "convsmith lr-find --data photos/ --model small-resnet": "a learning rate for this network and these images",
}

DEFAULTS = {"low": 1e-6, "high": 10.0, "steps": 100}
WIDTH, HEIGHT = 64, 12  # characters of the curve
#: bits of a braille character (U+2800 + bits) by column and row of its dots
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--low", type=float, metavar="RATE", help="first learning rate [1e-06]")
    parser.add_argument("--high", type=float, metavar="RATE", help="last learning rate [10]")
    parser.add_argument("--steps", type=int, metavar="N", help="number of batches, each with a higher rate [100]")
    parser.set_defaults(**DEFAULTS)
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    settings = read_settings(args)
    from convsmith.recipes import decide
    from convsmith.studies.lr_find import lr_find
    from convsmith.study_display import StudyDisplay

    with StudyDisplay() as shown:
        result = lr_find(
            decide(settings, listener=shown),
            low=args.low,
            high=args.high,
            steps=args.steps,
            name=args.name,
            runs_dir=Path(args.runs_dir),
            listener=shown,
        )
    display, advice = shown.display, result.advice
    plain = bool(display.console.options.ascii_only)
    curve = [(point.learning_rate, point.smoothed) for point in result.points]
    for line in curve_lines(curve, advice.rate, plain):
        display.line(line)
    display.line()
    display.labelled("ended", result.ended)
    display.labelled("lr", "no suggestion" if advice.rate is None else f"{advice.rate:.2g} is suggested")
    display.labelled("because", advice.reason)
    display.labelled("config", f"has lr {result.lr:g}, which stays as it is")
    display.labelled("written", f"{result.directory}/: lr_find.csv, figures/lr_find.svg, figures/lr_find.png")
    if advice.rate is not None:
        display.next(f"{_again('train', args)} --lr {advice.rate:.2g}")
    elif advice.again is not None:
        display.next(_again("lr-find", args, advice.again))
    return 0


def _again(verb: str, args: argparse.Namespace, sweep: Sweep | None = None) -> str:
    """`convsmith verb` with the flags that the user gave, but neither name nor learning rate."""
    words = [verb, *given_words(args, leave_out=["optim.lr"])]
    given = {"runs-dir": args.runs_dir} if args.runs_dir != "runs" else {}
    if sweep:
        given |= {key: f"{value:.10g}" for key, value in asdict(sweep).items() if value != DEFAULTS[key]}
    for name, value in given.items():
        words += [f"--{name}", value]
    return command(*words)


def curve_lines(curve: Sequence[tuple[float, float]], mark: float | None, plain: bool) -> list[str]:
    """A curve of (rate, loss), rates on a logarithmic axis, as lines of braille characters, or of ASCII if `plain`.

    Losses above 1.5 times the first lie on the upper edge. An arrow below the axis points at `mark`. The curve has at
    least two points.
    """
    across, down = (1, 1) if plain else (2, 4)
    (low, _), (high, _) = curve[0], curve[-1]
    highest = max(loss for _, loss in curve)
    bottom, top = min(loss for _, loss in curve), min(highest, 1.5 * curve[0][1])

    def column(rate: float) -> float:
        return math.log(rate / low) / math.log(high / low) * (WIDTH * across - 1)

    dots = [
        (column(rate), (top - min(loss, top)) / ((top - bottom) or 1) * (HEIGHT * down - 1)) for rate, loss in curve
    ]
    cells = [[0] * WIDTH for _ in range(HEIGHT)]
    for (x0, y0), (x1, y1) in itertools.pairwise(dots):
        pieces = math.ceil(max(x1 - x0, abs(y1 - y0)))
        for piece in range(pieces + 1):
            share = piece / pieces
            x, y = round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0))
            cells[y // down][x // across] |= BRAILLE[x % across][y % down]
    lines = []
    for number, row in enumerate(cells):
        label = {0: f"{'>' if highest > top else ''}{top:.3g}", HEIGHT - 1: f"{bottom:.3g}"}.get(number, "")
        drawn = "".join(("*" if plain else chr(0x2800 + bits)) if bits else " " for bits in row)
        lines.append(f"{label:>8} |{drawn}".rstrip())
    lines.append(f"{'loss':>8} +{'-' * WIDTH}")
    if mark is not None:
        lines.append(f"{'':10}{' ' * (round(column(mark)) // across)}^ {mark:.2g}")
    return [*lines, f"{'':10}{f'{low:.2g}':9}{'learning rate':^{WIDTH - 18}}{f'{high:.2g}':>9}"]
