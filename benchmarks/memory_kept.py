"""What it is worth that glibc keeps freed memory: steps of simple-cnn on random images, in turns, a process each.

python benchmarks/memory_kept.py [--rounds 3]

Prints the images per second and the pages that the system had to clear, with `runtime.keep_freed_memory` and without.
Linux alone. Writes docs/results/memory_kept.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "memory_kept.json"
BATCH, WARM, STEPS = 128, 30, 120


def steps(kept: bool) -> dict[str, float]:
    """The median step's images per second, and page faults a step."""
    import torch

    from convsmith.nets.build import build
    from convsmith.nets.config import ModelConfig
    from convsmith.runtime import keep_freed_memory

    if kept:
        keep_freed_memory()
    torch.manual_seed(0)
    model = build(ModelConfig(name="simple-cnn"), 3, 32, 10).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    seconds = []
    for number in range(WARM + STEPS):
        if number == WARM:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"images_per_second": BATCH / statistics.median(seconds[WARM:]), "page_faults_a_step": faults / STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=["kept", "given back"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(steps(args.one == "kept")))
        return
    found: dict[str, list[dict[str, float]]] = {"kept": [], "given back": []}
    for _ in range(args.rounds):
        for name, of in found.items():
            done = subprocess.run([sys.executable, __file__, "--one", name], check=True, capture_output=True, text=True)
            of.append(json.loads(done.stdout))
    rates = {name: statistics.median(one["images_per_second"] for one in of) for name, of in found.items()}
    result = {"rounds": found, "medians": rates, "ratio": rates["kept"] / rates["given back"]}
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
