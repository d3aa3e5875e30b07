"""Streamed images: the order is that of a plain shuffle buffer, and any position of it is reached without the rest."""

from __future__ import annotations

import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from convsmith.config import validate
from convsmith.data import streamed
from convsmith.data.config import DataConfig
from convsmith.data.dataset import Dataset, open_dataset, unseal_test
from convsmith.data.epochs import epoch_of
from convsmith.data.places import expanded
from convsmith.data.sampler import batch_positions, first_of_shards, reading_order, through_buffer
from convsmith.data.source import Source
from convsmith.data.sources import open_source, with_absolute_paths
from convsmith.errors import UserError
from convsmith.studies.crossval import divide
from data.small import InProcess

SAMPLES, SHARDS = 8, 6
ALL = {"val_fraction": 0, "test_fraction": 0}  # train on all


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 255 - level)).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(number: int) -> dict[str, bytes]:
    """Shard `number`: its sample i has the red level 8 * number + i, and the class cat or owl."""
    members = {}
    for at in range(SAMPLES):
        members[f"{at:03d}.png"] = png(SAMPLES * number + at)
        members[f"{at:03d}.cls"] = b"cat" if at % 2 else b"owl"
    return members


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    for number in range(SHARDS):
        shard(folder / f"{'val' if number == SHARDS - 1 else 'train'}-{number:03d}.tar", samples(number))
    return folder


@pytest.fixture(autouse=True)
def _one_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "processes" not in request.node.name:
        monkeypatch.setattr(streamed, "Workers", InProcess)


def opened(source: object, **settings: object) -> Dataset:
    return open_dataset(DataConfig.model_validate({"source": str(source), "shuffle_buffer": 5, **settings}))


