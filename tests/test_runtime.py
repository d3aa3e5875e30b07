"""What a run asks of its process."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
