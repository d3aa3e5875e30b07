"""convsmith doctor."""

from __future__ import annotations

import argparse
import os

PLACE, LINE = 170, "versions, devices, threads, cache and W&B of this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: it tells what there is."""


def run(args: argparse.Namespace) -> int:
    import torch

    from convsmith.config import RunConfig
    from convsmith.data.sources import cache_folder
    from convsmith.runtime import device_names, environment
    from convsmith.tracking.wandb import login_state

    facts = environment()
    folder = cache_folder(RunConfig().data)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    lines = {
        "python": f"{facts['python']} on {facts['platform']}",
        **facts["versions"],
        "devices": ", ".join(device_names()),
        "threads": f"{torch.get_num_threads()} of {facts['cores']} cores",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cache": f"{folder} ({size / 1e6:,.0f} MB{'' if os.access(existing, os.W_OK) else ', NOT WRITABLE'})",
        "W&B": login_state(),
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")
    return 0
