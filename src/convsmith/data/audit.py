"""The checks of `convsmith data check`: a verdict on each file, counts, sizes and duplicates. Changes no data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from convsmith import records
from convsmith.contracts import gray_or_rgb
from convsmith.data.classes import look_alike
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import array_raster, opened
from convsmith.data.depth import auto_range, range_note, scan
from convsmith.data.faults import SUFFIXES, DecodeError, Kind
from convsmith.data.native import native_shape
from convsmith.data.parallel import thread_map
from convsmith.data.planes import Planes
from convsmith.data.raster import SHALLOW, Depth, Pixels, Raster, joined
from convsmith.data.remarks import Remark, sentences
from convsmith.data.source import SPLITS, Record, Source
from convsmith.data.sources import cache_folder, open_source
from convsmith.errors import UserError
from convsmith.events import Listener, counter, nobody
from convsmith.files import explain_os_errors, parse_json, refuse_to_replace

NEAR_BITS = 4  # images whose 64-bit perceptual hashes differ in at most this many bits may be near duplicates
LISTED = 20  # how many items of each kind `summary_lines` lists

Verdict = Kind | Literal["ok", "duplicate", "wrong-extension"]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class FileVerdict:
    """What is wrong with a record, or 'ok'. Duplicates and files with wrong extensions are used in training.

    Of identical images the first is 'ok' and the others are 'duplicate'; 'wrong-extension' takes precedence over
    'duplicate'. `width` and `height` are those of the upright image, 0 if the record cannot be decoded.
    """

    id: str
    split: str
    label: str
    verdict: Verdict
    message: str
    width: int
    height: int


@dataclass(frozen=True)
class DuplicateGroup:
    """Records with the same pixels: `conflicting` if their labels differ, `leaking` if their splits differ."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    conflicting: bool
    leaking: bool


@dataclass(frozen=True)
class NearPair:
    """Two records that may look alike: their perceptual hashes differ in `distance` of 64 bits. Judge them by eye."""

    ids: tuple[str, str]
    labels: tuple[str, str]
    splits: tuple[str, str]
    distance: int


