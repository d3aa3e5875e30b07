from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from convsmith.data.audit import NEAR_BITS, check_data, near_pairs, summary_lines
from convsmith.data.config import DataConfig
from convsmith.data.source import NO_IMAGE, walk
from convsmith.data.sources import from_arrays
from convsmith.events import Counted

Plant = Callable[..., Path]


def test_every_file_has_its_verdict(plant: Plant) -> None:
    root = plant(*(f"train/{name}/{i}.png" for name in "ab" for i in range(4)), "val/a/1.png", "val/b/1.png")
    whole = (root / "train/a/0.png").read_bytes()
    (root / "train/a/cut.png").write_bytes(whole[:200])
    (root / "train/a/flipped.png").write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    (root / "train/a/empty.png").touch()
    (root / "train/a/text.png").write_text("no picture")
    Image.new("1", (13_000, 13_000)).save(root / "train/a/bomb.png")
    Image.open(root / "train/a/0.png").save(root / "train/b/wrong.jpg", format="BMP")
    shutil.copy(root / "train/a/1.png", root / "train/a/copy.png")
    (root / "train/b/notes.txt").write_text("x")
    before = walk(root)
    audit = check_data(DataConfig(source=str(root)))
    assert walk(root) == before
    trouble = {Path(file.id).name: file.verdict for file in audit.files if file.verdict != "ok"}
    assert trouble == {
        "cut.png": "truncated",
        "flipped.png": "corrupt",
        "empty.png": "empty",
        "text.png": "not-an-image",
        "bomb.png": "bomb",
        "wrong.jpg": "wrong-extension",
        "copy.png": "duplicate",
    }
    assert audit.verdicts == {"ok": 10, **dict.fromkeys(trouble.values(), 1)}
    assert audit.unused == {NO_IMAGE: ("train/b/notes.txt",)}
    assert audit.counts == {"train": {"a": 5, "b": 5}, "val": {"a": 1, "b": 1}}
    assert audit.sizes == {"12x12": 12}
    text = summary_lines(audit)
    assert text[0].startswith(f"{root}: 17 images: 10 ok")
    assert "  train/b/wrong.jpg: wrong-extension (the format is BMP)" in text
    assert "  train/b/notes.txt" in text
    assert json.loads(json.dumps(audit.to_json()))["verdicts"] == audit.verdicts


def test_duplicates_are_pixels_not_bytes_and_conflicts_and_leaks_are_flagged(plant: Plant) -> None:
    root = plant(*(f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(3)))
    image = Image.open(root / "train/a/0.png")
    image.save(root / "test/b/0.bmp")
    image.save(root / "train/a/0.tif")
    shutil.copy(root / "train/b/1.png", root / "train/b/4.png")
    audit = check_data(DataConfig(source=str(root)))
    leak, plain = audit.duplicates
    assert leak.ids == ("test/b/0.bmp", "train/a/0.png", "train/a/0.tif")
    assert (leak.labels, leak.conflicting, leak.leaking) == (("b", "a", "a"), True, True)
    assert (plain.ids, plain.conflicting, plain.leaking) == (("train/b/1.png", "train/b/4.png"), False, False)
    assert audit.near_duplicates == ()
    assert "  test/b/0.bmp = train/a/0.png = train/a/0.tif (labels differ, across splits)" in summary_lines(audit)


def test_photographs_saved_anew_are_near_duplicates(ants_bees: Path, tmp_path: Path) -> None:
    paths = sorted((ants_bees / "val").rglob("*.jpg"))[::12]
    for path in paths:
        folder = tmp_path / "data" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
        with Image.open(path) as image:
            image.convert("RGB").resize((200, 150)).save(folder / f"{path.stem}-small.jpg", quality=70)
    audit = check_data(DataConfig(source=str(tmp_path / "data")))
    assert audit.duplicates == ()
    found = {tuple(sorted(pair.ids)) for pair in audit.near_duplicates}
    expected = {tuple(sorted((f"{p.parent.name}/{p.name}", f"{p.parent.name}/{p.stem}-small.jpg"))) for p in paths}
    assert found <= expected
    assert len(found) >= 0.9 * len(expected)


def slow_pairs(hashes: np.ndarray) -> set[tuple[int, int, int]]:
    """All pairs, by ImageHash's own distance."""
    bits = [imagehash.ImageHash(np.unpackbits(np.array([h], dtype=">u8").view(np.uint8))) for h in hashes]
    distances = ((i, j, int(bits[i] - bits[j])) for j in range(len(bits)) for i in range(j))
    return {pair for pair in distances if pair[2] <= NEAR_BITS}


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4, unique=True),
    flips=st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=6)), max_size=20),
)
def test_the_index_finds_every_pair_that_comparing_all_finds(
    seeds: list[int], flips: list[tuple[int, set[int]]]
) -> None:
    values = seeds + [seeds[at % len(seeds)] ^ sum(1 << bit for bit in bits) for at, bits in flips]
    distinct = np.array(list(dict.fromkeys(values)), dtype=np.uint64)
    assert set(near_pairs(distinct)) == slow_pairs(distinct)


def test_equal_hashes_are_paired_with_the_first_alone() -> None:
    hashes = np.array([7, 7, 7, 6, 2**63], dtype=np.uint64)
    assert near_pairs(hashes) == [(0, 1, 0), (0, 2, 0), (0, 3, 1), (0, 4, 4), (3, 4, 3)]
    assert near_pairs(hashes[:0]) == []


def test_arrays_and_encoded_bytes_are_checked_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 9), dtype=np.uint8)
    audit = check_data(DataConfig(), source=from_arrays(np.concatenate([pixels, pixels[:1]]), [0, 1] * 3 + [1]))
    assert audit.verdicts == {"ok": 6, "duplicate": 1}
    assert audit.duplicates[0].conflicting
    rows = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": "x.jpg"})
    rows[2]["bytes"] = b""
    pq.write_table(pa.table({"img": rows, "label": [0, 1] * 3}), tmp_path / "data.parquet")
    events: list[object] = []
    audit = check_data(DataConfig(source=str(tmp_path)), listener=events.append)
    assert audit.verdicts == {"ok": 5, "empty": 1}
    assert events == [Counted("checking", 6, 6)]


@pytest.mark.parametrize(("sides", "expected"), [(3, "20x20 (2)"), (12, "by shorter side: 16-31 (24)")])
def test_sizes_are_listed_or_put_in_octaves(plant: Plant, sides: int, expected: str) -> None:
    for width in range(20, 20 + sides):
        root = plant(f"a/{width}.png", f"b/{width}.png", size=(20, width))
    assert any(expected in line for line in summary_lines(check_data(DataConfig(source=str(root)))))


STUCK = """
import sys, threading
from convsmith import cli
from convsmith.data import audit

def stuck(*_):
    print("decoding", flush=True)
    threading.Event().wait()

audit._examine = stuck
sys.argv = ["convsmith", "data", "check", sys.argv[1]]
cli.run()
"""


def test_sigterm_ends_a_check_that_waits_for_a_decoder(plant: Plant) -> None:
    command = [sys.executable, "-c", STUCK, str(plant("a/1.png", "b/1.png"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (143, "terminated")
