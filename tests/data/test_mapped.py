from __future__ import annotations

import mmap
import zlib
from pathlib import Path

import numpy as np
import pytest

from convsmith import memory
from convsmith.data import mapped
from convsmith.data.dataset import Subset
from convsmith.data.decode import Pixels
from convsmith.data.mapped import DamagedError, MappedPixels
from convsmith.errors import RunFailed

SHAPE = (50, 10, 9, 3)
PER_BLOCK = 7  # images of 270 bytes, which end at no page


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def path(pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mapped, "BLOCK", PER_BLOCK * 270 + 5)
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    return tmp_path / "pixels"


def checksums(pixels: Pixels) -> list[int]:
    return [zlib.crc32(pixels[start : start + PER_BLOCK].tobytes()) for start in range(0, len(pixels), PER_BLOCK)]


def damage(path: Path, image: int) -> None:
    content = bytearray(path.read_bytes())
    content[image * 270 + 100] ^= 1
    path.write_bytes(content)


@pytest.fixture(params=["fits into memory", "does not fit"])
def fits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(memory, "available", lambda: 2**30 if request.param == "fits into memory" else 2**10)
    return request.param == "fits into memory"


@pytest.mark.usefixtures("fits")
def test_images_are_those_of_the_file_in_any_order(path: Path, pixels: Pixels) -> None:
    images = MappedPixels(path, SHAPE, checksums(pixels))
    rng = np.random.default_rng(1)
    order = rng.permutation(50)
    parts = np.array_split(order, 6)
    for found, part in zip(images.batches(parts), parts, strict=True):
        np.testing.assert_array_equal(found, pixels[part])
    for rows in (np.array([3, 3, 49]), np.arange(0), np.array([7])):
        np.testing.assert_array_equal(images.take(rows), pixels[rows])
    subset = Subset(images, np.arange(5, 50), np.zeros(45, np.int64), [str(row) for row in range(45)])
    plain = Subset(pixels, subset.rows, subset.labels, subset.ids)
    parts = np.array_split(rng.permutation(45), 6)
    for ours, theirs in zip(subset.gathered(parts), plain.gathered(parts), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_damage_is_noticed_at_the_start_or_when_the_image_is_used(path: Path, pixels: Pixels, fits: bool) -> None:
    damage(path, 20)
    if fits:
        with pytest.raises(DamagedError, match="pixels does not match its checksums"):
            MappedPixels(path, SHAPE, checksums(pixels))
        return
    images = MappedPixels(path, SHAPE, checksums(pixels))
    np.testing.assert_array_equal(images.take(np.array([0, 13, 21, 49])), pixels[[0, 13, 21, 49]])
    with pytest.raises(RunFailed, match=r"was damaged \('.*pixels' does not match .* run the command again, or resume"):
        images.take(np.array([30, 14]))  # which shares a block with image 20
    assert not path.exists()


@pytest.mark.usefixtures("fits")
def test_a_file_of_another_size_or_number_of_blocks_is_refused(path: Path, pixels: Pixels) -> None:
    with pytest.raises(DamagedError, match="has 13,500 bytes instead of 13,230"):
        MappedPixels(path, (49, *SHAPE[1:]), checksums(pixels))
    with pytest.raises(DamagedError, match="does not match its checksums"):
        MappedPixels(path, SHAPE, checksums(pixels)[:-1])
    with pytest.raises(DamagedError, match="pixels: No such file"):
        MappedPixels(path.parent / "none" / "pixels", SHAPE, checksums(pixels))


def test_only_what_does_not_fit_is_asked_for_and_whole_pages_of_it(
    path: Path, pixels: Pixels, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    class Map:
        def madvise(self, advice: int, start: int = 0, length: int = 0) -> None:
            if advice == mmap.MADV_WILLNEED:
                calls.append((start, start + length))

    images = MappedPixels(path, SHAPE, checksums(pixels))
    monkeypatch.setattr(images, "_map", Map())
    images.will_need(np.array([20, 2, 3, 4, 20]))
    page = mmap.PAGESIZE
    expected = [(first * 270 // page * page, (last + 1) * 270) for first, last in [(2, 4), (20, 20)]]
    assert calls == ([] if fits else expected)
