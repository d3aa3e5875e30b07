"""Several processes train together: as one would, to the end of a kill, and refused where they differ.

The processes are forked copies with the environment that torchrun gives; one test runs torchrun itself.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from convsmith.tracking import csv
from convsmith.training import checkpoint
from forked import KILLER, Commands

Ranks = Callable[..., subprocess.CompletedProcess[str]]

#: Forks the other ranks, whose arguments may differ.
SEVERAL = """
import os, sys
rank = 0
for other in range(1, {size}):
    if rank == 0 and os.fork() == 0:
        rank = other
os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="{size}", LOCAL_WORLD_SIZE="{size}")
os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
sys.argv += {extra!r}.get(rank, [])
{before}
"""
#: Batch norm synchronised, dropout and augmentation off, so that nothing depends on the number of processes. Smooth,
#: since sums in another order may decide another way between equal values of a max pooling or at the kink of ReLU.
EQUAL = (
    "train --data digits --data.limit 400 --epochs 3 --batch-size 64 --optim.name sgd --lr 0.1 --augment.shift 0 "
    "--model.hidden_dropout 0 --train.sync_batch_norm true --train.log_every 3 --track.wandb off --train.threads 1 "
    "--train.layout contiguous --train.precision float32 --model.activation gelu --model.pool average"
).split()
EVERYTHING = (
    "--train.ema 0.9 --train.class_weights balanced --regularize.l1 0.0001 --regularize.l2 0.001 "
    "--regularize.clip_norm 1 --schedule.name plateau --schedule.patience 1 --train.patience 2"
).split()
#: All that is drawn at random, for what must be the same bits after a kill.
RANDOM = (
    "train --data digits --data.limit 400 --epochs 2 --batch-size 64 --augment.shift 1 --augment.mixup 0.4 "
    "--model.dropout 0.1 --train.ema 0.9 --train.log_every 2 --train.checkpoint_minutes 0 --track.wandb off "
    "--train.threads 1 --train.layout contiguous --name two"
).split()


def free_port() -> int:
    """A port that nothing listens on, below those that systems give to outgoing connections, such as of other tests."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 50):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port among fifty")


@pytest.fixture
def ranks(commands: Commands, tmp_path: Path) -> Ranks:
    """Run a command in several connected processes; `code` is the exit code expected of the first."""

    def run(
        *arguments: str, size: int = 2, code: int = 0, before: str = "", extra: dict[int, list[str]] | None = None
    ) -> subprocess.CompletedProcess[str]:
        several = SEVERAL.format(size=size, port=free_port(), extra=extra or {}, before=before)
        done = commands.start(tmp_path, arguments, before=several, seconds=100).wait()
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def killing(rank: int, moment: int) -> str:
    """Code by which one rank kills itself before a step."""
    return f"if rank == {rank}:\n" + "\n".join(
        f"    {line}" for line in KILLER.format(moment=str(moment), number=int(signal.SIGKILL)).splitlines()
    )


def losses(run: Path) -> torch.Tensor:
    rows = csv.read(run / "metrics.csv")
    return torch.tensor([[row["train_loss"], row["val_loss"]] for row in rows])


def test_two_ranks_train_as_one_process(ranks: Ranks, convsmith: Ranks, tmp_path: Path) -> None:
    convsmith(*EQUAL, *EVERYTHING, "--name", "one")
    said = ranks(*EQUAL, *EVERYTHING, "--name", "two").stdout
    assert said.count("2 ranks train together") == 1
    one, two = losses(tmp_path / "runs" / "one"), losses(tmp_path / "runs" / "two")
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "runs" / "two" / "report.html").exists()
    assert checkpoint.read_newest(tmp_path / "runs" / "two" / "checkpoints")[1]["ranks"] == 2


def test_three_ranks_divide_what_two_cannot_and_unfreeze_together(
    ranks: Ranks, convsmith: Ranks, tmp_path: Path
) -> None:
    """Head alone on kept features in epoch 1, then a stage more each epoch."""
    freeze = ("--transfer.freeze", "[all-but-head]", "--transfer.unfreeze", "{after: 1, every: 1, stages: 2}")
    freeze += ("--data.sampling", "balanced", "--optim.momentum", "0")
    convsmith(*EQUAL, *freeze, "--name", "one")
    ranks(*EQUAL, *freeze, "--name", "three", size=3)
    one, three = losses(tmp_path / "runs" / "one"), losses(tmp_path / "runs" / "three")
    torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-5)
    log = (tmp_path / "runs" / "three" / "log.txt").read_text()
    assert log.count("train as well") >= 1


