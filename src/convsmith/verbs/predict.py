"""convsmith predict RUN PATH... [--out FILE.csv|FILE.json] [--csv-safe] [--top-k K]."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsmith.errors import UserError, command
from convsmith.verbs.flags import add_device_argument

PLACE, LINE = 60, "classify files, folders or patterns of files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory, or its model/ folder")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument("--out", metavar="FILE", help="write all predictions to a .csv or .json file")
    parser.add_argument(
        "--csv-safe", action="store_true", help="begin names that a spreadsheet would compute (=..., @...) with a '"
    )
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="classes shown for each image [3]")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    if args.top_k < 1:
        raise UserError(f"--top-k must be at least 1, but got {args.top_k}")
    out = Path(args.out) if args.out else None
    from convsmith.display import Display
    from convsmith.prediction.predictor import find_images, load_predictor, refuse_out, write_predictions

    refuse_out(out, args.csv_safe)
    files = find_images(args.paths)
    predictor = load_predictor(args.directory, args.device)
    rows, broken = predictor.predict_files(files)
    listed = "; ".join(f"{file}: {reason}" for file, reason in broken[:10])
    listed += f"; and {len(broken) - 10} more" if len(broken) > 10 else ""
    if not rows:
        raise UserError(f"none of {len(files)} files could be read: {listed}")
    if out:
        write_predictions(out, rows, args.csv_safe)
    display = Display()
    display.predicted(rows, args.top_k, out)
    if broken:
        raise UserError(f"{len(broken)} of {len(files)} files could not be read; the others were predicted: {listed}")
    if (Path(args.directory) / "config.yaml").exists():  # an exported file has no stages to explain
        display.line(f"next: {command('explain', args.directory, rows[0]['id'])}   (where the model looked)")
    return 0
