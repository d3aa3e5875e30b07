from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convsmith.data.config import DataConfig, Preprocessing
from convsmith.data.dataset import Dataset, Subset, channel_statistics, input_shape, open_dataset, unseal_test
from convsmith.data.sources import from_arrays
from convsmith.errors import UserError

Plant = Callable[..., Path]
TREE = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in ("cat", "owl") for i in range(5)]


def arrays(count: int = 120, channels: int = 3, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)  # each image tells its number
    return pixels, np.arange(count) % 3


def opened(**settings: object) -> Dataset:
    return open_dataset(DataConfig(**settings), source=from_arrays(*arrays()))  # type: ignore[arg-type]


def test_rows_labels_and_ids_belong_together() -> None:
    pixels, labels = arrays()
    dataset = opened()
    seen = []
    for subset in (dataset.train, dataset.val, unseal_test(dataset)):
        images = subset.gather(np.arange(len(subset)))
        numbers = images[:, 0, 0, 0]
        np.testing.assert_array_equal(images, pixels[numbers])
        np.testing.assert_array_equal(subset.labels, labels[numbers])
        assert [int(name) for name in subset.ids] == numbers.tolist()
        assert subset.labels.dtype == subset.rows.dtype == np.int64
        assert subset.shape == (8, 8, 3)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(120))
    np.testing.assert_array_equal(dataset.train.gather(np.array([5, 0, 5]))[1], dataset.train.gather([0])[0])
    copy = dataset.train.gather(slice(0, 2))
    copy[:] = 0
    assert dataset.train.gather(slice(0, 2)).any()


def test_digits_are_split_70_10_20() -> None:
    dataset = open_dataset(DataConfig(source="digits"))
    assert [len(subset) for subset in (dataset.train, dataset.val, unseal_test(dataset))] == [1258, 180, 359]
    config = dataset.config
    assert (config.image_size, config.working_size, config.channels) == (8, 8, 1)
    assert (config.val_fraction, config.test_fraction) == (0.1, 0.2)
    assert dataset.classes == tuple("0123456789")


def test_the_resolved_config_gives_the_same_data_again() -> None:
    first = opened(split_seed=3, limit=40)
    again = open_dataset(first.config, source=from_arrays(*arrays()))
    assert again.config == first.config
    assert again.splits_record() == first.splits_record()
    assert again.preprocessing() == first.preprocessing()
    assert opened(split_seed=4, limit=40).splits_record() != first.splits_record()


def test_a_tree_with_train_and_val_has_no_test_split(plant: Plant) -> None:
    dataset = open_dataset(DataConfig(source=str(plant(*TREE))))
    assert set(dataset.train.ids) == set(TREE[:10])
    assert set(dataset.val.ids) == set(TREE[10:])
    assert (dataset.config.val_fraction, dataset.config.test_fraction) == (None, None)
    with pytest.raises(UserError, match="has no test split"):
        unseal_test(dataset)


def test_class_folders_alone_are_split_70_15_15(plant: Plant) -> None:
    root = plant(*(f"{name}/{i}.png" for name in ("cat", "owl") for i in range(20)))
    dataset = open_dataset(DataConfig(source=str(root)))
    assert [len(dataset.train), len(dataset.val), len(unseal_test(dataset))] == [28, 6, 6]
    whole = open_dataset(DataConfig(source=str(root), test_fraction=0, val_fraction=0.5))
    assert list(whole.splits_record()["splits"]) == ["train", "val"]
    assert len(whole.val) == 20
    with pytest.raises(UserError, match="leave nothing to train on"):
        open_dataset(DataConfig(source=str(root), val_fraction=0.9))


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((12, 12), {}, (12, 12)),
        ((12, 13), {}, (64, 64)),
        ((96, 96), {}, (96, 96)),
        ((97, 97), {}, (64, 64)),
        ((12, 12), {"image_size": 20}, (20, 20)),
        ((12, 12), {"working_size": 20}, (12, 20)),
    ],
)
def test_sizes_are_decided_by_the_data_where_the_config_does_not(
    plant: Plant, size: tuple[int, int], settings: dict[str, int], expected: tuple[int, int]
) -> None:
    root = plant(*TREE, size=size)
    config = open_dataset(DataConfig(source=str(root), **settings)).config  # type: ignore[arg-type]
    assert (config.image_size, config.working_size) == expected
    assert input_shape(DataConfig(source=str(root), **settings)) == (3, expected[0], 2)  # type: ignore[arg-type]


def test_headroom_is_for_a_working_size_that_is_left_open() -> None:
    source = from_arrays(*arrays())
    assert open_dataset(DataConfig(), source=source, headroom=1.15).config.working_size == 10
    assert open_dataset(DataConfig(working_size=9), source=source, headroom=1.15).config.working_size == 9
    with pytest.raises(UserError, match=r"data\.working_size 5 is smaller than data\.image_size 8"):
        open_dataset(DataConfig(working_size=5), source=source)


def test_gray_stays_gray_unless_it_is_asked_to_be_rgb() -> None:
    pixels, labels = arrays(channels=1)
    source = from_arrays(pixels, labels)
    assert open_dataset(DataConfig(), source=source).train.shape == (8, 8, 1)
    assert open_dataset(DataConfig(channels=3), source=source).train.shape == (8, 8, 3)


