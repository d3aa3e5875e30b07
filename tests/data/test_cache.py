from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith.data import cache as module
from convsmith.data.cache import Failure, Images, native_shape, open_images, pixel_moments
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import decode
from convsmith.data.sources import Source, from_arrays, open_source
from convsmith.errors import UserError

Plant = Callable[..., Path]
RULES = DecodeRules(working_size=8)
PATHS = [f"{name}/{i}.png" for name in ("cat", "owl") for i in range(40)]


def source_of(root: Path) -> Source:
    return open_source(DataConfig(source=str(root)))


def same(one: Images, other: Images) -> bool:
    return one.hash == other.hash and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("pixels", "kept", "moments")
    )


def test_the_cache_holds_what_decode_gives_and_is_read_only(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    calls: list[tuple[int, int]] = []
    images = open_images(source_of(root), RULES, cache, progress=lambda done, total: calls.append((done, total)))
    expected = np.stack([decode(root / path, RULES) for path in sorted(PATHS)])
    np.testing.assert_array_equal(images.pixels, expected)
    assert images.kept.tolist() == list(range(80))
    assert calls[-1] == (80, 80)
    floats = expected.astype(np.float64)
    np.testing.assert_array_equal(images.moments[:, 0], floats.sum(axis=(1, 2)))
    np.testing.assert_array_equal(images.moments[:, 1], (floats**2).sum(axis=(1, 2)))
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0


def test_a_second_start_decodes_nothing(plant: Plant, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(plant(*PATHS))
    first = open_images(source, RULES, cache)
    monkeypatch.setattr(module, "decode_deep", None)
    monkeypatch.setattr(module, "read_header", None)
    assert same(open_images(source, RULES, cache), first)


def test_the_key_is_what_goes_in(plant: Plant, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(plant(*PATHS))
    open_images(source, RULES, cache)
    open_images(source, DecodeRules(working_size=8, background="red"), cache)
    open_images(dataclasses.replace(source, fingerprint="other"), RULES, cache)
    monkeypatch.setattr(module, "CACHE_VERSION", -1)
    open_images(source, RULES, cache)
    assert len([path for path in (cache / "images").iterdir() if path.is_dir()]) == 4


def test_the_hash_knows_pixels_labels_ids_and_classes(cache: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    labels = np.arange(10) % 2
    one = from_arrays(pixels, labels)
    other_pixel = pixels.copy()
    other_pixel[3, 3, 3] ^= 1
    others = [
        from_arrays(other_pixel, labels),
        from_arrays(pixels, 1 - labels),
        from_arrays(pixels, labels, classes=["a", "b"]),
        from_arrays(pixels, labels, given=["train"] * 10),
    ]
    hashes = {open_images(source, RULES, cache).hash for source in [one, *others]}
    assert len(hashes) == 5
    assert open_images(dataclasses.replace(one, fingerprint="moved"), RULES, cache).hash in hashes


def test_failures_stop_with_the_list_or_are_counted(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    whole = (root / "cat/0.png").read_bytes()
    (root / "cat/0.png").write_bytes(whole[:100])
    (root / "owl/5.png").write_bytes(b"")
    source = source_of(root)
    for _ in range(2):  # built, then found
        with pytest.raises(UserError) as caught:
            open_images(source, RULES, cache)
        assert str(caught.value) == (
            f"2 of 80 images of {root} cannot be decoded: cat/0.png (truncated), owl/5.png (empty); "
            f"'convsmith data check {root}' lists them, data.on_error=skip leaves them out"
        )
        images = open_images(source, RULES, cache, on_error="skip")
        assert images.failures[1] == Failure("owl/5.png", "empty", "zero bytes")
        assert len(images.kept) == len(images.pixels) == 78
        assert [source.ids[row] for row in images.kept] == sorted(set(PATHS) - {"cat/0.png", "owl/5.png"})


def test_many_failures_are_cut_short_and_none_left_is_an_error(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    for path in PATHS:
        (root / path).write_text("gone")
    for on_error in ("stop", "skip"):
        with pytest.raises(UserError, match=r"80 of 80 .* cannot be decoded: .* and 70 more; 'convsmith data check"):
            open_images(source_of(root), RULES, cache, on_error=on_error)  # type: ignore[arg-type]


def test_an_unreadable_file_stops_and_is_not_remembered(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    source = source_of(root)
    (root / "owl/5.png").rename(root / "away")
    with pytest.raises(UserError, match=r"cannot read 'owl/5\.png' of .*: No such file"):
        open_images(source, RULES, cache, on_error="skip")
    (root / "away").rename(root / "owl/5.png")
    assert len(open_images(source, RULES, cache).kept) == 80


def test_an_interrupted_build_leaves_nothing(plant: Plant, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(plant(*PATHS))

    def interrupt(row: int) -> Path:
        if row == 70:
            raise KeyboardInterrupt
        return source.read(row)  # type: ignore[return-value]

    with pytest.raises(KeyboardInterrupt):
        open_images(dataclasses.replace(source, read=interrupt), RULES, cache)
    assert [path.suffix for path in (cache / "images").iterdir()] == [".lock"]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_build_is_not_found_and_the_next_one_is_whole(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    program = f"""
import dataclasses, os, signal, pathlib
from convsmith.data.cache import open_images
from convsmith.data.config import DataConfig
from convsmith.data.config import DecodeRules
from convsmith.data.sources import open_source
source = open_source(DataConfig(source={str(root)!r}))
read = lambda row: os.kill(os.getpid(), signal.SIGKILL) if row == 70 else source.read(row)
open_images(dataclasses.replace(source, read=read), DecodeRules(working_size=8), pathlib.Path({str(cache)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.suffix == ".partial" for path in (cache / "images").iterdir())
    source = source_of(root)
    images = open_images(source, RULES, cache)
    assert len(images.kept) == 80
    assert not any(path.suffix == ".partial" for path in (cache / "images").iterdir())
    shutil.rmtree(cache)
    assert same(open_images(source, RULES, cache), images)


def test_a_cache_that_was_cut_short_afterwards_is_built_anew(plant: Plant, cache: Path) -> None:
    source = source_of(plant(*PATHS))
    first = open_images(source, RULES, cache)
    expected = first.pixels.copy()
    pixels = next((cache / "images").glob("*/pixels"))
    pixels.unlink()
    pixels.write_bytes(b"short")
    np.testing.assert_array_equal(open_images(source, RULES, cache).pixels, expected)


def test_two_at_once_build_it_once(plant: Plant, cache: Path) -> None:
    source = source_of(plant(*PATHS))
    reads: list[int] = []

    def read(row: int) -> Path:
        reads.append(row)
        return source.read(row)  # type: ignore[return-value]

    counted = dataclasses.replace(source, read=read)
    found: list[Images] = []
    threads = [threading.Thread(target=lambda: found.append(open_images(counted, RULES, cache))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reads) == list(range(80))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_a_cache_that_cannot_be_written_is_named(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(plant(*PATHS))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=rf"cannot write to the cache folder '{file}' .*CONVSMITH_CACHE"):
        open_images(source, RULES, file)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"\(No space left on device\): set data\.cache or CONVSMITH_CACHE"):
            open_images(source, RULES, place)
    assert not [path for path in (place / "images").iterdir() if path.is_dir()]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"need .* MB, but only 0\.0 MB are free"):
        open_images(source, RULES, place)


def test_native_shape_is_read_once_from_the_headers(plant: Plant, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant("a/1.png", "b/1.png")
    (root / "b" / "bad.png").write_text("reported when it is decoded")
    source = source_of(root)
    assert native_shape(source, cache) == ((12, 12), 3)
    monkeypatch.setattr(module, "read_header", None)
    assert native_shape(source, cache) == ((12, 12), 3)
    monkeypatch.undo()
    plant("b/2.png", size=(12, 13))
    assert native_shape(source_of(root), cache) == (None, 3)
    for path in root.rglob("?.png"):
        Image.new("L", (5, 6)).save(path)
    assert native_shape(source_of(root), cache) == ((6, 5), 1)


def test_moments_are_exact_for_large_white_images() -> None:
    white = np.full((2, 300, 200, 3), 255, dtype=np.uint8)
    assert (pixel_moments(white) == np.array([[60000 * 255] * 3, [60000 * 255**2] * 3])).all()
