from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL.PngImagePlugin import PngImageFile

from convsmith.data import containers, limits
from convsmith.data import decode as module
from convsmith.data.config import DecodeRules
from convsmith.data.decode import DecodeError, decode, read_header
from data.hostile_images import HEIC, MAKES, TRICKS, bmp_runs, encoded, exif, noisy, scans, small

RULES = DecodeRules(working_size=16)


def verdict(data: bytes) -> str:
    try:
        pixels = decode(data, RULES)
    except DecodeError as error:
        return error.kind if error.message else "silent"
    assert pixels.shape == (16, 16, 3)
    return "ok"


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str]:
    found = {}
    for name, data in small():
        began = time.thread_time()
        found[name] = verdict(data)
        assert time.thread_time() - began < 5, name
    return found


def test_every_image_of_the_corpus_decodes_or_has_a_verdict(verdicts: dict[str, str]) -> None:
    assert len(verdicts) > 400
    assert {verdicts[name] for name in MAKES} == {"ok", "unsupported"}
    found = Counter(verdicts.values())
    assert found["ok"] > 100
    assert found.keys() == {"ok", "corrupt", "truncated", "bomb", "unsupported", "not-an-image", "empty"}


BOMBS = (
    "huge-header.png one-wide.png one-high.png many-chunks.png profiles.png texts.png exif-tags.png exif-numbers.png "
    "exif-chunks.png late-numbers.png text-numbers.png "
    "scans.jpg exif-parts.jpg comments.jpg comments.gif tags.tif numbers.tif same-strips.tif empty-blocks.tif "
    "comments.ppm maximum.pgm line-ends.bmp"
).split()
HARMLESS = (
    "late-key.png late-exif.png exif-circle.png long-text.png long-plain-text.png "
    "some-scans.jpg thumbnail.jpg trailer.jpg fill-bytes.jpg"
).split()


def test_each_trick_has_its_verdict(verdicts: dict[str, str]) -> None:
    assert {name: verdicts[name] for name in BOMBS} == dict.fromkeys(BOMBS, "bomb")
    assert {name: verdicts[name] for name in HARMLESS} == dict.fromkeys(HARMLESS, "ok")


def test_damage_is_no_bomb(verdicts: dict[str, str]) -> None:
    damaged = {name: found for name, found in verdicts.items() if name not in TRICKS}
    assert len(damaged) > 400
    assert [name for name, found in damaged.items() if found == "bomb"] == []


@pytest.mark.parametrize("codec", limits.SLOW)
def test_a_file_of_a_slow_format_is_refused_with_the_way_out(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {
        "jpeg2k": encoded(noisy("RGB", 16), "JPEG2000"),
        "bmp_rle": bmp_runs(16, 16, b"\0\1"),
        "ppm_plain": b"P2 16 16 255\n" + b"1 " * 256,
        "ppm": b"P5 16 16 100\n" + bytes(256),
        "AVIF": encoded(noisy("RGB", 16), "AVIF"),
        "HEIF": HEIC,
    }[codec]
    if codec == "HEIF":
        pytest.importorskip("pi_heif", reason="needs the extra heic")
    for least in (limits.Limit(255, 2**20), limits.Limit(2**12, 20)):
        monkeypatch.setitem(limits.SLOW, codec, least)
        with pytest.raises(DecodeError, match=r"which is more than \d+ for .*: save it as PNG or JPEG$") as caught:
            decode(data, RULES)
        assert caught.value.kind == "bomb"


def test_samples_of_64_bits_are_unsupported_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DecodeError, match=r"pip install 'convsmith\[tiff\]', or save it as \.npy") as caught:
        decode(TRICKS["double.tif"](), RULES)
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("number", [1, 2, 14, 15, 16, 17, 40])
def test_scans_are_counted(number: int) -> None:
    ordinary = encoded(noisy("RGB", 64), "JPEG", progressive=True).count(b"\xff\xda")
    assert containers.inspect(scans(64, number)).scans == ordinary - 1 + number


