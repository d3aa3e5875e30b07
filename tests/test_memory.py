"""Memory that runs out is recognised whoever says so, and told in one line; what is left is read from the system."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from convsmith import cli, memory
from convsmith.errors import OutOfMemory, RunFailed, UserError
from convsmith.memory import explain_memory_errors, ran_out


@pytest.mark.parametrize(
    "allocate",
    [
        pytest.param(lambda: torch.empty(10**15), id="torch"),
        pytest.param(lambda: torch.empty(2**40, 2**40), id="torch, beyond 64 bits"),
        pytest.param(lambda: torch.nn.Linear(10**7, 10**7), id="torch, a layer"),
        pytest.param(lambda: np.empty(10**15), id="numpy"),
        pytest.param(lambda: bytearray(10**17), id="python"),
    ],
)
def test_allocations_that_fail_are_one_line(allocate: Callable[[], object]) -> None:
    with pytest.raises(RunFailed) as failed, explain_memory_errors("in the test", "ask for less"):
        allocate()
    assert str(failed.value) == "memory ran out in the test: ask for less"
    assert failed.value.__cause__
    assert failed.value.__cause__.__traceback__ is None, "its frames hold tensors"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.9 GB, other allocations: 288 MB, max allowed: 9 GB)"),
        RuntimeError("Invalid buffer size: 32.00 GB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:360 Failed to allocate memory for requested buffer"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("unable to mmap 123 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_what_cannot_be_provoked_here_is_known_by_its_words(error: Exception) -> None:
    assert ran_out(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        KeyError("memory"),
        UserError("'out of memory' is no class"),
    ],
    ids=repr,
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explain_memory_errors("in the test"):
        raise error
    assert raised.value is error


def test_a_command_that_no_caller_guards_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: object) -> int:
        raise MemoryError

    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main(["data", "check", "photos"]) == 1
    assert capsys.readouterr().err == f"failed: memory ran out: {memory.FIX}\n"


def test_the_server_asks_to_try_again() -> None:
    pytest.importorskip("starlette", reason="needs starlette: pip install 'convsmith[serve]'")
    from convsmith.serve.app import _failed

    request = cast("Any", None)
    answer = asyncio.run(_failed(request, OutOfMemory("memory ran out in the explanation")))
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert asyncio.run(_failed(request, RunFailed("the logits are not finite"))).status_code == 500


def group(folder: Path, names: tuple[str, str], limit: str, used: int, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names, "memory.stat"), (limit, str(used), stat), strict=True):
        (folder / name).write_text(f"{text}\n", encoding="ascii")


def test_control_groups_limit_what_is_left(tmp_path: Path) -> None:
    """Version 2: a job's group has a limit, the one above it none; pages of files that can be dropped are free."""
    names, me = ("memory.max", "memory.current"), tmp_path / "cgroup"
    group(tmp_path / "slurm/job", names, "1000", 600, "anon 500\ninactive_file 90\nactive_file 10")
    group(tmp_path / "slurm", names, "max", 5000, "inactive_file 0")
    me.write_text("0::/slurm/job\n", encoding="ascii")
    assert list(memory._control_groups(tmp_path, me)) == [490]


def test_a_container_sees_the_root_of_its_control_group(tmp_path: Path) -> None:
    """Version 1: the path is that on the host, which does not exist inside of the container."""
    me = tmp_path / "cgroup"
    group(tmp_path / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "2000", 500, "total_inactive_file 7")
    me.write_text("5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/\n", encoding="ascii")
    assert list(memory._control_groups(tmp_path, me)) == [1507]
    assert list(memory._control_groups(tmp_path, tmp_path / "absent")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says in /proc what a process has")
def test_ulimit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    without = memory.available()
    assert without is not None
    assert without > 0
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + 10**6
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    left = memory.available()
    assert left is not None
    assert left <= 10**6


def test_bytes_as_text() -> None:
    assert [memory.as_text(size) for size in (17_730_000_000, 4e12, 12_345_678)] == ["17.7 GB", "4,000.0 GB", "12 MB"]
