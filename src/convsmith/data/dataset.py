"""An opened data set: its resolved config, train and val, and a sealed test split. Decodes and augments nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convsmith.contracts import InputSpec, Size
from convsmith.data.building import Failure, Moments, pixel_moments
from convsmith.data.cache import Images, open_images
from convsmith.data.classes import look_alike, refuse_untrained, with_classes, without_val
from convsmith.data.config import DataConfig, DecodeRules, Preprocessing
from convsmith.data.decode import Pixels, background_rgb
from convsmith.data.depth import auto_range, range_note, scan, used_range
from convsmith.data.expected import as_expected
from convsmith.data.filled import (
    groups_of,
    refuse_unfit_statistics,
    scaled,
    sized,
    unused_fractions,
    with_fractions,
    with_tables,
)
from convsmith.data.groups import GroupNumbers, Groups, refuse_divided
from convsmith.data.mapped import MappedPixels
from convsmith.data.named import known_shape
from convsmith.data.native import Native, native_shape
from convsmith.data.parallel import Progress
from convsmith.data.preprocess import InputPixels
from convsmith.data.remarks import sentences
from convsmith.data.sampler import first_of_shards
from convsmith.data.source import SPLITS, Labels, Shards, Source
from convsmith.data.sources import cache_folder, open_source
from convsmith.data.splits import Rows, make_splits
from convsmith.data.streamed import (
    SAMPLED,
    StreamedImages,
    StreamedPixels,
    by_name,
    kept_whole,
    refuse_changed,
    stream_images,
    stream_note,
    with_stream,
)
from convsmith.errors import UserError

UNDECODABLE = "that cannot be decoded (skipped.json)"
HELD_OUT = "held-out"  # in a fold of a cross-validation, the split that training never sees


class Subset:
    """Some rows of a memory-mapped array of images.

    `rows` int64 [N] index the array; `labels` int64 [N] and `ids` belong to them, in the same order.
    """

    def __init__(
        self,
        pixels: Pixels | MappedPixels | StreamedPixels,
        rows: Rows,
        labels: Labels,
        ids: Sequence[str],
        moments: Moments | None = None,
    ) -> None:
        assert len(rows) == len(labels) == len(ids)
        self._pixels = pixels  # private, since it has all rows of the source, including the test split
        self._moments = moments
        self.rows = rows
        self.labels = labels
        self.ids = tuple(ids)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self._pixels.shape[1:]
        return height, width, channels

    def gather(self, positions: npt.NDArray[np.integer[Any]] | slice | Sequence[int]) -> Pixels:
        """A copy of the images at `positions` within the subset: uint8 [B, H, W, C]."""
        if isinstance(self._pixels, np.ndarray):
            return np.take(self._pixels, self.rows[positions], axis=0)
        return self._pixels.take(self.rows[positions])

    def gathered(self, parts: Sequence[npt.NDArray[np.int64]]) -> Iterator[Pixels]:
        """The images at each of the positions in turn: uint8 [B, H, W, C]. What is not in memory is read ahead."""
        if isinstance(self._pixels, MappedPixels):
            return self._pixels.batches([self.rows[part] for part in parts])
        return map(self.gather, parts)

    @property
    def shards(self) -> npt.NDArray[np.int64] | None:
        """The number of each image's shard, int64 [N], if the images are streamed."""
        return self._pixels.shards.of[self.rows] if isinstance(self._pixels, StreamedPixels) else None

    def streamed(self, parts: Sequence[npt.NDArray[np.int64]], reading: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        """The images of each of `parts` of an epoch's order: uint8 [B, H, W, C], read in the order of `reading`."""
        assert isinstance(self._pixels, StreamedPixels)
        return self._pixels.batches([self.rows[part] for part in parts], self.rows[reading])

    def inputs(self, positions: npt.NDArray[np.integer[Any]] | slice | Sequence[int]) -> InputPixels:
        """The images at `positions` as network inputs; they were prepared when they were decoded."""
        return InputPixels(self.gather(positions))

    def sample(self, count: int) -> Subset:
        """A fixed random sample of `count` of these images, or all if there are fewer, in the source's order.

        Of streamed ones, the first of some shards, since to read any others takes as long as to read all.
        """
        if self.shards is not None:
            return self.at(first_of_shards(self.shards, count))
        return self.at(np.sort(np.random.default_rng(0).permutation(len(self))[:count]))

    def at(self, positions: npt.NDArray[np.integer[Any]]) -> Subset:
        """The images at `positions` as a subset of their own."""
        ids = [self.ids[position] for position in positions]
        return Subset(self._pixels, self.rows[positions], self.labels[positions], ids, self._moments)

    def moments(self) -> Moments:
        """Each image's sum and sum of squares of pixel values by channel: int64 [N, 2, C]."""
        if self._moments is not None:
            return self._moments[self.rows]
        return np.concatenate([pixel_moments(self.gather([position])) for position in range(len(self))])


@dataclass(frozen=True, eq=False)
class Sealed:
    """The test images of data with `data.limit`: they are decoded only when they are unsealed."""

    source: Source
    rules: DecodeRules
    cache: Path
    on_error: Literal["stop", "skip"]

    def open(self) -> Subset:
        images = open_images(self.source, self.rules, self.cache, self.on_error)
        ids = [self.source.ids[row] for row in images.kept]
        labels = self.source.labels[images.kept]
        return Subset(images.pixels, np.arange(len(ids)), labels, ids, images.moments)


@dataclass(frozen=True, eq=False)
class Dataset:
    """What training sees of a source. The test split's rows are private; only `unseal_test` gives access to them.

    In `config`, all values that depend on the data are filled in. `hash` identifies pixels, labels,
    ids and classes; with `data.limit` those of train and val alone, as no others are decoded. `failures` are the
    records that were left out because they cannot be decoded.
    """

    config: DataConfig
    classes: tuple[str, ...]
    _images: Images | StreamedImages
    _labels: Labels
    _ids: tuple[str, ...]
    _splits: dict[str, Rows]
    _groups: Groups | None = None
    notes: tuple[str, ...] = ()  # sentences on settings that have no effect on this data, or do not suit it
    _unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _sealed: Sealed | None = None
    _whole: Callable[[], Dataset] | None = None  # with all images decoded, as was done with a limit, too

    @cached_property
    def train(self) -> Subset:
        return self._subset(self._splits["train"])

    @cached_property
    def val(self) -> Subset:
        return self._subset(self._splits["val"])

    def held_out(self) -> Subset:
        """The held-out images of a cross-validation's fold; `with_splits` must have named them."""
        return self._subset(self._splits[HELD_OUT])

    @property
    def hash(self) -> str:
        return self._images.hash

    @property
    def failures(self) -> tuple[Failure, ...]:
        return self._images.failures

    @property
    def unused(self) -> dict[str, int]:
        """The number of files that are not used, by the reason."""
        counts = {reason: len(paths) for reason, paths in self._unused.items()}
        return counts | ({UNDECODABLE: len(self.failures)} if self.failures else {})

    @property
    def test_size(self) -> int:
        """The number of sealed images."""
        return len(self._sealed.source if self._sealed else self._splits.get("test", ()))

    def pool(self) -> Subset:
        """Train and val combined, in the source's order: the images that cross-validation divides into folds."""
        return self._subset(self._pool_rows())

    def pool_groups(self) -> GroupNumbers | None:
        """The group number of each image of `pool()`, int64 [N], in its order; None without `data.groups`."""
        return None if self._groups is None else self._groups.numbers[self._pool_rows()]

    def pool_wholes(self) -> GroupNumbers | None:
        """The groups of `pool()` that no division divides: those of data.groups, else shards that are streamed."""
        streamed = None if self._shards is None else self._shards.of[self._pool_rows()]
        return self.pool_groups() if self._groups is not None else streamed

    def joined(self, *parts: Subset) -> Subset:
        """The union of disjoint subsets, in the source's order."""
        return self._subset(np.sort(np.concatenate([part.rows for part in parts])))

    def unsealed(self) -> Subset:
        """All images that are not sealed, in the source's order: train, val and, in a fold, the held-out images."""
        rows = [self._splits[split] for split in self._splits if split != "test"]
        return self._subset(np.sort(np.concatenate(rows)))

    def preprocessing(self) -> Preprocessing:
        """How a file becomes the network's input; mean and std are computed from train alone unless they are given."""
        config = self.config
        if config.mean is None or config.std is None:
            mean, std = channel_statistics(self.train)
        else:
            mean, std = config.mean, config.std
        rules = DecodeRules.of(config).model_dump()
        return Preprocessing(**rules, image_size=config.image_size, mean=mean, std=std)

    def splits_record(self) -> dict[str, Any]:
        """The content of splits.json: the data's hash, the seed of the splits, and the ids of each split."""
        ids = {split: [self._ids[row] for row in rows] for split, rows in self._splits.items()}
        if self._sealed:
            ids["test"] = list(self._sealed.source.ids)
        streamed = {} if self._shards is None else {"shards": by_name(self._shards)}
        return {"hash": self.hash, "seed": self.config.split_seed, "splits": ids, **streamed}

    def with_splits(self, splits: Mapping[str, Iterable[str]]) -> Dataset:
        """The same data divided by the given ids of 'train', 'val' and, in a fold, 'held-out'.

        Without ids of 'test', the test split stays as it is. Raises UserError for ids that the data does not have or
        that are in two splits, and for divided groups.
        """
        assert {"train", "val"} <= splits.keys() <= {*SPLITS, HELD_OUT}
        row_of = {name: row for row, name in enumerate(self._ids)}
        divided = {"test": self._splits["test"]} if "test" in self._splits else {}
        for split, names in splits.items():
            if split == "test" and self._sealed:
                if tuple(names) != self._sealed.source.ids:
                    raise UserError("the images of the test split are not those in the data: has the data changed?")
                continue
            try:
                divided[split] = np.sort(np.array([row_of[name] for name in names], dtype=np.int64))
            except KeyError as error:
                raise UserError(
                    f"the {split} split contains {error}, which is not in the data: has the data changed?"
                ) from None
        together = np.concatenate(list(divided.values()))
        distinct, counts = np.unique(together, return_counts=True)
        if len(distinct) < len(together):
            raise UserError(f"'{self._ids[distinct[counts > 1][0]]}' is in more than one split, or in one split twice")
        if self._groups is not None:
            refuse_divided(self._groups, divided, "has data.groups changed since the splits were made?")
        return replace(self, _splits={split: divided[split] for split in (*SPLITS, HELD_OUT) if split in divided})

    def as_recorded(self, record: Mapping[str, Any], run: str) -> Dataset:
        """The same data divided as recorded in the splits.json of a run; `run` is its name for messages.

        Raises UserError if the data has changed, or if the config now asks for other splits.
        """
        ours = self.config.split_seed
        if (theirs := record.get("seed", ours)) != ours:
            raise UserError(
                f"the splits of run '{run}' were made with data.split_seed {theirs}, but its config.yaml now says "
                f"{ours}: set it back, or train a new run"
            )
        same = self.of_hash(record["hash"])
        if same is None:
            if self._shards is not None:
                refuse_changed(record.get("shards", {}), self._shards, record["splits"]["train"], self._ids, run)
            raise UserError(
                f"the data of run '{run}' has changed since it was trained: its splits are no longer the same"
            )
        return same.with_splits(record["splits"])

    def of_hash(self, recorded: str) -> Dataset | None:
        """These data as they were recorded under a hash; None if they have changed since.

        Before `data.limit` left images undecoded, the hash was of all images. Then all are decoded again.
        """
        if self.hash == recorded:
            return self
        whole = self._whole() if self._whole else None
        return whole if whole and whole.hash == recorded else None

    @property
    def _shards(self) -> Shards | None:
        return self._images.pixels.shards if isinstance(self._images, StreamedImages) else None

    def _pool_rows(self) -> Rows:
        return np.sort(np.concatenate([self._splits["train"], self._splits["val"]]))

    def _subset(self, rows: Rows) -> Subset:
        ids = [self._ids[row] for row in rows]
        return Subset(self._images.pixels, rows, self._labels[rows], ids, self._images.moments)


def open_dataset(
    config: DataConfig,
    progress: Progress | None = None,
    source: Source | None = None,
    headroom: float = 1.0,
    spec: InputSpec | None = None,
    whole: bool = False,
    trained: bool = False,
) -> Dataset:
    """Open `source`, or else what `config.source` names: decode it unless it is cached, and split it.

    With `config.limit`, only train and val are decoded, unless `whole` is set. Where a run or a study was `trained` on
    these data before, they are taken as they are.

    `headroom` is working_size / image_size if the config does not set working_size (random resized crops need
    more than 1). `progress(done, total)` is called while images are decoded. Settings that are missing in the config
    are taken from `spec` if it is given. Raises UserError.
    """
    source = with_classes(source or open_source(config), config.classes)
    if not trained:
        refuse_untrained(source)
    background_rgb(config.background)  # otherwise an invalid colour would not be noticed before a transparent image
    cache = cache_folder(config)
    config = with_tables(config)
    groups = groups_of(config, source)
    given, requested = set(source.given.tolist()), config
    config = with_stream(config, source)
    limited = (config.limit is not None and not whole) or bool(config.stream)
    everything, sealed, is_val = source, None, np.zeros(0, dtype=np.bool_)
    if limited:
        config, parts = _divided(config, source, np.arange(len(source)), groups)
        chosen = np.sort(np.concatenate([parts["train"], parts["val"]]))
        source, is_val = everything.at(chosen), np.isin(chosen, parts["val"])
        groups = None if groups is None else groups._replace(numbers=groups.numbers[chosen])

    def divided(kept: Rows) -> tuple[DataConfig, dict[str, Rows]]:
        if not limited:
            return _divided(config, source, kept, groups)
        _refuse_undecodable(source, kept)
        return config, {"train": np.flatnonzero(~is_val[kept]), "val": np.flatnonzero(is_val[kept])}

    if config.image_size is None or config.channels is None:
        native = native_shape(source, cache)
        config = sized(as_expected(config, spec, native), native)
    config = as_expected(config, spec, None)
    refuse_unfit_statistics(config)
    if config.working_size is None:
        assert config.image_size is not None
        config = config.model_copy(update={"working_size": scaled(config.image_size, headroom)})
    if config.range == "auto":
        assert config.channels is not None
        depths, decodes = scan(source, cache, progress, config.channels)
        if used_range(depths) is not None:
            kept = np.flatnonzero(decodes)
            depths = depths[kept[divided(kept)[1]["train"]]]
        config = config.model_copy(update={"range": auto_range(depths)})
    rules, val = DecodeRules.of(config), np.flatnonzero(is_val)
    images: Images | StreamedImages
    if config.stream:
        images = stream_images(source, val, rules, cache, config.on_error, progress)
    else:
        images = open_images(source, rules, cache, config.on_error, progress)

    config, splits = divided(images.kept)
    if limited and "test" in parts:
        sealed = Sealed(everything.at(parts["test"]), DecodeRules.of(config), cache, config.on_error)
    if groups is not None:
        groups = groups._replace(numbers=groups.numbers[images.kept])
    ids = tuple(source.ids[row] for row in images.kept)
    notes = unused_fractions(requested, given)
    labels = source.labels[images.kept]
    remarks = (look_alike(source.classes), without_val(source.classes, labels[splits["train"]], labels[splits["val"]]))
    notes = (*notes, *filter(None, remarks))
    assert config.range != "auto"
    if note := range_note(images.depths[splits["train"]], config.range):
        notes = (*notes, note)
    notes = (*notes, *sentences(images.remarks))
    if config.stream and source.shards:
        notes = (*notes, stream_note(config, source.shards.of[images.kept][splits["train"]], labels[splits["train"]]))
    again = limited and not config.stream
    reopened = partial(open_dataset, requested, progress, everything, headroom, spec, True) if again else None
    about = (groups, notes, source.unused, sealed, reopened)
    dataset = Dataset(config, source.classes, images, labels, ids, splits, *about)
    if config.stream and config.mean is None:
        mean, std = channel_statistics(dataset.train.sample(SAMPLED))
        dataset = replace(dataset, config=config.model_copy(update={"mean": mean, "std": std}))
    return dataset


def _divided(
    config: DataConfig, source: Source, kept: Rows, groups: Groups | None
) -> tuple[DataConfig, dict[str, Rows]]:
    """The splits of the records `kept`, as rows of `kept`, and the config with the fractions that were used."""
    _refuse_undecodable(source, kept)
    labels, given = source.labels[kept], source.given[kept]
    config = with_fractions(config, source, set(given.tolist()))
    fractions = config.val_fraction or 0, config.test_fraction or 0
    numbers = None if groups is None else groups.numbers[kept]
    if source.shards is not None:
        numbers = kept_whole(config, source, kept, groups is not None)
    splits = make_splits(labels, given, *fractions, config.split_seed, source.classes, config.limit, numbers)
    return config, splits


def _refuse_undecodable(source: Source, kept: Rows) -> None:
    """Raise UserError for a class of which no image is `kept`."""
    for label in np.setdiff1d(source.labels, source.labels[kept]):
        raise UserError(f"no image of class '{source.classes[label]}' of {source.name} can be decoded")


def input_shape(
    config: DataConfig, spec: InputSpec | None = None, source: Source | None = None
) -> tuple[int, Size, int]:
    """The network's input channels, image size and number of classes; decodes and downloads nothing."""
    known = None if source or config.classes else known_shape(config.title)
    if known is None:
        source = with_classes(source or open_source(config), config.classes)
        native = native_shape(source, cache_folder(config))
        config = sized(as_expected(config, spec, native), native)
        count = len(source.classes)
    else:
        channels, size, count = known
        config = as_expected(config, spec, Native((size, size), channels))
        config = config.model_copy(
            update={"image_size": config.image_size or size, "channels": config.channels or channels}
        )
    assert config.image_size is not None
    assert config.channels is not None
    return config.channels, config.image_size, count


def unseal_test(dataset: Dataset) -> Subset:
    """The test split. The caller must record the access (test-access.jsonl). Raises UserError if there is none."""
    if dataset._sealed:
        return dataset._sealed.open()
    if "test" not in dataset._splits:
        raise UserError(f"'{dataset.config.title}' has no test split, only train and val")
    return dataset._subset(dataset._splits["test"])


def channel_statistics(subset: Subset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of a subset, for pixel values in [0, 1].

    The sums are exact integers, so that the result depends on neither order nor machine. The standard deviation (of
    the population) is given as 1 for a constant channel.
    """
    height, width, _ = subset.shape
    count = len(subset) * height * width
    total, squares = ([int(value) for value in sums] for sums in subset.moments().sum(axis=0))
    mean = tuple(value / count / 255 for value in total)
    # n * sum(x^2) - sum(x)^2 in Python's integers, which avoids cancellation.
    spread = [count * square - value * value for square, value in zip(squares, total, strict=True)]
    return mean, tuple(math.sqrt(value) / count / 255 if value else 1.0 for value in spread)