def test_a_kill_ends_all_and_a_resume_gives_the_same_bits(ranks: Ranks, convsmith: Ranks, tmp_path: Path) -> None:
    ranks(*RANDOM)
    run = tmp_path / "runs" / "two"
    whole, rows = load_file(run / "model" / "model.safetensors"), losses(run)
    run.rename(tmp_path / "whole")
    began = time.monotonic()
    ended = ranks(*RANDOM, code=1, before=killing(rank=1, moment=7))
    assert time.monotonic() - began < 30
    assert ended.stderr.count("another process of this training has ended") == 1
    assert "torchrun --max-restarts" in ended.stderr
    # torchrun repeats the command as it was, and says how often it has done so.
    again = "os.environ['TORCHELASTIC_RESTART_COUNT'] = '1'"
    ranks(*RANDOM, before=again)
    assert "resumed at step 6" in (run / "log.txt").read_text()
    resumed = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert torch.equal(losses(run), rows)
    assert "is finished: there is nothing to resume" in ranks(*RANDOM, before=again).stdout


def test_one_process_goes_on_with_what_two_began(ranks: Ranks, convsmith: Ranks, tmp_path: Path) -> None:
    convsmith(*EQUAL, "--name", "one")
    ranks(*EQUAL, "--name", "two", "--train.checkpoint_minutes", "0", code=1, before=killing(rank=1, moment=7))
    said = convsmith("resume", "runs/two").stdout
    assert "trained by 2 ranks so far, and goes on with 1" in said
    one, two = losses(tmp_path / "runs" / "one"), losses(tmp_path / "runs" / "two")
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(ranks: Ranks, tmp_path: Path) -> None:
    kill = killing(rank=1, moment=3).replace(f", {int(signal.SIGKILL)})", f", {int(signal.SIGTERM)})")
    done = ranks(*EQUAL, "--name", "two", code=143, before=kill)
    assert done.stdout.count("stopped and saved at step") == 1
    assert "error" not in done.stderr
    metadata = checkpoint.read_newest(tmp_path / "runs" / "two" / "checkpoints")[1]
    assert (metadata["step"], metadata["position"]) == (5, 5) or metadata["position"] % 3 == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({1: ["--lr", "0.2"]}, "started alike, but optim.lr is 0.1 on rank 0 and 0.2 on rank 1"),
        ({1: ["--data", "other"]}, "data.source is"),
    ],
)
def test_ranks_that_differ_are_refused(ranks: Ranks, tmp_path: Path, extra: dict[int, list[str]], message: str) -> None:
    done = ranks(*EQUAL, "--name", "two", code=2, extra=extra)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_other_versions_and_other_data_are_refused(ranks: Ranks, tmp_path: Path) -> None:
    versions = "from convsmith.training import together\nbefore = together.environment\n"
    versions += "if rank: together.environment = lambda: before() | {'python': '3.0'}"
    done = ranks(*EQUAL, "--name", "two", code=2, before=versions)
    assert "versions.python is" in done.stderr
    data = "from convsmith.data import dataset\nif rank: dataset.Dataset.hash = property(lambda self: 'other')"
    done = ranks(*EQUAL, "--name", "two", code=2, before=data)
    assert done.stderr == "error: rank 1 of 2: the data 'digits' are not those of rank 0\n"
    assert not list((tmp_path / "runs").glob("[!.]*")) if (tmp_path / "runs").exists() else True


def test_what_several_processes_cannot_do_is_refused_in_one_line(ranks: Ranks) -> None:
    done = ranks(*EQUAL, "--name", "two", "--batch-size", "2", size=3, code=2)
    assert done.stderr.startswith("error: batches of 2 images cannot be divided among 3 processes: raise")
    done = ranks("evaluate", "runs/two", code=2)
    alone = "evaluate runs in one process: start it without torchrun (train and resume take several)"
    assert done.stderr == f"error: {alone}\n"


RESTARTED = """
import os, sys
rank = int(os.environ["RANK"])
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
{kill}
from convsmith.cli import run
sys.argv[0] = "convsmith"
run()
"""


def test_torchrun_starts_all_again_after_a_kill(tmp_path: Path) -> None:
    def torchrun(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", *command],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    torchrun("-m", "convsmith", *RANDOM)
    run = tmp_path / "runs" / "two"
    whole = load_file(run / "model" / "model.safetensors")
    run.rename(tmp_path / "whole")
    script = tmp_path / "train.py"
    script.write_text(RESTARTED.format(kill="\n".join(f"    {line}" for line in killing(1, 7).splitlines())))
    torchrun("--max-restarts", "1", str(script), *RANDOM)
    assert "resumed at step 6" in (run / "log.txt").read_text()
    resumed = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
