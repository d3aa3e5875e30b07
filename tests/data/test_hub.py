"""Data sets of the hub: from the cache of `datasets` without a network, and one line where they cannot be had."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convsmith.data import hub
from convsmith.data.config import DataConfig
from convsmith.data.source import Source
from convsmith.data.sources import open_source
from data.small import png, refused

IMAGES = [png(level) for level in range(6)]


@pytest.fixture(scope="session")
def datasets() -> ModuleType:
    return pytest.importorskip("datasets")


@pytest.fixture
def kept(datasets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of `datasets` that holds owner/pets with two configs, as the library lays it out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "unreachable", lambda address: "no route to host")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "owl"])})
    for subset in ("small", "large"):
        folder = tmp_path / "owner___pets" / subset / "0.0.0" / "abc"
        folder.mkdir(parents=True)
        splits = {}
        for split, count in (("train", 6), ("test", 2), ("extra", 1)):
            with datasets.arrow_writer.ArrowWriter(
                path=str(folder / f"pets-{split}.arrow"), features=features
            ) as writer:
                for row in range(count):
                    writer.write({"image": {"bytes": IMAGES[row], "path": None}, "label": row % 2})
                writer.finalize()
            splits[split] = {"name": split, "num_examples": count, "dataset_name": "pets"}
        info = {
            "features": features.to_dict(),
            "builder_name": "parquet",
            "dataset_name": "pets",
            "config_name": subset,
        }
        (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": splits, "version": "0.0.0"}))
    return tmp_path


def opened(name: str) -> Source:
    return open_source(DataConfig(source=name))


def test_a_set_in_the_cache_is_read_without_a_network_and_then_without_the_library(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        source = opened("hf:owner/pets:small")
        assert source.name == "hf:owner/pets:small"
        assert source.classes == ("cat", "owl")
        assert source.given.tolist() == ["train"] * 6 + ["test"] * 2
        assert source.unused == {"splits other than train, val and test": ("extra",)}
        assert [source.read(row) for row in range(8)] == [*IMAGES, *IMAGES[:2]]
        monkeypatch.setitem(sys.modules, "datasets", None)


def test_what_the_cache_does_not_hold_is_one_line(
    kept: Path, datasets: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused(lambda: opened("hf:owner/cars"))
    assert "'hf:owner/cars' cannot be read from the cache of datasets" in said
    assert "(it is not there), and the hub cannot be reached (no route to host): go online" in said
    assert "large" in refused(lambda: opened("hf:owner/pets"))  # which configs there are
    assert "small" in refused(lambda: opened("hf:owner/pets:tiny"))
    assert capfd.readouterr() == ("", "")
    assert not datasets.config.HF_HUB_OFFLINE


COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(BaseHTTPRequestHandler):
    """What the hub answers the libraries about owner/pets, whose files lie in `root`."""

    root: Path

    def do_GET(self) -> None:
        name = urlparse(self.path).path
        repository = "/api/datasets/owner/pets"
        listed = re.fullmatch(rf"{repository}/tree/[^/]+/?(.*)", name)
        resolved = re.fullmatch(r"/datasets/owner/pets/resolve/[^/]+/(.+)", name)
        if listed and (folder := self.root / listed[1]).is_dir():
            self.answer(json.dumps([self.entry(path) for path in sorted(folder.iterdir())]).encode())
        elif name.startswith(repository) and not listed:
            about = {"id": "owner/pets", "sha": COMMIT, "private": False, "disabled": False, "tags": []}
            self.answer(json.dumps(about | {"downloads": 0, "likes": 0, "siblings": []}).encode())
        elif resolved and (file := self.root / resolved[1]).is_file():
            content = file.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(content))
            part = content[first : last + 1]
            place = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
            self.answer(part, 206 if wanted else 200, **place, ETag=self.entry(file)["oid"])
        else:
            self.answer(b"{}", 404, **{"X-Error-Code": "EntryNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def entry(self, path: Path) -> dict[str, object]:
        kind, content = ("directory", b"") if path.is_dir() else ("file", path.read_bytes())
        about = {"oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
        return {"type": kind, "path": path.relative_to(self.root).as_posix(), **about}

    def answer(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(datasets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of owner/pets on a hub of our own, to which the libraries turn."""
    from huggingface_hub import HfFileSystem, constants

    root = tmp_path / "pets"
    (root / "data").mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHub", (Hub,), {"root": root})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        HfFileSystem.clear_instance_cache()
        yield root
        server.shutdown()
        HfFileSystem.clear_instance_cache()


def test_a_set_of_the_hub_is_streamed_from_the_files_that_the_libraries_find(served: Path, tmp_path: Path) -> None:
    for name, levels in (
        ("train-00000-of-00002", (0, 1, 2)),
        ("train-00001-of-00002", (3, 4)),
        ("test-00000-of-00001", (5,)),
    ):
        table = pa.table({"image": [{"bytes": IMAGES[level], "path": None} for level in levels]})
        table = table.append_column("label", pa.array([["cat", "owl"][level % 2] for level in levels]))
        pq.write_table(table, served / "data" / f"{name}.parquet", row_group_size=2)
    source = open_source(DataConfig(source="hf:owner/pets", stream=True))
    assert (source.name, source.classes) == ("hf:owner/pets", ("cat", "owl"))
    assert source.given.tolist() == ["train"] * 5 + ["test"]
    assert [source.read(row) for row in (4, 0, 1, 2, 3, 5)] == [IMAGES[level] for level in (4, 0, 1, 2, 3, 5)]
    assert source.shards is not None
    assert source.shards.names[:2] == ("train-00000-of-00002.parquet#0", "train-00000-of-00002.parquet#1")
    assert source.shards.of.tolist() == [0, 0, 1, 2, 2, 3]
    named = open_source(DataConfig(source="hf://datasets/owner/pets/data/train-0000{0..1}-of-00002.parquet"))
    assert named.shards is not None, "an address is streamed, also of the hub"
    assert [named.read(row) for row in range(5)] == IMAGES[:5]
    kept = [path for path in (tmp_path / "datasets").rglob("*") if path.is_file() and path.stat().st_size]
    assert kept == [], "nothing was downloaded"


def test_a_set_that_cannot_be_streamed_is_one_line(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (served / "data" / "train.csv").write_text("a,b\n1,2\n")
    said = refused(lambda: open_source(DataConfig(source="hf:owner/pets", stream=True)))
    assert "'hf:owner/pets' is not kept as Parquet on the hub, which alone is streamed: leave data.stream out" in said
    assert "'hf:owner/cars' cannot be opened" in refused(
        lambda: open_source(DataConfig(source="hf:owner/cars", stream=True))
    )
    monkeypatch.setattr(hub, "unreachable", lambda address: "no route to host")
    said = refused(lambda: open_source(DataConfig(source="hf:owner/pets", stream=True)))
    assert said == "'hf:owner/pets' cannot be streamed, since the hub cannot be reached (no route to host): go online"


@pytest.mark.parametrize("name", ["hf:", "hf::a", "hf:a/b/c", "hf:/etc", "hf:../x"])
def test_names_that_are_none(name: str) -> None:
    assert "names no data set: give hf:NAME or hf:OWNER/NAME[:CONFIG]" in refused(lambda: opened(name))


def test_what_the_library_would_read_from_the_working_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert "for that, use --data ./pets" in refused(lambda: opened("hf:pets"))
    pytest.importorskip("datasets")
    assert "is a reader of files, no data set" in refused(lambda: opened("hf:imagefolder"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'convsmith[hub]'" in refused(lambda: opened("hf:beans"))