def test_the_scans_of_a_large_image_count_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(scans(64, 200)) == "ok"
    monkeypatch.setattr(limits, "MAX_SCAN_PIXELS", 64 * 64 * 100)
    with pytest.raises(DecodeError, match="more than 100 scans, the most for 4,096 pixels"):
        decode(scans(64, 200), RULES)


def test_memory_is_refused_by_the_header_and_shared_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noisy("RGBA", 64), "PNG")
    monkeypatch.setattr(limits, "MEMORY", 500_000)
    assert verdict(data) == "ok"
    monkeypatch.setattr(limits, "MEMORY", 50_000)
    with pytest.raises(DecodeError, match=r"takes \d+ MB, which is more than \d+ MB") as caught:
        decode(data, RULES)
    assert caught.value.kind == "bomb"


def test_memory_that_runs_out_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("convsmith.data.decode.fit", nothing_left)
    assert verdict(encoded(noisy("RGB", 16), "PNG")) == "unreadable"  # which no cache keeps


@given(junk=st.binary(max_size=64), entries=st.lists(st.tuples(*[st.integers(0, 2**16 - 1)] * 4), max_size=6))
@example(junk=b"", entries=[(0x8769, 4, 1, 8), (0x8825, 4, 1, 8)])
@example(junk=b"", entries=[(258, 3, 1, 64)])
def test_directories_of_any_content_are_walked_to_an_end(junk: bytes, entries: list[tuple[int, int, int, int]]) -> None:
    for head in (exif(*entries, body=junk), b"II*\0" + junk, b"MM\0+" + junk, junk):
        try:
            containers.check_tags(head)
        except DecodeError as error:
            assert error.kind == "bomb"  # noqa: PT017


def test_the_header_of_a_large_file_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsmith.data.decode.SMALL", 1000)
    (tmp_path / "large.png").write_bytes(whole := encoded(noisy("RGB", 64), "PNG"))
    assert len(whole) > 10_000
    read: list[object] = []
    content = module._content
    monkeypatch.setattr(module, "_content", lambda data: read.append(data) or content(data))
    assert read_header(tmp_path / "large.png") == ("PNG", 64, 64, 3)
    assert read == []
    # A header that is too long is read as a whole, within the memory that is shared.
    monkeypatch.setattr(limits.MeteredFile, "_bytes", 20)
    assert read_header(tmp_path / "large.png") == ("PNG", 64, 64, 3)
    assert read == [tmp_path / "large.png"]
    np.testing.assert_array_equal(decode(tmp_path / "large.png", RULES), decode(whole, RULES))


def test_the_pixels_are_freed_before_the_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Watched(limits.Memory):
        @contextlib.contextmanager
        def taken(self, amount: int) -> Iterator[None]:
            yield
            order.append("given back")

    closing = PngImageFile.close
    monkeypatch.setattr(PngImageFile, "close", lambda image: order.append("closed") or closing(image))
    monkeypatch.setattr(module, "decoding_memory", Watched(10**9))
    monkeypatch.setattr(module, "SMALL", 0)
    assert verdict(encoded(noisy("RGB", 16), "PNG")) == "ok"
    assert order == ["closed", "given back"]


def test_jpeg_2000_is_decoded_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[bool] = []
    raster = module.Raster
    monkeypatch.setattr(module, "Raster", lambda *given: locked.append(limits._locked.locked()) or raster(*given))
    for form in ("JPEG2000", "PNG"):
        assert verdict(encoded(noisy("RGB", 16), form)) == "ok"
    assert locked == [True, False]
    assert not limits._locked.locked()


def test_threads_take_memory_in_turn_and_never_too_much() -> None:
    memory = limits.Memory(100)
    lock, inside, most = threading.Lock(), [0], [0]

    def use(amount: int) -> None:
        with memory.taken(amount):
            with lock:
                inside[0] += min(amount, 100)
                most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            with lock:
                inside[0] -= min(amount, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [30, 70, 1, 100, 45, 500] * 5))
    assert 70 < most[0] <= 100