def batches(dataset: Dataset, size: int, seed: int, epoch: int, start: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """The positions and the images of the batches of an epoch, from one of them on."""
    order, reading = epoch_of(dataset.train, dataset.config, seed, epoch)
    assert reading is not None
    parts = list(batch_positions(order, size, start))
    return list(zip(parts, dataset.train.streamed(parts, reading), strict=True))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plain_buffer(reading: list[int], size: int, seed: int, epoch: int) -> Iterator[int]:
    """A shuffle buffer as a loop: the slow twin of `through_buffer`."""
    size = min(size, len(reading))
    rng = np.random.default_rng([seed, epoch, size])
    places = rng.integers(0, max(size, 1), len(reading) - size)
    buffer = reading[:size]
    for item, place in zip(reading[size:], places, strict=True):
        yield buffer[place]
        buffer[place] = item
    yield from (buffer[place] for place in rng.permutation(size))


@given(st.integers(0, 200), st.integers(1, 250), st.integers(0, 3))
def test_the_order_is_that_of_a_buffer_that_is_filled_and_drawn_from(count: int, size: int, seed: int) -> None:
    reading = np.random.default_rng(seed).permutation(count)
    order = through_buffer(reading, size, seed, 1)
    assert order.tolist() == list(plain_buffer(reading.tolist(), size, seed, 1))
    assert sorted(order.tolist()) == list(range(count))


def test_shards_are_read_whole_in_an_order_of_the_epoch() -> None:
    shards = np.repeat([3, 1, 7], [4, 2, 3])
    orders = {tuple(shards[reading_order(shards, 0, epoch)]) for epoch in range(20)}
    assert len(orders) == 6  # all orders of three
    for order in orders:
        assert len([1 for a, b in pairwise(order) if a != b]) == 2
    assert reading_order(shards, 0, 1)[shards[reading_order(shards, 0, 1)] == 3].tolist() == [0, 1, 2, 3]


def test_a_sample_of_streamed_images_is_spread_over_shards() -> None:
    of = np.repeat(np.arange(100), 50)
    found = first_of_shards(of, 64)
    assert len(found) == 64
    assert np.bincount(of[found]).max() == 4
    assert first_of_shards(of[:3], 64).tolist() == [0, 1, 2]


def test_batches_of_processes_are_those_of_the_cache_and_any_of_them_can_be_the_first(shards: Path) -> None:
    streamed, cached = opened(shards), opened(shards, stream=False)
    assert streamed.config.stream is True
    assert cached.config.stream is False
    assert streamed.train.ids == cached.train.ids
    whole = batches(streamed, 7, 1, 2)
    assert sorted(np.concatenate([positions for positions, _ in whole]).tolist()) == list(range(len(cached.train)))
    for positions, pixels in whole:
        np.testing.assert_array_equal(pixels, cached.train.gather(positions))
        np.testing.assert_array_equal(pixels, streamed.train.gather(positions))
    for start in range(len(whole) + 1):
        rest = batches(streamed, 7, 1, 2, start)
        assert len(rest) == len(whole) - start
        for (positions, pixels), (expected, same) in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(positions, expected)
            np.testing.assert_array_equal(pixels, same)
    np.testing.assert_array_equal(streamed.val.gather(slice(None)), cached.val.gather(slice(None)))


def test_a_resume_reads_what_the_buffer_held_and_nothing_before(shards: Path) -> None:
    dataset = opened(shards)
    read: list[int] = []
    pixels = dataset.train._pixels
    source = pixels._source  # type: ignore[union-attr]
    plain = source.read
    object.__setattr__(source, "read", lambda row: read.append(row) or plain(row))  # type: ignore[func-returns-value]
    rest = batches(dataset, 8, 0, 0, start=3)
    left = np.concatenate([positions for positions, _ in rest])
    assert sorted(read) == sorted(dataset.train.rows[left].tolist())


def test_nothing_of_train_reaches_the_disk_and_test_only_when_it_is_opened(shards: Path, cache: Path) -> None:
    (shards / "train-001.tar").rename(shards / "test-001.tar")
    dataset = opened(shards)

    def decoded() -> list[int]:
        return [file.stat().st_size for file in cache.glob("images/*/pixels")]

    assert decoded() == [SAMPLES * 4 * 4 * 3]  # val
    batches(dataset, 8, 0, 0)
    assert decoded() == [SAMPLES * 4 * 4 * 3]
    assert dataset.test_size == SAMPLES
    assert unseal_test(dataset).gather([0])[0, 0, 0, 0] == SAMPLES
    assert len(decoded()) == 2


def test_val_is_cut_out_of_whole_shards_by_the_seed(tmp_path: Path) -> None:
    for number in range(12):
        shard(tmp_path / f"{number:02d}.tar", samples(number))
    names = str(tmp_path / "{00..11}.tar")
    divisions = set()
    for seed in range(3):
        dataset = opened(names, split_seed=seed)
        record = dataset.splits_record()["splits"]
        homes = [{name.split("/")[0] for name in record[split]} for split in ("train", "val", "test")]
        assert sum(map(len, homes)) == 12  # no shard is in two
        assert all(homes)
        divisions.add(tuple(sorted(homes[1])))
    assert len(divisions) > 1
    dataset, shards = opened(names), np.arange(12 * SAMPLES) // SAMPLES
    for fold in divide(dataset, validate({"data": dataset.config.model_dump()}), 3, 1):
        parts = [set(shards[dataset.pool().rows[rows]]) for rows in (fold.train, fold.val, fold.held_out)]
        assert sum(map(len, parts)) == len(set.union(*parts)), "nor in folds"
        assert all(parts)
    said = refused(lambda: opened(tmp_path / "{00..01}.tar"))
    assert "has 2 shards to divide" in said
    assert len(opened(tmp_path / "{00..01}.tar", val_fraction=0, test_fraction=0).train) == 2 * SAMPLES


def test_splits_are_restored_and_a_changed_shard_is_named(shards: Path) -> None:
    dataset = opened(shards)
    record = dataset.splits_record()
    assert opened(shards).as_recorded(record, "r").train.ids == dataset.train.ids
    other = samples(2)
    other["004.png"] = png(250)
    shard(shards / "train-002.tar", {**other, "004.cls": b"cat"})
    said = refused(lambda: opened(shards).as_recorded(record, "r"))
    assert "train-002.tar" in said
    (shards / "train-002.tar").unlink()
    assert "train-002.tar" in refused(lambda: opened(shards).as_recorded(record, "r"))


def test_a_shard_that_was_fetched_again_is_the_same(shards: Path) -> None:
    record = opened(shards).splits_record()
    path = shards / "train-002.tar"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert opened(shards).as_recorded(record, "r").hash == record["hash"]


def labels_of(tmp_path: Path, members: Mapping[str, bytes], **settings: object) -> tuple[tuple[str, ...], list[int]]:
    path = shard(tmp_path / "one-{0}.tar", members)
    source = open_source(DataConfig.model_validate({"source": str(path.parent), **settings}))
    return source.classes, source.labels.tolist()


@pytest.mark.parametrize(
    ("suffix", "one", "two", "classes"),
    [
        ("cls", b"10", b"9", ("9", "10")),  # numbers are sorted as such
        ("cls", b"cat\n", b" owl", ("cat", "owl")),
        ("txt", b"cat", b"owl", ("cat", "owl")),
        ("json", b'{"label": 3, "width": 7}', b'{"label": 11, "width": 7}', ("3", "11")),
        ("json", b'{"label": 3, "class_name": "owl"}', b'{"label": 1, "class_name": "elk"}', ("elk", "owl")),
        ("json", b"4", b"5", ("4", "5")),
    ],
)
def test_labels_of_all_forms(tmp_path: Path, suffix: str, one: bytes, two: bytes, classes: tuple[str, ...]) -> None:
    members = {"a/1.png": png(1), f"a/1.{suffix}": one, "a/2.PNG": png(2), f"a/2.{suffix}": two}
    found, labels = labels_of(tmp_path, members)
    assert found == classes
    assert sorted(labels) == [0, 1]


def test_columns_and_names_of_numbers(tmp_path: Path) -> None:
    members = {
        "1.input.png": png(1),
        "1.mask.png": png(2),
        "1.json": b'{"kind": 0, "label": 5}',
        "2.input.png": png(3),
        "2.mask.png": png(4),
        "2.json": b'{"kind": 1, "label": 5}',
    }
    assert "input.png, mask.png" in refused(lambda: labels_of(tmp_path, members))
    settings: dict[str, object] = {"image_column": "input.png", "label_column": "kind"}
    assert labels_of(tmp_path, members, **settings) == (("0", "1"), [0, 1])
    assert labels_of(tmp_path, members, classes=["owl", "cat"], **settings) == (("owl", "cat"), [0, 1])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.png": b"x", "1.cls": b"0", "2.png": b"x"}, "'one-{0}.tar/2' has no label"),
        ({"1.png": b"x", "1.txt": b"a " * 200}, "a label that is no number or short text"),
        ({"1.png": b"x", "1.json": b"{"}, "the .json of sample '1'"),
        ({"1.png": b"x", "1.cls": b"0", "3.png": b"x", "3.cls": b"0", "1.jpg": b"x", "1.txt": b"0"}, "'1' twice"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    assert said in refused(lambda: labels_of(tmp_path, members))


def test_bad_shards_are_named_with_the_fix(shards: Path) -> None:
    path = shards / "train-001.tar"
    whole = path.read_bytes()
    cut = whole[: len(whole) // 2]
    path.write_bytes(cut)
    said = refused(lambda: opened(shards))
    assert f"'{path}' cannot be read (its end is missing): fetch or make the shard again" in said
    path.write_bytes(whole)
    dataset = opened(shards)
    path.write_bytes(cut)
    said = refused(lambda: batches(dataset, 8, 0, 0))
    assert f"'{path}' has changed while it was in use" in said
    path.write_bytes(whole[:1536].replace(b"PNG", b"GNP") + whole[1536:])
    said = refused(lambda: batches(opened(shards), 8, 0, 0))
    assert "'train-001.tar/000'" in said
    assert "--data.on_error skip" in said
    pattern = str(shards / "train-{000..009}.tar")
    assert "train-005.tar' of data.source cannot be read" in refused(lambda: open_source(DataConfig(source=pattern)))
    assert "matches no file" in refused(lambda: open_source(DataConfig(source=str(shards / "x-*.tar"))))


def test_an_image_that_cannot_be_decoded_is_left_out_and_batches_keep_their_size(shards: Path) -> None:
    path = shards / "train-001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:1536].replace(b"PNG", b"GNP") + whole[1536:])
    dataset = opened(shards, on_error="skip", image_size=4)
    broken = dataset.train.ids.index("train-001.tar/000")
    (batch,) = ((rows, pixels) for rows, pixels in batches(dataset, 10, 0, 0) if broken in rows)
    rows, pixels = batch
    assert len(pixels) == 10
    place = int(np.flatnonzero(rows == broken)[0])
    alike = np.flatnonzero(dataset.train.labels[rows] == dataset.train.labels[broken])
    first = next(at for at in alike if at != place)
    np.testing.assert_array_equal(pixels[place], pixels[first])
    (alone,) = (pixels for rows, pixels in batches(dataset, 1, 0, 0) if broken in rows)
    assert not alone.any()


def test_settings_that_streaming_rules_out_are_refused(shards: Path) -> None:
    assert "class_weights balanced" in refused(lambda: opened(shards, sampling="balanced"))
    assert "give '[low, high]'" in refused(lambda: opened(shards, range="auto"))
    for name in ("ants/1.png", "bees/2.png"):
        (shards.parent / "photos" / name).parent.mkdir(parents=True)
        (shards.parent / "photos" / name).write_bytes(png(0))
    assert "is for shards" in refused(lambda: opened(shards.parent / "photos", stream=True))


def test_braces_stand_for_what_a_shell_makes_of_them() -> None:
    assert list(expanded("a-{08..11}-{x,y}.tar"))[:3] == ["a-08-x.tar", "a-08-y.tar", "a-09-x.tar"]
    assert list(expanded("{3..1}")) == ["3", "2", "1"]
    with pytest.raises(UserError, match="more than 100,000"):
        open_source(DataConfig(source="x/{0..99999999999999999}.tar"))


def test_a_pattern_is_found_from_any_folder(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    config = with_absolute_paths(DataConfig(source="shards/{train,val}-*.tar"))
    monkeypatch.chdir("/")
    found: Source = open_source(config)
    assert len(found) == SHARDS * SAMPLES
    assert found.ids[0] == "train-000.tar/000"


class Parts(SimpleHTTPRequestHandler):
    """A server that sends parts of files, as most do; Python's own sends whole ones."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not Path(self.translate_path(self.path)).exists():
            self.send_error(404)
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


class Whole(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def parquet(path: Path, first: int, count: int, group: int = 4) -> Path:
    """Images with the red levels from `first` on, of the classes owl and cat in turns, in groups of `group` rows."""
    path.parent.mkdir(exist_ok=True)
    levels = range(first, first + count)
    images = [{"bytes": png(level), "path": None} for level in levels]
    table = pa.table({"image": images, "label": [["owl", "cat"][level % 2] for level in levels]})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two files to train on, of three groups of rows each, and one for val."""
    for name, first in (("train-0", 0), ("train-1", 12), ("val-0", 24)):
        parquet(tmp_path / "rows" / f"{name}.parquet", first, 12)
    return tmp_path / "rows"


def test_parquet_is_streamed_where_that_is_asked_for_and_is_as_from_the_cache(rows: Path, cache: Path) -> None:
    streamed, cached = opened(rows, stream=True), opened(rows)
    assert cached.config.stream is False
    assert streamed.config.stream is True
    assert streamed.train.ids == cached.train.ids
    whole = batches(streamed, 5, 1, 2)
    assert sorted(np.concatenate([positions for positions, _ in whole]).tolist()) == list(range(24))
    for start in range(len(whole) + 1):
        for (positions, pixels), (same, expected) in zip(batches(streamed, 5, 1, 2, start), whole[start:], strict=True):
            np.testing.assert_array_equal(positions, same)
            np.testing.assert_array_equal(pixels, expected)
            np.testing.assert_array_equal(pixels, cached.train.gather(positions))
    np.testing.assert_array_equal(streamed.val.gather(slice(None)), cached.val.gather(slice(None)))
    assert streamed.train.shards is not None
    assert np.bincount(streamed.train.shards).tolist() == [4] * 6, "each group of rows is a shard"


def test_groups_of_rows_stay_whole_in_splits(tmp_path: Path) -> None:
    path = parquet(tmp_path / "all.parquet", 0, 40)
    record = opened(path, stream=True).splits_record()["splits"]
    homes = [{int(name.rpartition("/")[2]) // 4 for name in record[split]} for split in ("train", "val", "test")]
    assert all(homes)
    assert sum(map(len, homes)) == 10


def test_a_file_of_rows_that_is_missing_changed_or_damaged_is_one_line(rows: Path) -> None:
    record = opened(rows, stream=True).splits_record()
    path = rows / "train-1.parquet"
    content = path.read_bytes()
    path.unlink()
    said = refused(lambda: opened(rows, stream=True).as_recorded(record, "r"))
    assert "run 'r' was trained on the shard 'train-1.parquet#0', which is missing; put the shard back" in said
    path.write_bytes(content)
    assert opened(rows, stream=True).as_recorded(record, "r").hash == record["hash"], "fetched again"
    dataset = opened(rows, stream=True)
    parquet(path, 13, 12)
    assert f"'{path}' has changed while it was in use" in refused(lambda: batches(dataset, 8, 0, 0))
    said = refused(lambda: opened(rows, stream=True).as_recorded(record, "r"))
    assert "the shard 'train-1.parquet#0', which has changed since then" in said
    at = content.index(b"\x89PNG")
    path.write_bytes(content[:at] + bytes(200) + content[at + 200 :])
    said = refused(lambda: batches(opened(rows, stream=True), 8, 0, 0))
    assert said.startswith(f"'{path}' cannot be read as Parquet: ")


@pytest.mark.parametrize("handler", [Parts, Whole])
def test_parquet_of_a_server_is_read_as_files_are(rows: Path, handler: type[SimpleHTTPRequestHandler]) -> None:
    pytest.importorskip("aiohttp")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(rows))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        remote = opened(f"{address}/{{train-0,train-1,val-0}}.parquet")
        local = opened(rows / "{train-0,train-1,val-0}.parquet", stream=True)
        assert remote.config.stream, "what lies elsewhere is streamed unless data.stream is false"
        assert remote.train.ids == local.train.ids
        for (found, pixels), (same, expected) in zip(batches(remote, 8, 0, 0), batches(local, 8, 0, 0), strict=True):
            np.testing.assert_array_equal(found, same)
            np.testing.assert_array_equal(pixels, expected)
        said = refused(lambda: opened(f"{address}/train-{{0..2}}.parquet"))
        assert "train-2.parquet' cannot be read (it is not there)" in said
        server.shutdown()
    (rows / "train-0.tar").touch()
    assert "names .tar files and Parquet" in refused(lambda: opened(rows / "*"))
    (rows / "readme.txt").touch()
    assert "readme.txt', which is neither a .tar" in refused(lambda: opened(rows / "*"))


@pytest.mark.parametrize("handler", [Parts, Whole])
def test_shards_of_a_server_are_read_as_files_are(shards: Path, handler: type[SimpleHTTPRequestHandler]) -> None:
    pytest.importorskip("aiohttp")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(shards))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        remote, local = (
            opened(f"{address}/train-{{000..004}}.tar", **ALL),
            opened(shards / "train-{000..004}.tar", **ALL),
        )
        assert remote.train.ids == local.train.ids
        for (rows, pixels), (same, expected) in zip(batches(remote, 8, 0, 0), batches(local, 8, 0, 0), strict=True):
            np.testing.assert_array_equal(rows, same)
            np.testing.assert_array_equal(pixels, expected)
        said = refused(lambda: opened(f"{address}/train-{{000..009}}.tar", **ALL))
        assert "train-005.tar' cannot be read (it is not there)" in said
        server.shutdown()
    assert "cannot be reached" in refused(lambda: opened(f"{address}/train-000.tar", **ALL))
    assert "no plain address" in refused(lambda: opened("file:///etc/x.tar", **ALL))
