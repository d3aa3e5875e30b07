"""Arrays in .npz files, as MedMNIST lays them out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from convsmith.data.config import DataConfig
from convsmith.data.source import Source
from convsmith.data.sources import open_source
from data.small import refused

IMAGES = np.arange(6 * 8 * 8).reshape(6, 8, 8).astype(np.uint8)
LABELS = np.array([[3], [5], [3], [5], [3], [5]])


def opened(path: Path, **arrays: object) -> Source:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return open_source(DataConfig(source=str(path)))


def test_splits_and_labels_are_those_of_the_arrays(tmp_path: Path) -> None:
    path = tmp_path / "medical.npz"
    arrays = {
        f"{split}_{what}": array
        for split in ("train", "val", "test")
        for what, array in (("images", IMAGES), ("labels", LABELS))
    }
    source = opened(path, **arrays)
    assert source.name == str(path)
    assert source.classes == ("3", "5")
    assert source.labels.tolist() == [0, 1] * 9
    assert source.given.tolist() == ["train"] * 6 + ["val"] * 6 + ["test"] * 6
    np.testing.assert_array_equal(source.read(7), IMAGES[1])
    alone = opened(path, train_images=np.stack([IMAGES] * 3, axis=-1), train_labels=LABELS[:, 0])
    assert (set(alone.given.tolist()), alone.native_channels) == ({""}, 3)


def test_what_it_cannot_be_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for arrays, message in (
        ({"x": IMAGES, "y": LABELS}, "expected train_images uint8"),
        ({"train_images": IMAGES, "train_labels": np.eye(6)}, "has 6 labels an image in train_labels"),
        ({"train_images": IMAGES / 1.0, "train_labels": LABELS}, "are float64 [6, 8, 8]"),
        ({"train_images": IMAGES, "train_labels": LABELS[:4]}, "has 6 train_images, but 4 train_labels"),
        ({"train_images": IMAGES, "train_labels": np.array(3)}, "are of shape []"),
        ({"train_images": IMAGES, "train_labels": np.zeros((6, 1, 2), int)}, "are of shape [6, 1, 2]"),
        ({"train_images": IMAGES, "train_labels": np.zeros((6, 0), int)}, "are of shape [6, 0]"),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES, "val_labels": [*"353535"]},
            "some labels in",
        ),
        ({"train_images": IMAGES, "train_labels": np.array([print] * 6)}, "cannot be read as .npz: Object arrays"),
    ):
        assert message in refused(lambda arrays=arrays: opened(path, **arrays))  # type: ignore[misc]
    for content in (b"", b"PK", path.read_bytes()[:200]):
        path.write_bytes(content)
        assert "cannot be read as .npz" in refused(lambda: open_source(DataConfig(source=str(path))))


def test_arrays_beyond_memory_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsmith.data.npz.available", lambda: 100)
    said = refused(lambda: opened(tmp_path / "a.npz", train_images=IMAGES, train_labels=LABELS))
    assert "of memory, and 0 MB are free: write its images to Parquet" in said


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999, 8, 8), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 8), }",
        "{1: 2, 'a': 3}",
        "(" * 300,
        None,  # no .npy at all
    ],
)
def test_headers_that_lie_are_one_line(tmp_path: Path, header: str | None) -> None:
    content = b"text"
    if header is not None:
        content = b"\x93NUMPY\1\0" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n" + b"x" * 64
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as file:
        file.writestr("train_images.npy", content)
        file.writestr("train_labels.npy", content)
    assert "cannot be read as .npz" in refused(lambda: open_source(DataConfig(source=str(tmp_path / "h.npz"))))
