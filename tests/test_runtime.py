"""What a run asks of its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from convsmith.runtime import Interrupts, seed_everything

STEPS = """
import ctypes, resource, sys
from convsmith.runtime import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for step in range(30):  # a step's activations
    blocks = [libc.malloc(20_000_000) for _ in range(5)]
    for block in blocks:
        ctypes.memset(block, 1, 20_000_000)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    faults = {}
    for name in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", STEPS, name], check=True, capture_output=True, text=True)
        faults[name] = int(done.stdout)
    assert faults["kept"] < faults["given back"] / 5


def test_a_hangup_is_recorded_unless_it_is_ignored() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)  # from the kernel, after that of the shell: the first is still being obeyed
    assert interrupts.received is signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
        assert not interrupts
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


IN_A_TERMINAL = """
import fcntl, os, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from convsmith.runtime import Interrupts
with Interrupts() as interrupts:
    print("ready", flush=True)
    while not interrupts:
        time.sleep(0.01)
print("stopped and saved", flush=True)
os._exit(128 + interrupts.received)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hangs up in this way")
def test_a_terminal_that_is_closed_ends_in_good_order_what_prints_to_it() -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    assert os.read(ours, 100).strip() == b"ready"
    os.close(ours)
    assert process.wait(timeout=30) == 128 + signal.SIGHUP


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_on_cuda_are_exact_or_fast(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    for module, name in (
        (torch.backends.cudnn, "benchmark"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that it is set back
    precision, before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    try:
        seed_everything(3, deterministic)
        assert torch.initial_seed() == 3
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.get_float32_matmul_precision() == ("highest" if deterministic else "high")
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(before)
