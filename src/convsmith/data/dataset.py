"""An opened data set: its resolved config, train and val in reach, test sealed. Decodes and augments nothing itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from convsmith.contracts import InputSpec
from convsmith.data.cache import Failure, Images, Moments, Native, native_shape, open_images, pixel_moments
from convsmith.data.config import DataConfig, DecodeRules, Preprocessing
from convsmith.data.decode import Pixels, background_rgb
from convsmith.data.depth import auto_range, range_note, scan, used_range
from convsmith.data.expected import as_expected, side
from convsmith.data.groups import GroupNumbers, Groups, groups_file, read_groups, refuse_divided
from convsmith.data.named import known_shape
from convsmith.data.parallel import Progress
from convsmith.data.preprocess import InputPixels
from convsmith.data.source import SPLITS, Labels, Source
from convsmith.data.sources import cache_folder, open_source
from convsmith.data.splits import Rows, make_splits
from convsmith.errors import UserError

DEFAULT_SIZE = 64  # of photographs
HELD_OUT = "held-out"  # the split of a fold that its training never sees


class Subset:
    """Some rows of a memory-mapped array of images.

    `rows` int64 [N] index the array; `labels` int64 [N] and `ids` belong to them, in the same order.
    """

    def __init__(
        self, pixels: Pixels, rows: Rows, labels: Labels, ids: Sequence[str], moments: Moments | None = None
    ) -> None:
        assert len(rows) == len(labels) == len(ids)
        self._pixels = pixels  # all rows of the source, the test split's among them: not for others to see
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
        """The images at `positions` within the subset, copied: uint8 [B, H, W, C]."""
        return np.take(self._pixels, self.rows[positions], axis=0)

    def inputs(self, positions: npt.NDArray[np.integer[Any]] | slice | Sequence[int]) -> InputPixels:
        """The images at `positions` as what may go into a network: they were prepared when they were decoded."""
        return InputPixels(self.gather(positions))

    def sample(self, count: int) -> Subset:
        """`count` of these images, or all where they are fewer: the same ones each time, in the source's order."""
        chosen = np.sort(np.random.default_rng(0).permutation(len(self))[:count])
        ids = [self.ids[position] for position in chosen]
        return Subset(self._pixels, self.rows[chosen], self.labels[chosen], ids, self._moments)

    def moments(self) -> Moments:
        """Each image's sum and sum of squares of pixel values by channel: int64 [N, 2, C]."""
        if self._moments is not None:
            return self._moments[self.rows]
        return np.concatenate([pixel_moments(self.gather([position])) for position in range(len(self))])


