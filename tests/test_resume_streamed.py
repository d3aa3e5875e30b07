"""A training on streamed shards resumes to bit-identical weights, and says which shard is not what it was."""

from __future__ import annotations

import io
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Convsmith, RunUntil
from test_resume import same_run

FLAGS = (
    "train --name run --epochs 2 --batch-size 16 --train.threads 1 --train.layout contiguous "
    "--train.checkpoint_minutes 0 --train.log_every 2 --data.shuffle_buffer 20 --augment.shift 1 "
    "--track.wandb off --data"
).split()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards to train on and one for val, each of 24 dark or bright images."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for name in ("train-0", "train-1", "train-2", "train-3", "val-0"):
        with tarfile.open(folder / f"{name}.tar", "w") as shard:
            for at in range(24):
                stream = io.BytesIO()
                pixels = rng.integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(100 * (at % 2))
                Image.fromarray(pixels).save(stream, "PNG")
                for suffix, content in (("png", stream.getvalue()), ("cls", [b"dark", b"bright"][at % 2])):
                    info = tarfile.TarInfo(f"{at:02d}.{suffix}")
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    return folder


def test_a_killed_run_on_shards_resumes_to_the_same_bits(
    shards: Path, tmp_path: Path, run_until: RunUntil, convsmith: Convsmith
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert run_until(whole, "never", *FLAGS, str(shards)) == 0
    assert run_until(cut, "8", *FLAGS, str(shards)) == -signal.SIGKILL  # in the second of two epochs of six steps
    path = shards / "train-1.tar"
    content = path.read_bytes()
    path.unlink()
    said = convsmith("resume", cut / "runs/run", code=2).stderr
    assert "on the shard 'train-1.tar', which is missing; put the shard back" in said
    path.write_bytes(content)
    assert run_until(cut, "never", "resume", "runs/run") == 0
    same_run(whole / "runs/run", cut / "runs/run")
    assert "streamed from 4 shards" in (whole / "runs/run/log.txt").read_text()
    assert (whole / "runs/run/report.html").exists()
    done = convsmith("evaluate", whole / "runs/run", "--split", "val").stdout
    assert "accuracy" in done
