"""A training on streamed shards resumes to bit-identical weights, and says which shard is not what it was."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from convsmith.config import RunConfig, validate
from convsmith.data import streamed
from convsmith.errors import UserError
from convsmith.events import EpochEnd
from convsmith.runtime import Interrupts
from convsmith.training import restore, setup
from convsmith.training.experiment import Experiment
from convsmith.training.loop import epochs
from data.small import InProcess

NAMES = ("train-0", "train-1", "train-2", "train-3", "val-0")


def images(seed: int) -> list[tuple[bytes, str]]:
    """24 images, dark and bright in turns."""
    rng, found = np.random.default_rng(seed), []
    for at in range(24):
        stream = io.BytesIO()
        pixels = rng.integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(100 * (at % 2))
        Image.fromarray(pixels).save(stream, "PNG")
        found.append((stream.getvalue(), ["dark", "bright"][at % 2]))
    return found


def as_tar(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        with tarfile.open(folder / f"{name}.tar", "w") as shard:
            for at, (image, label) in enumerate(images(number)):
                for suffix, content in (("png", image), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{at:02d}.{suffix}")
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))


def as_parquet(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        content, labels = zip(*images(number), strict=True)
        table = pa.table({"image": list(content), "label": list(labels)})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=10)


def config_of(folder: Path) -> RunConfig:
    train = {"epochs": 2, "batch_size": 16, "threads": 1, "layout": "contiguous", "precision": "float32"}
    return validate(
        {
            "data": {"source": str(folder), "stream": True, "shuffle_buffer": 20},
            "augment": {"shift": 1},
            "train": train | {"log_every": 2, "checkpoint_minutes": 0},
            "track": {"wandb": "off"},
        }
    )


def train_until(experiment: Experiment, step: int) -> dict[str, torch.Tensor]:
    with closing(epochs(experiment, Interrupts())) as events:
        for event in events:
            if experiment.state.step >= step and (step < 12 or isinstance(event, EpochEnd)):
                break
    return experiment.state.tensors()


@pytest.mark.parametrize(("write", "first"), [(as_tar, "train-1.tar"), (as_parquet, "train-1.parquet")])
def test_a_cut_run_resumes_to_the_same_bits_and_names_a_shard_that_is_missing(
    write: Callable[[Path], None], first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "Workers", InProcess)
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder)
    config = config_of(folder)
    expected = train_until(setup.start(setup.prepare(config), tmp_path / "whole"), 12)
    cut = setup.start(setup.prepare(config), tmp_path / "cut")
    train_until(cut, 8)  # in the second of two epochs of six steps
    (folder / first).rename(tmp_path / first)
    with pytest.raises(UserError, match=rf"on the shard '{first}(#0)?', which is missing; put the shard back"):
        restore.resume(cut.run)
    (tmp_path / first).rename(folder / first)
    torch.manual_seed(1)  # as a new process would be at some other place
    resumed = restore.resume(cut.run)
    assert resumed.state.step == 8
    found = train_until(resumed, 12)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert any("streamed from" in note for note in cut.notes)
