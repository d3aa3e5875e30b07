"""convsmith export RUN --format onnx|torch [--out FILE] [--preprocessing graph|metadata]."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.errors import command
from convsmith.verbs.flags import add_reading_arguments, read_moved

PLACE, LINE = 140, "write the model as an ONNX or torch.export file, checked against PyTorch on real images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory, or the folder of a model")
    parser.add_argument(
        "--format", choices=["onnx", "torch"], required=True, help="an ONNX file, or a torch.export archive"
    )
    parser.add_argument("--out", metavar="FILE", help="the file to write [RUN/export/model.onnx or model.pt2]")
    parser.add_argument(
        "--preprocessing",
        choices=["graph", "metadata"],
        default="graph",
        help="graph: the file takes uint8 pixels; metadata: it takes normalised floats, and describes how to make them",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="compare with PyTorch on these files, folders or patterns [validation images; random pixels for a model "
        "without its run]",
    )
    add_reading_arguments(parser, "the run's data, where they have moved")


def run(args: argparse.Namespace) -> int:
    from convsmith.rundir import open_trained

    directory = open_trained(args.directory, "model/model.json", "splits.json")
    from convsmith.display import Display
    from convsmith.export import OPSET, export

    source = read_moved(args, directory)
    out = Path(args.out) if args.out else None
    made = export(directory, args.format, out, args.preprocessing, source=source, images=args.images)
    display = Display()
    kind = f"ONNX opset {OPSET}" if args.format == "onnx" else "torch.export"
    display.labelled("written", f"{made.path}: {kind}, {made.path.stat().st_size / 1e6:.1f} MB, batches of any size")
    if made.script:
        display.labelled("", f"{made.script}: predicts with it, by NumPy, Pillow and onnxruntime alone")
    display.labelled("takes", made.takes)
    display.labelled(
        "checked",
        f"{made.compared}: the logits, up to {made.scale:.3g}, differ from PyTorch's by at most {made.difference:.1e}",
    )
    readable = made.path if args.format == "onnx" else args.directory  # predict opens no torch.export archive
    display.next(f"{command('predict', readable)} IMAGE")
    return 0
