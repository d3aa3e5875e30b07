"""Describes this machine: versions, devices, threads, the cache, the W&B account. Changes nothing."""

from __future__ import annotations

import os

import torch

from convsmith.config import RunConfig
from convsmith.data.sources import cache_folder
from convsmith.precision import has_bfloat16
from convsmith.runtime import device_names, environment
from convsmith.tracking.wandb import login_state


def description() -> dict[str, str]:
    """The properties of the machine by name, as text."""
    here = environment()
    folder = cache_folder(RunConfig().data)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "python": f"{here['python']} on {here['platform']}",
        **here["versions"],
        "devices": ", ".join(device_names()),
        "threads": f"{torch.get_num_threads()} of {here['cores']} cores",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "precision": "bfloat16, float32" if has_bfloat16(torch.device(device_names()[0])) else "float32",
        "cache": f"{folder} ({size / 1e6:,.0f} MB{'' if os.access(existing, os.W_OK) else ', NOT WRITABLE'})",
        "W&B": login_state(),
    }
