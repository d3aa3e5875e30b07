"""A run killed at any moment resumes to bit-identical weights, with everything on that has a memory."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import RunUntil
from convsmith.errors import Stopped, Terminated
from convsmith.events import nobody
from convsmith.report import run as report_run
from convsmith.run import _finish
from convsmith.rundir import RunDir
from convsmith.tracking import csv
from convsmith.training import checkpoint
from convsmith.training.own import NO_PARTS
from convsmith.training.ranks import ALONE
from forked import Commands, kill_at

EPOCHS = 3
FLAGS = (
    "train --name run --epochs 3 --batch-size 64 --data.limit 750 --train.threads 1 --train.layout contiguous "
    "--train.log_every 3 --train.checkpoint_minutes 0 --train.ema 0.9 --train.patience 2 --train.monitor val_loss "
    "--optim.name sgd --optim.nesterov --lr 0.1 --schedule.name plateau --schedule.patience 0 --schedule.factor 0.5 "
    "--schedule.threshold 0.5 --model.dropout 0.1 --regularize.l1 1e-5 --regularize.l2 1e-4 --regularize.clip_norm 1 "
    "--augment.hflip --augment.shift 1 --augment.cutout 2 --augment.mixup 0.4 --augment.cutmix 1 "
    "--augment.rotation 10 --augment.brightness 0.2"
).split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, run_until: RunUntil) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run_until(folder, "never", *FLAGS) == 0
    return folder / "runs" / "run"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(path)[0]


def numbers(path: Path) -> list[dict]:
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in timed} for row in csv.read(path)]


def same_run(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        left, right = (tensors(path / "checkpoints" / f"{name}.safetensors") for path in (one, other))
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].numpy().tobytes() == right[key].numpy().tobytes(), f"{name}: {key}"
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    assert (one / "model/model.json").read_bytes() == (other / "model/model.json").read_bytes()
    assert numbers(one / "metrics.csv") == numbers(other / "metrics.csv")
    assert (one / "predictions-val.csv").read_bytes() == (other / "predictions-val.csv").read_bytes()


def test_the_run_exercises_what_has_a_memory(whole: Path) -> None:
    rows = csv.read(whole / "metrics.csv")
    assert len(rows) == EPOCHS
    assert len({row["learning_rate"] for row in rows}) > 1, "plateau never cut"
    names = {name.split(".")[0] for name in tensors(whole / "checkpoints/last.safetensors")}
    assert names == {"model", "average", "optimizer", "counts", "rng"}


def test_the_same_command_gives_the_same_run(whole: Path, tmp_path: Path, run_until: RunUntil) -> None:
    assert run_until(tmp_path, "never", *FLAGS) == 0
    same_run(whole, tmp_path / "runs" / "run")


SEED = random.Random(20260101)
MOMENTS = [
    ["0"],  # before the first step
    [str(SEED.randrange(1, 10)), str(SEED.randrange(10, 20)), str(SEED.randrange(20, 27))],  # in mid-epoch, thrice
    ["share2", "share5"],  # while checkpoints are being exchanged
]


@pytest.mark.parametrize("moments", MOMENTS, ids=["first-step", "random-steps", "in-checkpoint"])
def test_killed_and_resumed_is_bit_identical(
    whole: Path, tmp_path: Path, run_until: RunUntil, moments: list[str]
) -> None:
    killed = [run_until(tmp_path, moments[0], *FLAGS)]
    killed += [run_until(tmp_path, moment, "resume", "runs/run") for moment in moments[1:]]
    assert killed == [-signal.SIGKILL] * len(moments), "a kill did not happen"
    assert run_until(tmp_path, "never", "resume", "runs/run") == 0
    same_run(whole, tmp_path / "runs" / "run")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole: Path, tmp_path: Path, run_until: RunUntil) -> None:
    assert run_until(tmp_path, "20", *FLAGS) == -signal.SIGKILL
    last = tmp_path / "runs/run/checkpoints/last.safetensors"
    data = bytearray(last.read_bytes())
    data[-100] ^= 1
    last.write_bytes(data)
    assert run_until(tmp_path, "never", "resume", "runs/run") == 0
    assert "checkpoint is damaged" in (tmp_path / "runs/run/log.txt").read_text()
    same_run(whole, tmp_path / "runs" / "run")


def test_a_finished_run_says_so(whole: Path, convsmith) -> None:
    done = convsmith("resume", whole)
    first, *following = done.stdout.splitlines()
    assert "is finished" in first
    assert [line.split()[-4:] for line in following] == [
        ["evaluate", str(whole), "--split", "test"],
        ["convsmith", "predict", str(whole), "IMAGE..."],
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_tells_how_to_resume(
    whole: Path, tmp_path: Path, run_until: RunUntil, commands: Commands, number: int, code: int
) -> None:
    done = commands.run(tmp_path, FLAGS, kill_at("7", number))
    assert done.returncode == code, done.stdout + done.stderr
    assert "convsmith resume runs/run" in done.stdout
    assert run_until(tmp_path, "never", "resume", "runs/run") == 0
    same_run(whole, tmp_path / "runs" / "run")


def test_a_checkpoint_of_another_architecture_is_refused_with_both_key_sets(
    whole: Path, tmp_path: Path, convsmith
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("hidden: null", "hidden: [77, 20]"))
    done = convsmith("resume", "run", code=2)
    assert "another architecture" in done.stderr
    assert "missing: hidden.1.bias" in done.stderr
    assert "(200,) for (77,)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("signaled", [KeyboardInterrupt(), Terminated(signal.SIGTERM)], ids=["ctrl-C", "SIGTERM"])
def test_an_interrupted_report_does_not_hide_that_the_training_has_ended(
    signaled: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise signaled

    monkeypatch.setattr("convsmith.run.epochs", lambda *_: iter(()))
    monkeypatch.setattr("convsmith.run.opening", lambda _: None)
    monkeypatch.setattr(report_run, "after_training", interrupted)
    experiment: Any = SimpleNamespace(run=RunDir(tmp_path / "a b"), ranks=ALONE)
    with pytest.raises(Stopped, match=r"the training has ended, and .* convsmith report '.*a b'") as stopped:
        _finish(experiment, NO_PARTS, nobody)
    assert stopped.value.signal == (signal.SIGINT if isinstance(signaled, KeyboardInterrupt) else signal.SIGTERM)