@dataclass(frozen=True)
class Audit:
    """The result of all checks. `counts` are the decodable images by split ('' for none) and class; `sizes` by 'WxH'.

    `unused` are the files that are no records, by the reason; `notes` are sentences about the images as a whole.
    """

    source: str
    files: tuple[FileVerdict, ...]
    unused: Mapping[str, tuple[str, ...]]
    counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    duplicates: tuple[DuplicateGroup, ...]
    near_duplicates: tuple[NearPair, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Audit({self.source!r}, {self.verdicts})"

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for each file, in the order of `files`."""
        return [asdict(file) for file in self.files]

    @property
    def verdicts(self) -> dict[str, int]:
        """The number of records with each verdict, the most frequent first."""
        return dict(Counter(file.verdict for file in self.files).most_common())

    @property
    def is_broken(self) -> bool:
        """Whether a record cannot be decoded, at which a training stops unless it may leave images out."""
        return not self.verdicts.keys().isdisjoint(get_args(Kind))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dump`."""
        return {**asdict(self), "verdicts": self.verdicts, "near_bits": NEAR_BITS}


class _Finding(NamedTuple):
    verdict: Verdict
    message: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    content: bytes = b""  # sha256 of the pixels, at full depth
    phash: int = 0  # perceptual hash
    depth: Depth = SHALLOW
    remarks: tuple[Remark, ...] = ()


def check_data(
    config: DataConfig, source: Source | None = None, out: Path | None = None, listener: Listener = nobody
) -> Audit:
    """Check every record of `source`, or else of what `config.source` names, and write the result to `out`.

    Near duplicates are candidates found by perceptual hash (ImageHash's phash, 64 bits, distance <= NEAR_BITS)
    among images whose pixels differ. Raises UserError if the source cannot be opened, or if `out` does not end in
    .json or cannot be written.
    """
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out '{out}' must end in .json")
    if out is not None:
        refuse_to_replace(out, _is_audit, "a result of data check")
    audit = _audit(config, source or open_source(config), listener)
    if out is not None:
        with explain_os_errors(f"'{out}'"):
            records.write(out, records.DataCheck, audit.to_json())
    return audit


def _is_audit(content: bytes) -> bool:
    return records.problem(records.DataCheck, parse_json(content.decode())) is None


def _audit(config: DataConfig, source: Source, listener: Listener) -> Audit:
    progress = counter(listener, "checking")
    cache = cache_folder(config)
    channels = config.channels or native_shape(source, cache).channels
    limits = auto_range(scan(source, cache, progress, channels).depths) if config.range == "auto" else config.range
    rules = DecodeRules(background=config.background, range=limits, channels=channels)

    def examine(record: Record) -> _Finding:
        return _examine(record, rules)

    records = (source.read(row) for row in range(len(source)))
    findings = list(thread_map(examine, records, progress, len(source)))
    note = range_note(np.array([finding.depth for finding in findings]), limits)

    alike: dict[bytes, list[int]] = {}
    for row, finding in enumerate(findings):
        if finding.content:
            alike.setdefault(finding.content, []).append(row)
    repeated = {row for rows in alike.values() for row in rows[1:]}
    firsts = np.array([rows[0] for rows in alike.values()], dtype=np.int64)
    hashes = np.array([findings[row].phash for row in firsts], dtype=np.uint64)
    labels = [source.classes[label] for label in source.labels]
    splits: list[str] = source.given.tolist()
    counts = Counter((splits[row], labels[row]) for row, finding in enumerate(findings) if finding.content)
    return Audit(
        source=source.name,
        files=tuple(
            FileVerdict(
                id=source.ids[row],
                split=splits[row],
                label=labels[row],
                verdict="duplicate" if finding.verdict == "ok" and row in repeated else finding.verdict,
                message=finding.message,
                width=finding.size[0],
                height=finding.size[1],
            )
            for row, finding in enumerate(findings)
        ),
        unused=source.unused,
        counts={
            split: {name: counts[split, name] for name in source.classes}
            for split in ("", *SPLITS)
            if split in set(splits)
        },
        sizes=dict(Counter(f"{f.size[0]}x{f.size[1]}" for f in findings if f.content).most_common()),
        duplicates=tuple(_group(source.ids, labels, splits, rows) for rows in alike.values() if len(rows) > 1),
        near_duplicates=tuple(
            NearPair(
                (source.ids[one], source.ids[two]), (labels[one], labels[two]), (splits[one], splits[two]), distance
            )
            for one, two, distance in ((int(firsts[i]), int(firsts[j]), d) for i, j, d in near_pairs(hashes))
        ),
        notes=(
            *filter(None, (look_alike(source.classes), note)),
            *sentences(remark for found in findings for remark in found.remarks),
        ),
    )


def near_pairs(hashes: Hashes, bits: int = NEAR_BITS) -> list[tuple[int, int, int]]:
    """Pairs (i, j, distance), i < j, of uint64 `hashes` [N] with Hamming distance <= `bits`, sorted.

    By the pigeonhole principle, two such hashes agree in at least one of ``bits + 1`` bands of their 64 bits, so
    that only hashes with an equal band are compared. The first of equal hashes represents them all, and each of the
    others is paired with it alone, which keeps the result linear in N for uniform images.
    """
    distinct, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    found = {(int(first[g]), row): 0 for row, g in enumerate(group.tolist()) if row != first[g]}
    edges = np.linspace(0, 64, bits + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        band = (distinct >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for bucket in _buckets(band):
            values = distinct[bucket]
            for at in range(len(bucket) - 1):
                distances = _count_bits(values[at + 1 :] ^ values[at])
                for offset in np.flatnonzero(distances <= bits).tolist():
                    pair = sorted((int(first[bucket[at]]), int(first[bucket[at + 1 + offset]])))
                    found[pair[0], pair[1]] = int(distances[offset])
    return sorted((i, j, distance) for (i, j), distance in found.items())


def summary_lines(audit: Audit) -> list[str]:
    """The result as plain text that names the problems."""
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in audit.verdicts.items())
    lines = [f"{audit.source}: {len(audit.files):,} images: {verdicts}"]
    for split, classes in audit.counts.items():
        shares = ", ".join(f"{name} {count:,}" for name, count in classes.items())
        lines.append(f"{split or 'classes'}: {sum(classes.values()):,} images ({shares})")
    lines.append(f"sizes: {_sizes(audit.sizes)}")
    lines += [f"note: {note}" for note in audit.notes]
    bad = [file for file in audit.files if file.verdict not in ("ok", "duplicate")]
    lines += _listed("files with problems", [f"{f.id}: {f.verdict} ({f.message})" for f in bad])
    for reason, paths in audit.unused.items():
        lines += _listed(f"files not used, {reason}", list(paths))
    lines += _listed("groups of identical images", [_described(group) for group in audit.duplicates])
    near = [f"{' ~ '.join(pair.ids)} (distance {pair.distance})" for pair in audit.near_duplicates]
    lines += _listed("pairs that look alike (candidates)", near)
    return lines


def _examine(record: Record, rules: DecodeRules) -> _Finding:
    try:
        if isinstance(record, np.ndarray):
            return _found(array_raster(record, rules))
        with opened(record, rules) as raster:
            raster.refuse_other(rules.channels)
            found = _found(raster)
    except DecodeError as error:
        return _Finding(error.kind, error.message)
    suffix = record.suffix.lower() if isinstance(record, Path) else ""
    if suffix and suffix not in SUFFIXES[raster.format]:
        return found._replace(verdict="wrong-extension", message=f"the format is {raster.format}")
    return found


def _found(raster: Raster | Planes) -> _Finding:
    """What is compared of a decoded image, strip by strip: all of its pixels, and what it looks like."""
    import imagehash

    depth, limits, is_deep = raster.depth, None, raster.is_deep
    if is_deep and depth.low < depth.high:  # few gray levels may make different images equal
        limits = (depth.low, depth.high)
    content = hashlib.sha256(f"{raster.width}x{raster.height} {is_deep}".encode())

    def gray_and_hashed() -> Iterator[Pixels]:
        for pixels in raster.pixels(limits):
            if not is_deep:
                whole = pixels if pixels.ndim == 3 else pixels[:, :, None].repeat(3, axis=2)
                content.update(np.ascontiguousarray(whole).data)
            yield np.asarray(_image(pixels).convert("L"))

    # At once to the size at which the hash begins, since imagehash makes copies.
    small = joined(gray_and_hashed(), raster.width, raster.height).resize((32, 32), Image.Resampling.LANCZOS)
    if is_deep:
        for samples in raster.samples():
            content.update(np.ascontiguousarray(samples.astype("<f8")).data)
    phash = int.from_bytes(np.packbits(imagehash.phash(small).hash).tobytes(), "big")
    return _Finding("ok", "", (raster.width, raster.height), content.digest(), phash, depth, raster.remarks)


def _image(pixels: Pixels) -> Image.Image:
    """What can be shown of uint8 [h, W] or [h, W, C]."""
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.ndim == 2 else gray_or_rgb(pixels)))


