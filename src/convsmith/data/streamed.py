"""Images that are decoded anew whenever they are used, since no disk holds all of them; val lies in the cache.

The order of an epoch, and with it what a shuffle buffer holds at any step, is computed by `sampler` before anything is
read. A resumed run therefore reads what the buffer held and goes on, with no more than a checkpoint's position.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convsmith.contracts import hw
from convsmith.data.building import Failure
from convsmith.data.cache import open_images
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import DecodeError, Pixels, decode
from convsmith.data.depth import Depths
from convsmith.data.mapped import MappedPixels
from convsmith.data.parallel import CHUNK_BYTES, Progress, chunks, thread_map
from convsmith.data.raster import SHALLOW
from convsmith.data.remarks import Remark
from convsmith.data.source import Shards, Source
from convsmith.data.workers import Workers
from convsmith.errors import UserError
from convsmith.files import read_bytes
from convsmith.terminal import warn

SAMPLED = 1_000  # images whose mean and deviation stand for those of all
SORTED = 0.5  # the share of neighbours of one class beyond which shards count as sorted

Positions = npt.NDArray[np.int64]
OnError = Literal["stop", "skip"]


class StreamedPixels:
    """The decoded images of a source [N, H, W, C], of which only `kept` are in the cache, those of `rows`."""

    def __init__(
        self,
        source: Source,
        rules: DecodeRules,
        on_error: OnError,
        kept: MappedPixels | None,
        rows: npt.NDArray[np.int64],
    ) -> None:
        assert rules.working_size is not None
        assert source.shards is not None
        self.shape = (len(source), *hw(rules.working_size), rules.channels)
        self.shards = source.shards
        self._source, self._rules, self._on_error = source, rules, on_error
        self._kept = kept
        self._at = np.full(len(source), -1)  # the place of a row in `kept`
        self._at[rows] = np.arange(len(rows))
        self._told: set[int] = set()
        self._workers = Workers(rules, self.shape[1:])

    def take(self, rows: Positions) -> Pixels:
        """The images of these rows: uint8 [B, H, W, C]."""
        pixels = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        at = self._at[rows]
        if self._kept is not None:
            pixels[at >= 0] = self._kept.take(at[at >= 0])
        read = np.flatnonzero(at < 0)
        read = read[np.argsort(rows[read], kind="stable")]
        records = ((row, self._encoded(row)) for row in rows[read].tolist())
        for place, image in zip(read, thread_map(self._decode, records), strict=True):
            pixels[place] = 0 if image is None else image
        return pixels

    def batches(self, parts: Sequence[Positions], reading: Positions) -> Iterator[Pixels]:
        """The images of the rows of each of `parts`, in their order, decoded by processes.

        `reading` holds all rows of the epoch in the order in which they are read. A row that is read before its turn is
        kept, encoded, until then. In place of an image that cannot be decoded stands another one of its class in its
        batch, or a black one.
        """
        if not parts:
            return
        order, size = np.concatenate(parts), math.prod(self.shape[1:])
        self._workers.start()
        requests = (request for request, _ in chunks(self._records(order, reading), size))
        answers = thread_map(self._workers.decode, requests, result_bytes=CHUNK_BYTES)
        decoded = map(self._usable, order.tolist(), chain.from_iterable(answers))
        for rows in parts:
            images = list(islice(decoded, len(rows)))
            broken = [place for place, image in enumerate(images) if image is None]
            for place in broken:
                alike = np.flatnonzero(self._source.labels[rows] == self._source.labels[rows[place]])
                black = np.zeros(self.shape[1:], dtype=np.uint8)
                images[place] = next((images[other] for other in alike if images[other] is not None), black)
            yield np.stack(images)  # type: ignore[arg-type]

    def _records(self, order: Positions, reading: Positions) -> Iterator[bytes]:
        """The encoded images of rows, in their order; each is read when its turn in `reading` comes."""
        rank = np.empty(self.shape[0], dtype=np.int64)
        rank[reading] = np.arange(len(reading))
        held: dict[int, bytes] = {}
        upcoming = iter(order[np.argsort(rank[order], kind="stable")].tolist())
        for row in order.tolist():
            while row not in held:
                first = next(upcoming)
                held[first] = self._encoded(first)
            yield held.pop(row)

    def _encoded(self, row: int) -> bytes:
        record = self._source.read(row)
        assert not isinstance(record, np.ndarray), "shards hold encoded images"
        return record if isinstance(record, bytes) else read_bytes(record)

    def _decode(self, item: tuple[int, bytes]) -> Pixels | None:
        row, record = item
        try:
            return decode(record, self._rules)
        except DecodeError as error:
            return self._usable(row, error)

    def _usable(self, row: int, image: Pixels | DecodeError) -> Pixels | None:
        """The image, or None with a warning, or else a UserError, as data.on_error says."""
        if not isinstance(image, DecodeError):
            return image
        name = self._source.ids[row]
        said = f"'{name}' of {self._source.name} cannot be decoded ({image.kind}: {image.message})"
        if self._on_error == "stop":
            raise UserError(f"{said}: replace it, or leave such images out, --data.on_error skip")
        if row not in self._told:
            self._told.add(row)
            warn(f"{said} and is left out of the training")
        return None


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """What `cache.Images` is of decoded images, of streamed ones.

    `hash` is the SHA-256 of the pixels of val, of ids, labels and classes, and of what is in the index of the shards.
    Sums of pixels are not known, nor the range of images of more than 8 bits.
    """

    pixels: StreamedPixels
    kept: Positions
    failures: tuple[Failure, ...]
    hash: str
    remarks: tuple[Remark, ...] = ()
    moments: None = None

    @property
    def depths(self) -> Depths:
        return np.tile(SHALLOW, (len(self.kept), 1))


def stream_images(
    source: Source,
    rows: Positions,
    rules: DecodeRules,
    cache: Path,
    on_error: OnError,
    progress: Progress | None = None,
) -> StreamedImages:
    """The images of `source`: those in `rows` (val) from the cache, as `open_images` has them, the others streamed."""
    assert source.shards is not None
    held = open_images(source.at(rows), rules, cache, on_error, progress) if len(rows) else None
    kept = np.ones(len(source), dtype=np.bool_)
    if held:
        kept[np.setdiff1d(rows, rows[held.kept])] = False
    remaining = np.flatnonzero(kept)
    source = source.at(remaining)
    assert source.shards is not None
    at = np.searchsorted(remaining, rows[held.kept]) if held else rows
    digest = hashlib.sha256(repr((held and held.hash, source.classes, source.ids, source.shards[:3])).encode())
    return StreamedImages(
        pixels=StreamedPixels(source, rules, on_error, held.pixels if held else None, at),
        kept=remaining,
        failures=held.failures if held else (),
        hash=digest.hexdigest(),
        remarks=held.remarks if held else (),
    )


def with_stream(config: DataConfig, source: Source) -> DataConfig:
    """The config with its choice whether train images are streamed. Raises UserError for settings that rule it out."""
    streams = source.shards is not None if config.stream is None else config.stream
    if streams and source.shards is None:
        raise UserError(
            "data.stream true is for shards (.tar files of WebDataset), Parquet and data sets of the hub, not for "
            f"{source.name}: leave it out"
        )
    if streams and config.sampling == "balanced":
        raise UserError(
            "data.sampling balanced draws images in any order, which shards are not streamed in: weigh the loss, "
            "--train.class_weights balanced"
        )
    if streams and config.range == "auto":
        raise UserError("data.range auto looks at all train images, which are streamed: give '[low, high]'")
    return config.model_copy(update={"stream": streams})


def stream_note(config: DataConfig, shards: Positions, labels: Positions) -> str:
    """What is to be said of train images that are streamed; `shards` [N] and `labels` [N] are those of the images."""
    note = (
        f"train images are streamed from {len(np.unique(shards)):,} shards and decoded anew each epoch, which shuffles "
        f"the shards, and their images through a buffer of {config.shuffle_buffer:,} (data.shuffle_buffer)"
    )
    shares = np.bincount(labels) / len(labels)
    same = shards[1:] == shards[:-1]
    alike = np.mean(labels[1:][same] == labels[:-1][same]) if same.any() else 0.0
    if alike > SORTED and alike > 2 * float((shares**2).sum()):
        note += (
            f"; {alike:.0%} of neighbours in the shards are of one class, which such a buffer mixes poorly: write the "
            "shards in random order, or enlarge the buffer"
        )
    return note


def kept_whole(config: DataConfig, source: Source, rows: Positions, is_grouped: bool) -> npt.NDArray[np.int64]:
    """The shard of each of `rows`, which splits keep whole. Raises UserError where they cannot be cut out."""
    assert source.shards is not None
    shards = source.shards.of[rows]
    given = set(source.given[rows].tolist())
    cut = ("val" not in given and config.val_fraction, not given & {"val", "test"} and config.test_fraction)
    parts = 1 + sum(map(bool, cut))
    count = len(np.unique(shards[np.isin(source.given[rows], ["", "train"])]))
    if parts > count:
        raise UserError(
            f"{source.name} has {count} shards to divide, of which splits take whole ones: write more, name shards "
            "train-*, val-* and test-*, or train on all, --data.val_fraction 0 --data.test_fraction 0"
        )
    if is_grouped and parts > 1:
        raise UserError("data.groups cannot be kept whole where val is cut out of shards: name val shards val-*")
    return shards


def by_name(shards: Shards) -> dict[str, dict[str, Any]]:
    """Each shard's size in bytes and digest, for splits.json."""
    facts = zip(shards.names, shards.sizes, shards.digests, strict=True)
    return {name: {"size": size, "hash": digest} for name, size, digest in facts}


def refuse_changed(
    recorded: Mapping[str, Mapping[str, Any]], shards: Shards, ids: Sequence[str], now: Sequence[str], run: str
) -> None:
    """Raise UserError for the first shard that is not as `recorded` in a run, with the first of `ids` that it lacks."""
    present = by_name(shards)
    for name, facts in recorded.items():
        if present.get(name) == facts:
            continue
        known = set(now)
        lost = next((sample for sample in ids if sample.startswith(f"{name}/") and sample not in known), None)
        if name not in present:
            what = "is missing"
        elif lost is not None:
            what = f"has changed since then: it lacks the sample '{lost}'"
        elif present[name]["size"] != facts["size"]:
            what = f"has changed since then: its size was {facts['size']:,} bytes, and is {present[name]['size']:,}"
        else:
            what = "has changed since then: its samples have other names, sizes, times or labels"
        raise UserError(
            f"run '{run}' was trained on the shard '{name}', which {what}; put the shard back as it was, or train "
            "a new run"
        )
