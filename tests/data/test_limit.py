"""`data.limit` decodes only the images that it keeps, and divides as it did when all were decoded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convsmith.data.config import DataConfig
from convsmith.data.dataset import Dataset, open_dataset, unseal_test
from convsmith.data.source import Record, Source
from convsmith.data.sources import from_arrays
from convsmith.errors import UserError

LIMITED = DataConfig(limit=20, test_fraction=0.25)


def counted(images: int = 100, given: list[str] | None = None) -> tuple[Source, list[int]]:
    """A source of random images of three classes, and the rows that were read of it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 4, 4, 3), dtype=np.uint8)
    source, read = from_arrays(pixels, np.arange(images) % 3, ["a", "b", "c"], given), []

    def reading(row: int) -> Record:
        read.append(row)
        return source.read(row)

    return replace(source, read=reading), read


def pixels_by_id(dataset: Dataset, split: str) -> dict[str, bytes]:
    subset = unseal_test(dataset) if split == "test" else getattr(dataset, split)
    return {
        name: image.tobytes() for name, image in zip(subset.ids, subset.gather(np.arange(len(subset))), strict=True)
    }


@pytest.mark.parametrize("given", [None, ["train"] * 60 + ["test"] * 40, ["train"] * 60 + ["val"] * 40])
def test_no_other_image_is_decoded_and_the_splits_are_the_same(given: list[str] | None) -> None:
    source, read = counted(given=given)
    part = open_dataset(LIMITED, source=source)
    assert sorted(read) == sorted(
        int(name.rpartition("/")[2]) + (60 if name.startswith("val") else 0)
        for name in (*part.train.ids, *part.val.ids)
    )
    assert len(read) == 20
    whole = open_dataset(LIMITED, source=source, whole=True)
    assert part.splits_record()["splits"] == whole.splits_record()["splits"]
    assert (part.config, part.test_size) == (whole.config, whole.test_size)
    assert part.pool().ids == whole.pool().ids
    for split in ("train", "val", *(["test"] if part.test_size else [])):
        assert pixels_by_id(part, split) == pixels_by_id(whole, split)
    if not part.test_size:
        with pytest.raises(UserError, match="has no test split"):
            unseal_test(part)


def test_runs_of_before_find_their_data() -> None:
    source, read = counted()
    record = open_dataset(LIMITED, source=source, whole=True).splits_record()
    read.clear()
    part = open_dataset(LIMITED, source=source)
    assert part.hash != record["hash"]
    again = part.as_recorded(record, "r")
    assert again.hash == record["hash"]
    assert again.splits_record() == record
    assert len(read) == 20  # the other images are in the cache
    same = part.as_recorded(part.splits_record(), "r")
    assert same.splits_record() == part.splits_record()
    assert same.test_size == 25
    with pytest.raises(UserError, match="has changed since it was trained"):
        part.as_recorded(record | {"hash": "0"}, "r")
    splits = {**part.splits_record()["splits"], "test": ["000001"]}
    with pytest.raises(UserError, match="the images of the test split are not those in the data"):
        part.with_splits(splits)


def test_a_limit_that_keeps_all_and_one_without_val() -> None:
    source, _ = counted()
    whole = open_dataset(LIMITED.model_copy(update={"limit": 1000}), source=source)
    assert len(whole.train) + len(whole.val) == 75
    alone = open_dataset(LIMITED.model_copy(update={"val_fraction": 0.0}), source=source)
    assert (len(alone.train), len(alone.val), alone.test_size) == (20, 0, 25)
