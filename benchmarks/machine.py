"""What the machine of a benchmark is, for the JSON that the benchmark writes to docs/results/."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from convsmith.runtime import device_names, environment, installed, usable_cores

#: Instructions that decide how fast convolutions are, as /proc/cpuinfo names them.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")
#: What benchmarks compare convsmith with; only those that are installed are listed.
PEERS = ("lightning", "fastai", "keras", "jax", "timm", "webdataset", "datasets")


def machine() -> dict[str, Any]:
    """Processor, memory, accelerators, versions and revision. Called first, so that `load` is that of other work.

    `load` is the mean number of processes that were running or waiting during the last minute.
    """
    here = environment()
    cpuinfo = Path("/proc/cpuinfo")
    facts = cpuinfo.read_text() if cpuinfo.exists() else ""
    models, flags = (re.findall(rf"^{key}\s*: (.*)", facts, re.MULTILINE) for key in ("model name", "flags"))
    present = set(flags[0].split()) if flags else set()
    count = torch.cuda.device_count()
    return {
        "processor": models[0] if models else platform.processor(),
        "flags": [flag for flag in FLAGS if flag in present],
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(count)]
        or [name for name in device_names() if name != "cpu"],
        "platform": here["platform"],
        "python": here["python"],
        "versions": here["versions"] | {peer: there for peer in PEERS if (there := installed(peer)) != "not installed"},
        "git_revision": here["git_revision"],
        "load": round(os.getloadavg()[0], 2),
    }