def test_no_public_name_leads_to_the_test_split() -> None:
    """What a caller can reach without an underscore, however deep, holds no test row."""
    dataset = opened()
    sealed = {int(name) for name in unseal_test(dataset).ids}
    public = {name: getattr(dataset, name) for name in dir(dataset) if not name.startswith("_")}
    subsets = [public["train"], public["val"], public["pool"]()]
    assert {name for name, value in public.items() if isinstance(value, (Subset, np.ndarray))} == {"train", "val"}
    for subset in subsets:
        for name in (name for name in dir(subset) if not name.startswith("_")):
            value = getattr(subset, name)
            if isinstance(value, np.ndarray):
                assert len(value) == len(subset)
        assert sealed.isdisjoint(subset.rows.tolist())
        assert sealed.isdisjoint(subset.gather(np.arange(len(subset)))[:, 0, 0, 0].tolist())
        assert len(subset.moments()) == len(subset)


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_statistics_are_numpys(channels: int) -> None:
    pixels, labels = arrays(channels=channels)
    dataset = open_dataset(DataConfig(), source=from_arrays(pixels, labels))
    mean, std = channel_statistics(dataset.train)
    floats = dataset.train.gather(np.arange(len(dataset.train))) / 255
    np.testing.assert_allclose(mean, floats.mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, floats.std(axis=(0, 1, 2)), rtol=1e-13)
    train = dataset.train
    bare = Subset(np.ascontiguousarray(pixels), train.rows, train.labels, train.ids)
    assert channel_statistics(bare) == (mean, std)


def test_the_deviation_of_a_constant_channel_is_one() -> None:
    pixels = np.zeros((30, 8, 8, 3), dtype=np.uint8)
    pixels[..., 1], pixels[..., 2] = 77, 255
    mean, std = channel_statistics(open_dataset(DataConfig(), source=from_arrays(pixels, np.arange(30) % 2)).train)
    assert mean == (0, pytest.approx(77 / 255), 1)
    assert std == (1, 1, 1)


def test_preprocessing_is_that_of_train() -> None:
    dataset = opened(resize="pad", interpolation="bicubic", background="black")
    mean, std = channel_statistics(dataset.train)
    assert dataset.preprocessing() == Preprocessing(
        image_size=8, working_size=8, channels=3, resize="pad", interpolation="bicubic", background="black",
        mean=mean, std=std,
    )  # fmt: skip


def test_splits_can_be_recorded_and_given_back() -> None:
    dataset = opened(split_seed=7)
    record = json.loads(json.dumps(dataset.splits_record()))
    assert (record["hash"], record["seed"]) == (dataset.hash, 7)
    assert opened(split_seed=8).with_splits(record["splits"]).splits_record()["splits"] == record["splits"]
    pool = dataset.pool()
    assert len(pool) == len(dataset.train) + len(dataset.val)
    fold = dataset.with_splits({"train": pool.ids[10:], "val": pool.ids[:10]})
    assert fold.val.ids == pool.ids[:10]
    assert unseal_test(fold).ids == unseal_test(dataset).ids


def test_splits_that_do_not_fit_are_refused() -> None:
    dataset = opened()
    train, val = dataset.train.ids, dataset.val.ids
    for splits, message in (
        ({"train": train, "val": ["nobody"]}, "the val split contains 'nobody', which is not in the data"),
        ({"train": train, "val": train[:1]}, "is in more than one split"),
        ({"train": unseal_test(dataset).ids, "val": val}, "is in more than one split"),
        ({"train": [train[0], train[0]], "val": val}, "in one split twice"),
    ):
        with pytest.raises(UserError, match=message):
            dataset.with_splits(splits)


def test_files_that_do_not_decode_are_left_out_and_counted(plant: Plant) -> None:
    root = plant(*TREE)
    (root / "train/cat/3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/cat/3\.png \(empty\)"):
        open_dataset(DataConfig(source=str(root)))
    dataset = open_dataset(DataConfig(source=str(root), on_error="skip"))
    assert [failure.id for failure in dataset.failures] == ["train/cat/3.png"]
    assert set(dataset.train.ids) == set(TREE[:10]) - {"train/cat/3.png"}
    for path in root.rglob("cat/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no image of class 'cat' of .* can be decoded"):
        open_dataset(DataConfig(source=str(root), on_error="skip"))


def test_cifar10_is_the_real_thing(cifar10: Path, tmp_path: Path) -> None:
    """Its first thousands of rows, for speed: the whole has means .49140 .48216 .44653 (see shared/data/README.md)."""
    import pyarrow.parquet as pq

    for split, groups in (("train", [0, 1, 2]), ("test", [0])):
        file = pq.ParquetFile(cifar10 / f"{split}-00000-of-00001.parquet")
        pq.write_table(file.read_row_groups(groups), tmp_path / f"{split}-00000-of-00001.parquet")
    dataset = open_dataset(DataConfig(source=str(tmp_path)))
    assert (len(dataset.train), len(dataset.val), len(unseal_test(dataset))) == (2550, 450, 1000)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert (dataset.config.image_size, dataset.config.channels) == (32, 3)
    mean, std = channel_statistics(dataset.pool())
    np.testing.assert_allclose(mean, (0.49140, 0.48216, 0.44653), atol=0.01)
    np.testing.assert_allclose(std, (0.24703, 0.24349, 0.26159), atol=0.01)
    # A second start needs no library that takes long to import.
    program = f"""
import sys
from convsmith.data.config import DataConfig
from convsmith.data.dataset import open_dataset
dataset = open_dataset(DataConfig(source={str(tmp_path)!r}))
dataset.preprocessing(), dataset.train.gather(slice(0, 128))
print(dataset.hash, [name for name in ("pyarrow", "torchvision", "sklearn", "scipy") if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == [dataset.hash, "[]"]
