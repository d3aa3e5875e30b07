"""Predicts many images, writing rows and embeddings as they come. Shows nothing; events go to a listener."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from convsmith.events import Counted, Listener, Note, nobody
from convsmith.prediction.embeddings import embeddings_file, refuse_features
from convsmith.prediction.output import PredictionFile, Row, columns_of, key_of, refuse_out
from convsmith.prediction.predictor import Predictor
from convsmith.prediction.threshold import threshold_of

SOME = 1000  # rows of an earlier process that are handed on at a time


def predict_all(
    predictor: Predictor,
    ids: Sequence[str],
    images: Sequence[Any],
    out: Path | None = None,
    csv_safe: bool = False,
    threshold: float | None = None,
    features: Path | None = None,
    listener: Listener = nobody,
) -> Iterator[list[Row]]:
    """Yield the rows of all images, in lists, in order, after they have been written.

    Rows are as in `output.columns_of`; that of an image that cannot be read has its reason under `error` and nothing
    else. Where an earlier process was killed while it wrote the same `out` with the same model and options, in the same
    folder, its rows come first, and only the other images are predicted; not so with `features`, or if one of its
    images has changed or is not among `ids`, or if the images are no files.
    """
    refuse_out(out, csv_safe)
    refuse_features(features)
    bound = None if threshold is None else threshold_of(threshold, predictor.classes, predictor.folder)
    if bound is not None and bound.note:
        listener(Note(bound.note))
    waiting, done = list(range(len(ids))), 0
    with ExitStack() as stack:
        table = None
        if out is not None:
            key = key_of(predictor.files, (os.getcwd(), bound))
            table = PredictionFile(out, key, columns_of(predictor.classes, bound is not None), csv_safe)
            stack.enter_context(table)
            if table.done and (reason := _why_anew(table, ids, images, features)):
                listener(Note(f"all images are predicted anew, although '{table.partial}' has some rows: {reason}"))
                table.start_anew()
            elif table.done:
                done = sum(table.done.values())
                listener(Note(f"going on after the {done:,} rows of '{table.partial}'"))
                waiting = _not_in(table.done, ids)
                earlier = table.rows()
                while some := list(islice(earlier, SOME)):
                    yield some
        vectors = None if features is None else stack.enter_context(embeddings_file(features, ids))
        remaining = predictor.answers(
            [ids[at] for at in waiting], [images[at] for at in waiting], bound, bool(features)
        )
        for batch in remaining:
            if table is not None:
                table.add(batch.rows)
            if vectors is not None:
                vectors.add(len(batch.rows), batch.features)
            done += len(batch.rows)
            listener(Counted("predicting", done, len(ids)))
            yield batch.rows
        if table is not None:
            table.finish()


def _not_in(done: Counter[str], ids: Sequence[str]) -> list[int]:
    """The positions of the ids beyond those that are `done`."""
    left = done.copy()
    waiting = []
    for at, name in enumerate(ids):
        if left[name] > 0:
            left[name] -= 1
        else:
            waiting.append(at)
    return waiting


def _why_anew(table: PredictionFile, ids: Sequence[str], images: Sequence[Any], features: Path | None) -> str | None:
    """Why the rows of an earlier process cannot stand; None if they can."""
    if features is not None:
        return "--features needs each of them"
    if not all(isinstance(image, str | Path) for image in images):
        return "images that are no files cannot be compared with those"
    if gone := table.done - Counter(ids):
        return f"'{next(iter(gone))}' is not among the images any more"
    when = table.changed
    for name, image in zip(ids, images, strict=True):
        if name in table.done:
            with suppress(OSError):  # it could not be read then, or cannot now, which its row says
                status = os.stat(image)
                if max(status.st_mtime, status.st_ctime) > when:
                    return f"'{name}' has changed since"
    for folder in {above for image in images for above in Path(image).parents}:
        with suppress(OSError):
            status = os.stat(folder)
            if status.st_ctime > when >= status.st_mtime:  # it was renamed, and its files know nothing of it
                return f"another folder may be at '{folder}' since"
    return None
