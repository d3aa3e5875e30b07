"""convsmith explain RUN [PATH...] [--class NAME] [--stage NAME] [--figure NAME]."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convsmith.errors import UserError, choose, command

if TYPE_CHECKING:
    from convsmith.display import Display
    from convsmith.explain.context import Subject

PLACE, LINE = 70, "heat maps of what the net looked at, and pictures of how it works"

FIGURES = (
    "activations",
    "batch-norm",
    "confusion",
    "feature-maps",
    "gradients",
    "kernels",
    "landscape",
    "pooling",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory")
    parser.add_argument(
        "paths",
        nargs="*",
        default=[],
        metavar="PATH",
        help="files, folders, or patterns; none: telling validation images",
    )
    parser.add_argument("--class", dest="target", metavar="NAME", help="the class to explain [the predicted one]")
    parser.add_argument("--stage", metavar="NAME", help="where to look [the last stage with feature maps]")
    parser.add_argument("--figure", metavar="NAME", help=f"a picture of the net instead: {', '.join(FIGURES)}")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")


def run(args: argparse.Namespace) -> int:
    if args.figure is not None and args.figure not in FIGURES:
        raise choose("figure", args.figure, FIGURES)
    if args.figure is not None and args.target is not None:
        raise UserError("--class is for heat maps: leave it out, or leave --figure out")
    if args.figure is not None and len(args.paths) > 1:
        raise UserError(f"figure '{args.figure}' looks at one image: give one PATH at most")
    from convsmith.display import Display
    from convsmith.explain.context import open_subject

    display = Display()
    subject = open_subject(args.directory, args.device)
    return _figure(args, display, subject) if args.figure else _images(args, display, subject)


def _figure(args: argparse.Namespace, display: Display, subject: Subject) -> int:
    from convsmith.data.decode import DecodeError
    from convsmith.explain.network import FIGURES as PICTURES
    from convsmith.explain.network import Asked, draw
    from convsmith.explain.write import write_figure
    from convsmith.prediction.predictor import find_images

    image = find_images(args.paths)[0] if args.paths else None
    asked = Asked(image, args.stage, display.counting("computing the loss of"), display.line)
    try:
        figure = draw(subject, args.figure, asked)
    except DecodeError as error:
        raise UserError(f"cannot read '{image}': {error}") from None
    files = write_figure(subject, args.figure, figure, _command(args))
    display.line(PICTURES[args.figure].caption)
    display.line(f"written: {', '.join(map(str, files))}")
    after = FIGURES[(FIGURES.index(args.figure) + 1) % len(FIGURES)]
    display.line(f"next: {command('explain', args.directory)} --figure {after}")
    return 0


def _images(args: argparse.Namespace, display: Display, subject: Subject) -> int:
    from rich.table import Table
    from rich.text import Text

    from convsmith.explain import images
    from convsmith.explain.write import HEADINGS, reading, verdict, write_images
    from convsmith.prediction.predictor import find_images

    target = images.class_index(subject, args.target)
    stage = images.stage_of(subject, args.stage)
    broken: list[str] = []
    if args.paths:
        files = find_images(args.paths)
        if len(files) > images.MOST:
            display.line(f"note: the first {images.MOST} of {len(files)} images are explained")
        sound, failed = subject.predictor.readable(files[: images.MOST])
        broken = [f"{file}: {reason}" for file, reason in failed]
        if not sound:
            raise UserError(f"no image could be read: {'; '.join(broken[:10])}")
        cases = images.cases_of_files(subject, sound, target)
    else:
        cases = images.telling_cases(subject, target)
    explained = images.explain(subject, cases, stage, display.counting("explaining"))
    rows, written = write_images(subject, explained, stage, _command(args))
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    display.console.print(table)
    display.line(f"\n{reading(subject, stage)}")
    display.line(verdict(explained))
    display.line(f"\nwritten: {subject.folder}/: {written[0].name}, and a PNG for each image")
    display.line(f"next: {command('explain', args.directory)} --figure feature-maps")
    if broken:
        raise UserError(f"{len(broken)} files could not be read, the others were explained: {'; '.join(broken[:10])}")
    return 0


def _command(args: argparse.Namespace) -> str:
    parts = ["explain", args.directory, *args.paths]
    for flag, value in (("--class", args.target), ("--stage", args.stage), ("--figure", args.figure)):
        parts += [flag, value] if value is not None else []
    return command(*parts)
