"""Data sets of the hub: from the cache of `datasets` without a network, and one line where they cannot be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

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
