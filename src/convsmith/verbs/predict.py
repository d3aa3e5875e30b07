"""convsmith predict RUN PATH... [--out FILE.csv|FILE.json] [--top-k K] [--threshold T] [--features FILE]."""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from pathlib import Path

from convsmith.errors import Stopped, UserError, command
from convsmith.terminal import say
from convsmith.verbs.flags import add_device_argument

PLACE, LINE = 60, "classify files, folders or patterns of files"

SHOWN = 20  # rows on the screen when all of them go to a file
NAMED = 10  # files that cannot be read, in the error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="RUN", help="a run directory, or its model/ folder")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument(
        "--out", metavar="FILE", help="write all predictions to a .csv or .json file; given again, it goes on"
    )
    parser.add_argument(
        "--csv-safe", action="store_true", help="begin names that a spreadsheet would compute (=..., @...) with a '"
    )
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="classes shown for each image [3]")
    parser.add_argument(
        "--threshold", type=float, metavar="T", help="answer 'unsure' where the calibrated confidence is below T"
    )
    parser.add_argument("--features", metavar="FILE", help="write the embeddings to a .npz or .parquet file")
    parser.add_argument("--quiet", action="store_true", help="show neither rows nor progress")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    if args.top_k < 1:
        raise UserError(f"--top-k must be at least 1, but got {args.top_k}")
    out, features = (Path(path) if path else None for path in (args.out, args.features))
    from convsmith.data.source import readable
    from convsmith.display import Display
    from convsmith.events import Counted, Note
    from convsmith.prediction.embeddings import refuse_features
    from convsmith.prediction.inputs import find_images
    from convsmith.prediction.output import ERROR, Row, refuse_out
    from convsmith.prediction.predicting import predict_all
    from convsmith.prediction.predictor import load_predictor

    refuse_out(out, args.csv_safe)
    refuse_features(features)
    files = find_images(args.paths)
    ids = [readable(str(file)) for file in files]
    predictor = load_predictor(args.directory, args.device)
    display, bar = Display(), Display.of_errors()
    has_rows = out is None and not args.quiet  # on the screen, as they come
    has_bar = bar.live and not args.quiet and not (has_rows and display.live)
    table = display.predictions(ids, predictor.classes, args.top_k)

    def listener(event: object) -> None:
        if isinstance(event, Counted) and has_bar:
            bar.counted(event)
        if isinstance(event, Note) and not args.quiet:
            say(f"note: {event.text}", error=True)

    counts: Counter[str | None] = Counter()
    first: list[Row] = []
    broken: list[str] = []
    try:
        with bar:
            for rows in predict_all(predictor, ids, files, out, args.csv_safe, args.threshold, features, listener):
                if has_rows:
                    table.show(rows)
                first += rows[: SHOWN - len(first)]
                broken += [f"{row['id']}: {row[ERROR]}" for row in rows if row[ERROR]][: NAMED - len(broken)]
                counts.update(row["predicted"] for row in rows)
    except KeyboardInterrupt:
        if out is None:
            raise
        raise Stopped(
            signal.SIGINT, f"stopped after {sum(counts.values()):,} of {len(files):,} images; the same command goes on"
        ) from None
    if not args.quiet:
        if out is not None:
            table.show(first)
            table.counts(counts)
        if made := [path for path in (out, features) if path]:
            display.written(*made)
    if failed := counts[None]:
        listed = "; ".join(broken) + (f"; and {failed - len(broken)} more" if failed > len(broken) else "")
        if failed == len(files):
            raise UserError(f"none of {len(files)} files could be read: {listed}")
        raise UserError(f"{failed} of {len(files)} files could not be read; the others were predicted: {listed}")
    if (Path(args.directory) / "config.yaml").exists() and not args.quiet:  # an exported file has no stages to explain
        display.next(f"{command('explain', args.directory, ids[0])}   (where the model looked)")
    return 0