def _group(ids: Sequence[str], labels: Sequence[str], splits: Sequence[str], rows: list[int]) -> DuplicateGroup:
    group_labels, group_splits = tuple(labels[row] for row in rows), tuple(splits[row] for row in rows)
    return DuplicateGroup(
        ids=tuple(ids[row] for row in rows),
        labels=group_labels,
        splits=group_splits,
        conflicting=len(set(group_labels)) > 1,
        leaking=len(set(group_splits)) > 1,
    )


def _buckets(keys: Hashes) -> Iterator[npt.NDArray[np.int64]]:
    """For each key that occurs more than once, the positions where it occurs."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    yield from (bucket for bucket in np.split(order, edges) if len(bucket) > 1)


def _count_bits(values: Hashes) -> npt.NDArray[np.int64]:
    """The number of set bits of each uint64, in parallel within the word (Warren, Hacker's Delight, 5-1)."""
    v = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    counts: npt.NDArray[np.int64] = ((v * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
    return counts


def _sizes(sizes: dict[str, int]) -> str:
    """Lists each size if there are few; otherwise counts the images by the octave of their shorter side."""
    if len(sizes) <= 8:
        return ", ".join(f"{size} ({count:,})" for size, count in sizes.items()) or "none"
    octaves: Counter[int] = Counter()
    for size, count in sizes.items():
        octaves[min(int(side) for side in size.split("x")).bit_length()] += count
    ranges = ", ".join(f"{1 << n - 1}-{(1 << n) - 1} ({count:,})" for n, count in sorted(octaves.items()))
    return f"{len(sizes):,} different, by shorter side: {ranges}"


def _described(group: DuplicateGroup) -> str:
    flags = [text for on, text in ((group.conflicting, "labels differ"), (group.leaking, "across splits")) if on]
    return " = ".join(group.ids) + (f" ({', '.join(flags)})" if flags else "")


def _listed(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    rest = [f"  and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return [f"{title}: {len(lines):,}", *(f"  {line}" for line in lines[:LISTED]), *rest]