@dataclass(frozen=True, eq=False)
class Dataset:
    """What training sees of a source. The rows of test are private; `unseal_test` is the only door to them.

    `config` has every value that was decided by the data filled in. `hash` identifies pixels, labels,
    ids and classes. `failures` are the records that were left out for not decoding.
    """

    config: DataConfig
    classes: tuple[str, ...]
    _images: Images
    _labels: Labels
    _ids: tuple[str, ...]
    _splits: dict[str, Rows]
    _groups: Groups | None = None
    notes: tuple[str, ...] = ()  # settings that this data leaves no use for

    @cached_property
    def train(self) -> Subset:
        return self._subset(self._splits["train"])

    @cached_property
    def val(self) -> Subset:
        return self._subset(self._splits["val"])

    def held_out(self) -> Subset:
        """The images of a cross-validation's fold, where `with_splits` named some."""
        return self._subset(self._splits[HELD_OUT])

    @property
    def hash(self) -> str:
        return self._images.hash

    @property
    def failures(self) -> tuple[Failure, ...]:
        return self._images.failures

    @property
    def test_size(self) -> int:
        """How many images are sealed."""
        return len(self._splits.get("test", ()))

    def pool(self) -> Subset:
        """Train and val joined, in the source's order: what cross-validation divides anew."""
        return self._subset(self._pool_rows())

    def pool_groups(self) -> GroupNumbers | None:
        """The group of each image of `pool()`, in its order, as an int64 number; None without `data.groups`."""
        return None if self._groups is None else self._groups.numbers[self._pool_rows()]

    def joined(self, *parts: Subset) -> Subset:
        """Disjoint subsets as one, in the source's order."""
        return self._subset(np.sort(np.concatenate([part.rows for part in parts])))

    def but_test(self) -> Subset:
        """Train, val and, in a fold, what is held out, joined in the source's order: all that is not sealed."""
        rows = [self._splits[split] for split in self._splits if split != "test"]
        return self._subset(np.sort(np.concatenate(rows)))

    def preprocessing(self) -> Preprocessing:
        """The way from a file to the net's input; mean and std are those of train alone, where none is given."""
        config = self.config
        if config.mean is None or config.std is None:
            mean, std = channel_statistics(self.train)
        else:
            mean, std = config.mean, config.std
        rules = DecodeRules.of(config).model_dump()
        return Preprocessing(**rules, image_size=config.image_size, mean=mean, std=std)

    def splits_record(self) -> dict[str, Any]:
        """For splits.json: the data's hash, the seed that divided it, and the ids of each split."""
        ids = {split: [self._ids[row] for row in rows] for split, rows in self._splits.items()}
        return {"hash": self.hash, "seed": self.config.split_seed, "splits": ids}

    def with_splits(self, splits: Mapping[str, Iterable[str]]) -> Dataset:
        """The same data divided by ids of 'train', 'val', of a fold 'held-out' and, or else as it is, 'test'.

        Raises UserError for ids that the data does not have, or that are in two splits, and for divided groups.
        """
        assert {"train", "val"} <= splits.keys() <= {*SPLITS, HELD_OUT}
        row_of = {name: row for row, name in enumerate(self._ids)}
        divided = {"test": self._splits["test"]} if "test" in self._splits else {}
        for split, names in splits.items():
            try:
                divided[split] = np.sort(np.array([row_of[name] for name in names], dtype=np.int64))
            except KeyError as error:
                raise UserError(f"the {split} split names {error}, which is not in the data: has it changed?") from None
        together = np.concatenate(list(divided.values()))
        distinct, counts = np.unique(together, return_counts=True)
        if len(distinct) < len(together):
            raise UserError(f"'{self._ids[distinct[counts > 1][0]]}' is in more than one split, or twice in one")
        if self._groups is not None:
            refuse_divided(self._groups, divided, "has data.groups changed since the splits were made?")
        return replace(self, _splits={split: divided[split] for split in (*SPLITS, HELD_OUT) if split in divided})

    def as_recorded(self, record: Mapping[str, Any], run: str) -> Dataset:
        """The same data divided as the splits.json of a run says; `run` names it.

        Raises UserError where the data has changed, or where the config now asks for other splits.
        """
        if self.hash != record["hash"]:
            raise UserError(
                f"the data of run '{run}' has changed since it was trained: its splits are no longer the same"
            )
        ours = self.config.split_seed
        if (theirs := record.get("seed", ours)) != ours:
            raise UserError(
                f"run '{run}' was divided with data.split_seed {theirs}, and its config.yaml now says {ours}: set it "
                f"back, or train a new run"
            )
        return self.with_splits(record["splits"])

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
) -> Dataset:
    """Open `source`, or else what `config.source` names: decode it unless the cache has it, and split it.

    `headroom` is working_size / image_size where the config leaves working_size open (random resized
    crops need some). `progress(done, total)` is called while images are decoded. What the config leaves open
    is taken from `spec` where there is one. Raises UserError.
    """
    source = source or open_source(config)
    background_rgb(config.background)  # a wrong colour would be found at the first transparent image only
    cache = cache_folder(config)
    config, groups = _with_groups(config, source)
    if config.image_size is None or config.channels is None:
        native = native_shape(source, cache)
        config = _sized(as_expected(config, spec, native.size), native)
    config = as_expected(config, spec, None)
    _fitting_statistics(config)
    if config.working_size is None:
        assert config.image_size is not None
        config = config.model_copy(update={"working_size": math.ceil(config.image_size * headroom)})
    if config.range == "auto":
        depths, decodes = scan(source, cache, progress)
        if used_range(depths) is not None:
            kept = np.flatnonzero(decodes)
            depths = depths[kept[_divided(config, source, kept, groups)[1]["train"]]]
        config = config.model_copy(update={"range": auto_range(depths)})
    images = open_images(source, DecodeRules.of(config), cache, config.on_error, progress)

    given = set(source.given[images.kept].tolist())
    asked, (config, splits) = config, _divided(config, source, images.kept, groups)
    if groups is not None:
        groups = groups._replace(numbers=groups.numbers[images.kept])
    ids = tuple(source.ids[row] for row in images.kept)
    notes = _idle_fractions(asked, given)
    assert config.range != "auto"
    if note := range_note(images.depths[splits["train"]], config.range):
        notes = (*notes, note)
    return Dataset(config, source.classes, images, source.labels[images.kept], ids, splits, groups, notes)


