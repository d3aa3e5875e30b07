from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith.data import building, mapped, native, parallel
from convsmith.data import cache as module
from convsmith.data.building import INDEX, PIXELS, Failure, pixel_moments
from convsmith.data.cache import Images, open_images
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.decode import Decoded, DecodeError, decode
from convsmith.data.depth import scan
from convsmith.data.native import native_shape
from convsmith.data.source import Index, Record, recall, remember
from convsmith.data.sources import Source, from_arrays, open_source
from convsmith.data.stored import Arrays, read_arrays, write_arrays
from convsmith.errors import UserError

Plant = Callable[..., Path]
RULES = DecodeRules(working_size=8)
PATHS = [f"{name}/{i}.png" for name in ("cat", "owl") for i in range(40)]


def source_of(root: Path) -> Source:
    return open_source(DataConfig(source=str(root)))


def same(one: Images, other: Images) -> bool:
    return (
        one.hash == other.hash
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("kept", "moments"))
        and np.array_equal(one.pixels.array, other.pixels.array)
    )


def test_the_cache_holds_what_decode_gives_and_is_read_only(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    calls: list[tuple[int, int]] = []
    images = open_images(source_of(root), RULES, cache, progress=lambda done, total: calls.append((done, total)))
    expected = np.stack([decode(root / path, RULES) for path in sorted(PATHS)])
    np.testing.assert_array_equal(images.pixels.array, expected)
    assert images.kept.tolist() == list(range(80))
    assert calls[-1] == (80, 80)
    floats = expected.astype(np.float64)
    np.testing.assert_array_equal(images.moments[:, 0], floats.sum(axis=(1, 2)))
    np.testing.assert_array_equal(images.moments[:, 1], (floats**2).sum(axis=(1, 2)))
    with pytest.raises(ValueError, match="read-only"):
        images.pixels.array[0] = 0


def test_a_second_start_decodes_nothing(plant: Plant, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(plant(*PATHS))
    first = open_images(source, RULES, cache)
    monkeypatch.setattr(building, "decode_deep", None)
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
            f"convsmith data check {root} lists them, --data.on_error skip leaves them out"
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
        with pytest.raises(UserError, match=r"80 of 80 .* cannot be decoded: .* and 70 more; convsmith data check "):
            open_images(source_of(root), RULES, cache, on_error=on_error)  # type: ignore[arg-type]


def test_an_unreadable_file_stops_or_is_skipped_until_it_can_be_read(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    (root / "owl/5.png").rename(root / "away")
    (root / "owl/5.png").symlink_to(root / "nowhere")
    source = source_of(root)
    with pytest.raises(UserError, match=r"cannot read 'owl/5\.png' of .*: No such file.*; data\.on_error=skip leaves"):
        open_images(source, RULES, cache)
    for _ in range(2):  # decoded, then from the cache
        skipped = open_images(source, RULES, cache, on_error="skip")
        assert [(failure.id, failure.kind) for failure in skipped.failures] == [("owl/5.png", "unreadable")]
        assert len(skipped.kept) == 79
    with pytest.raises(UserError, match=r"1 of 80 images of .* cannot be decoded: owl/5\.png \(unreadable\)"):
        open_images(source, RULES, cache)
    (root / "away").rename(root / "nowhere")
    assert len(open_images(source, RULES, cache).kept) == 80
    assert len(open_images(source, RULES, cache, on_error="skip").kept) == 80


def test_memory_that_runs_out_is_no_fault_of_an_image(
    plant: Plant, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(record: object, rules: object) -> None:
        raise DecodeError("unreadable", "decoding it takes more memory than is free")

    monkeypatch.setattr("convsmith.data.building.decode_deep", without_memory)
    with pytest.raises(UserError, match=r"cannot read 'a/1\.png' of .*: decoding it takes more memory than is free$"):
        open_images(source_of(plant("a/1.png", "b/1.png")), RULES, cache, on_error="skip")


def interrupted_at(row: int, source: Source) -> Source:
    def read(at: int) -> Record:
        if at == row:
            raise KeyboardInterrupt
        return source.read(at)

    return dataclasses.replace(source, read=read)


def test_an_interruption_before_anything_was_kept_leaves_nothing(plant: Plant, cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_images(interrupted_at(70, source_of(plant(*PATHS))), RULES, cache)
    assert [path.suffix for path in (cache / "images").iterdir()] == [".lock"]


@pytest.fixture
def mixed(plant: Plant) -> Source:
    """24 images with failures of two kinds and a remark among the first."""
    root = plant(*PATHS[:20], *PATHS[40:44])
    (root / "cat/3.png").write_text("no image")
    (root / "cat/5.png").unlink()
    (root / "cat/5.png").symlink_to(root / "nowhere")
    pages = [Image.new("RGB", (12, 12), color) for color in ("red", "blue")]
    pages[0].save(root / "cat/7.png", format="TIFF", save_all=True, append_images=pages[1:])
    return source_of(root)


@pytest.fixture
def begun(mixed: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A build of `mixed` that was interrupted at row 20, with a part an image; the rows that are read from then on."""
    with monkeypatch.context() as patch:
        patch.setattr(building, "KEEP_SECONDS", 0.0)
        patch.setattr(parallel, "CHUNK", 1)
        patch.setattr(os, "cpu_count", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            open_images(interrupted_at(20, mixed), RULES, cache, "skip")
    assert len(list((cache / "images").glob("*.partial/parts/*"))) == 18  # and two are in flight
    rows: list[int] = []
    decode_deep = building.decode_deep

    def counting(record: Path, rules: DecodeRules) -> Decoded:
        rows.append(mixed.ids.index(record.relative_to(mixed.name).as_posix()))
        return decode_deep(record, rules)

    monkeypatch.setattr(building, "decode_deep", counting)
    return rows


def undisturbed(source: Source, tmp_path: Path) -> dict[str, bytes]:
    open_images(source, RULES, tmp_path / "other", "skip")
    return files_of(tmp_path / "other")


def files_of(cache: Path) -> dict[str, bytes]:
    (folder,) = (path for path in (cache / "images").iterdir() if path.suffix != ".lock")
    index = read_arrays(folder / INDEX, **building.array_forms(RULES))
    assert index is not None
    arrays = {name: array.tobytes() for name, array in index.items()}
    return arrays | {"pixels": (folder / PIXELS).read_bytes(), "names": repr(sorted(os.listdir(folder))).encode()}


def test_what_an_interrupted_build_has_decoded_is_not_decoded_again(
    mixed: Source, cache: Path, begun: list[int], tmp_path: Path
) -> None:
    calls: list[tuple[int, int]] = []
    open_images(mixed, RULES, cache, "skip", lambda done, total: calls.append((done, total)))
    assert begun == list(range(18, 24))
    assert calls == [(24, 24)]
    assert files_of(cache) == undisturbed(mixed, tmp_path)


def test_processes_decode_what_threads_do(
    mixed: Source, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(mixed.name)
    deep = np.arange(144, dtype=np.uint16).reshape(12, 12) * 400
    Image.fromarray(deep).save(root / "owl/deep.png")
    Image.new("RGB", (3000, 2000), "red").save(root / "owl/large.png")
    source = source_of(root)
    expected = undisturbed(source, tmp_path)
    monkeypatch.setattr(building, "MANY", 1)
    monkeypatch.setattr(building, "usable_cores", lambda: 2)
    here: list[str] = []
    examine = building._examine

    def counting(record: Record, rules: DecodeRules) -> object:
        assert isinstance(record, Path)
        here.append(record.name)
        return examine(record, rules)

    monkeypatch.setattr(building, "_examine", counting)
    open_images(source, RULES, cache, "skip")
    assert files_of(cache) == expected
    assert sorted(here) == ["3.png", "5.png", "7.png", "deep.png", "large.png"]


def test_a_build_goes_on_behind_the_last_part_that_is_whole(
    mixed: Source, cache: Path, begun: list[int], tmp_path: Path
) -> None:
    (partial,) = (cache / "images").glob("*.partial")
    expected = undisturbed(mixed, tmp_path)

    def pixel(count: int) -> None:  # of an image, of which there are two fewer than rows from row 15 on
        whole = (partial / PIXELS).read_bytes()
        (partial / PIXELS).write_bytes(flipped(count * 192 + 5)(whole))

    def part(number: int, content: bytes | None) -> None:
        path = partial / "parts" / f"{number}.npz"
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    first = (partial / "parts/0.npz").read_bytes()
    begun_copy = tmp_path / "begun"
    shutil.copytree(partial, begun_copy)
    damages: list[tuple[int, Callable[[], object]]] = [
        (16, lambda: pixel(14)),
        (0, lambda: pixel(0)),
        (0, lambda: (partial / PIXELS).write_bytes(b"")),
        (4, lambda: (partial / PIXELS).write_bytes((partial / PIXELS).read_bytes()[: 4 * 192 + 7])),
        (9, lambda: part(9, None)),
        (9, lambda: part(9, b"")),
        (9, lambda: part(9, flipped(300)(first))),
        (9, lambda: part(9, first)),
        (18, lambda: (partial / PIXELS).write_bytes((partial / PIXELS).read_bytes() + b"written, but not kept")),
    ]
    for row, damage in damages:
        shutil.rmtree(cache / "images")
        shutil.copytree(begun_copy, partial)
        begun.clear()
        damage()
        open_images(mixed, RULES, cache, "skip")
        assert begun == list(range(row, 24))
        assert files_of(cache) == expected


def test_a_file_that_can_be_read_now_is_decoded_when_a_build_goes_on(
    mixed: Source, cache: Path, begun: list[int], plant: Plant
) -> None:
    plant("nowhere", root="data")
    assert len(open_images(mixed, RULES, cache, "skip").kept) == 23
    assert begun == list(range(15, 24))


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_build_is_not_found_and_the_next_one_goes_on(
    plant: Plant, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(*PATHS)
    program = f"""
import dataclasses, os, signal, pathlib
from convsmith.data import building, parallel
from convsmith.data.cache import open_images
from convsmith.data.config import DataConfig
from convsmith.data.config import DecodeRules
from convsmith.data.sources import open_source
building.KEEP_SECONDS, parallel.CHUNK, os.cpu_count = 0.0, 4, lambda: 1
source = open_source(DataConfig(source={str(root)!r}))
read = lambda row: os.kill(os.getpid(), signal.SIGKILL) if row == 70 else source.read(row)
open_images(dataclasses.replace(source, read=read), DecodeRules(working_size=8), pathlib.Path({str(cache)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.suffix == ".partial" for path in (cache / "images").iterdir())
    source = source_of(root)
    rows: list[int] = []

    def read(row: int) -> Record:
        rows.append(row)
        return source.read(row)

    images = open_images(dataclasses.replace(source, read=read), RULES, cache)
    assert len(images.kept) == 80
    assert rows[0] > 50
    assert not any(path.suffix == ".partial" for path in (cache / "images").iterdir())
    shutil.rmtree(cache)
    assert same(open_images(source, RULES, cache), images)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Source:
    """Forty images of 64 bytes, whose checksums are of four images each."""
    monkeypatch.setattr(mapped, "BLOCK", 4 * 64 + 10)
    rng = np.random.default_rng(0)
    return from_arrays(rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), rng.integers(0, 3, 40))


GRAY = DecodeRules(working_size=8, channels=1)


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((PIXELS, flipped(at)) for at in (0, 255, 256, 1000, 40 * 64 - 1)),
        (PIXELS, lambda whole: bytes(len(whole))),
        (PIXELS, lambda whole: whole[:64] + whole[128:192] + whole[64:128] + whole[192:]),  # two images swapped
        *((name, change) for name in (PIXELS, INDEX) for change in (None, lambda whole: whole[:-1])),
        (INDEX, lambda whole: b""),
        (INDEX, lambda whole: bytes(len(whole))),
        *((INDEX, flipped(at)) for at in (0, 30, 200, 700, 2000, -900, -10)),
    ],
)
def test_a_cache_that_was_damaged_is_built_anew_with_a_note(
    small: Source, cache: Path, name: str, change: Callable[[bytes], bytes] | None, caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_images(small, GRAY, cache)
    path = next((cache / "images").glob(f"*/{name}"))
    whole = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(whole))
    assert same(open_images(small, GRAY, cache), expected)
    (line,) = caplog.messages
    assert line.startswith(f"warning: the cache of decoded images of {small.name} was damaged ({name}")
    assert line.endswith(") and is built anew")
    assert same(open_images(small, GRAY, cache), expected)
    assert len(caplog.messages) == 1


def test_a_cache_is_of_the_ids_and_labels_that_are_read_now(
    small: Source, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_images(small, GRAY, cache)
    other = dataclasses.replace(small, labels=(small.labels + 1) % 3)
    assert open_images(other, GRAY, cache).hash != first.hash
    assert "does not match the source" in caplog.messages[0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"kept": np.arange(40)[::-1]},
        {"kept": np.arange(40) + 1},
        {"kept": np.arange(40.0)},
        {"kept": np.arange(39)},
        {"moments": np.zeros((39, 2, 1), np.int64)},
        {"moments": np.zeros((40, 2, 3), np.int64)},
        {"depths": np.zeros((41, 3))},
        {"depths": np.array("3")},
        {"checksums": np.zeros(9, np.uint32)},
        {"facts": np.array("[" * 9999)},
        {"facts": np.array('["a", "b"]')},
        {"facts": np.array('{"hash": 1}')},
        {"more": np.zeros(1)},
    ],
)
def test_an_index_of_odd_content_is_not_used(
    small: Source, cache: Path, arrays: Arrays, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_images(small, GRAY, cache)
    path = next((cache / "images").glob(f"*/{INDEX}"))
    with np.load(path) as stored:
        write_arrays(path, dict(stored) | arrays)
    assert same(open_images(small, GRAY, cache), first)
    assert len(caplog.messages) == 1


def test_a_damaged_cache_whose_source_cannot_be_read_is_one_line(plant: Plant, cache: Path) -> None:
    root = plant(*PATHS)
    source = source_of(root)
    open_images(source, RULES, cache)
    (root / "owl/5.png").unlink()
    next((cache / "images").glob(f"*/{PIXELS}")).write_bytes(b"short")
    with pytest.raises(UserError, match=r"cannot read 'owl/5\.png' of .*: No such file"):
        open_images(source, RULES, cache)


def test_a_disk_that_keeps_something_else_is_named(small: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda data, value=0, crc32=zlib.crc32: crc32(data, value) ^ len(data))
    with pytest.raises(UserError, match=r"does not keep what is written \(pixels does not match its checksums\)"):
        open_images(small, GRAY, cache)


def test_pixels_are_compared_with_their_checksums_once_in_a_process(
    small: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_images(small, GRAY, cache)
    monkeypatch.setattr(mapped, "thread_map", None)
    assert same(open_images(small, GRAY, cache), first)


def test_what_is_stored_beside_the_images_is_made_anew_if_it_is_damaged(small: Source, cache: Path) -> None:
    shape = dataclasses.replace(small, native_size=None)
    index = Index(small.classes, small.labels, small.given)
    for suffix, answer in (
        ("", lambda: recall(cache, small.fingerprint) or remember(cache, small.fingerprint, index)),
        (".depths", lambda: scan(small, cache)),
        (".shape", lambda: native_shape(shape, cache)),
    ):
        expected = repr(answer())
        path = cache / "sources" / f"{small.fingerprint}{suffix}.npz"
        whole = path.read_bytes()
        for damaged in (flipped(len(whole) // 2)(whole), whole[:100], b""):
            path.write_bytes(damaged)
            assert repr(answer()) == expected
        assert path.stat().st_size == len(whole)


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
        with pytest.raises(UserError, match=r"\(No space left on device\): set --data\.cache or CONVSMITH_CACHE"):
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
    monkeypatch.setattr(native, "read_header", None)
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