def _divided(
    config: DataConfig, source: Source, kept: Rows, groups: Groups | None
) -> tuple[DataConfig, dict[str, Rows]]:
    """The splits of the records `kept`, as rows of `kept`, and the config with the fractions that made them."""
    labels, given = source.labels[kept], source.given[kept]
    for label in np.setdiff1d(source.labels, labels):
        raise UserError(f"no image of class '{source.classes[label]}' of {source.name} decodes")
    config = _with_fractions(config, source, set(given.tolist()))
    fractions = config.val_fraction or 0, config.test_fraction or 0
    numbers = None if groups is None else groups.numbers[kept]
    splits = make_splits(labels, given, *fractions, config.split_seed, source.classes, config.limit, numbers)
    return config, splits


def input_shape(
    config: DataConfig, spec: InputSpec | None = None, source: Source | None = None
) -> tuple[int, int, int]:
    """Channels and image size that the net will see, and the number of classes; decodes and downloads nothing."""
    known = None if source else known_shape(config.source)
    if known is None:
        source = source or open_source(config)
        native = native_shape(source, cache_folder(config))
        config = _sized(as_expected(config, spec, native.size), native)
        count = len(source.classes)
    else:
        channels, size, count = known
        config = as_expected(config, spec, (size, size))
        config = config.model_copy(
            update={"image_size": config.image_size or size, "channels": config.channels or channels}
        )
    assert config.image_size is not None
    assert config.channels is not None
    return config.channels, config.image_size, count


def unseal_test(dataset: Dataset) -> Subset:
    """The test split. The caller must record the access (test-access.jsonl). Raises UserError where there is none."""
    if "test" not in dataset._splits:
        raise UserError(f"'{dataset.config.source}' has no test split: it gives train and val alone")
    return dataset._subset(dataset._splits["test"])


def channel_statistics(subset: Subset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixel values in [0, 1], over all pixels of a subset.

    Exact integer sums, so the result depends on neither order nor machine. The deviation (of the
    population) is 1 for a constant channel.
    """
    height, width, _ = subset.shape
    count = len(subset) * height * width
    total, squares = ([int(value) for value in sums] for sums in subset.moments().sum(axis=0))
    mean = tuple(value / count / 255 for value in total)
    # n * sum(x^2) - sum(x)^2 in Python's integers: no cancellation.
    spread = [count * square - value * value for square, value in zip(squares, total, strict=True)]
    return mean, tuple(math.sqrt(value) / count / 255 if value else 1.0 for value in spread)


def _sized(config: DataConfig, native: Native) -> DataConfig:
    size = config.image_size
    if size is None:
        size = side(native.size) or DEFAULT_SIZE
        if config.working_size is not None and config.working_size < size:
            raise UserError(f"data.working_size {config.working_size} is smaller than data.image_size {size}: set both")
    return config.model_copy(update={"image_size": size, "channels": config.channels or native.channels})


def _fitting_statistics(config: DataConfig) -> None:
    if config.mean is not None and len(config.mean) != config.channels:
        raise UserError(
            f"data.mean and data.std have {len(config.mean)} values, but data.channels is {config.channels}"
        )


def _with_groups(config: DataConfig, source: Source) -> tuple[DataConfig, Groups | None]:
    """The groups of all of the source's images, before any is decoded; a CSV file by its absolute path."""
    if config.groups is None:
        return config, None
    if (file := groups_file(config.groups)) is not None:
        config = config.model_copy(update={"groups": str(file)})
    assert config.groups is not None
    groups = read_groups(config.groups, source.ids)
    given = {split: np.flatnonzero(source.given == split) for split in SPLITS}
    refuse_divided(groups, given, f"move its images in {source.name} to one split, or leave data.groups out")
    return config, groups


def _idle_fractions(config: DataConfig, given: set[str]) -> tuple[str, ...]:
    """In words, the fractions that were asked for although the data itself says what val and test are."""
    messages = []
    if config.val_fraction is not None and "val" in given:
        messages.append("data.val_fraction changes nothing: the data has a val split of its own")
    if config.test_fraction and given & {"val", "test"}:
        reason = "a test split of its own" if "test" in given else "a val split, and so gets no test split"
        messages.append(f"data.test_fraction changes nothing: the data has {reason}")
    return tuple(messages)


def _with_fractions(config: DataConfig, source: Source, given: set[str]) -> DataConfig:
    """Fill in the fractions that decide something; leave the others as they are."""
    update: dict[str, float] = {}
    if "val" not in given and config.val_fraction is None:
        update["val_fraction"] = source.val_fraction
    if not given & {"val", "test"} and config.test_fraction is None:
        update["test_fraction"] = source.test_fraction
    config = config.model_copy(update=update)
    if "val" not in given and "test" not in given and (config.val_fraction or 0) + (config.test_fraction or 0) >= 1:
        raise UserError("data.val_fraction and data.test_fraction together leave nothing to train on")
    return config
