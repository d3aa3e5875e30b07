"""What damaged, hostile and huge images cost the real `data check` and `predict`: seconds, memory and verdicts.

    python benchmarks/hostile_images.py [--only NAME]

The small images of tests/data/hostile_images.py are checked as one data set, and each of the large ones alone, beside
an ordinary one. Seconds are those of the processor, and memory is the process's highest (getrusage(2)); from both, what
the same command takes on an ordinary image is subtracted. Files are made in processes of their own, since a process
inherits the highest of its parent. Linux alone. Ends with exit code 1 where a file takes more than 5 s or 1 GiB.
Writes docs/results/hostile_images.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "hostile_images.json"
SECONDS, BYTES = 5.0, 2**30
MAKE = """
import sys
from pathlib import Path
from data.hostile_images import TRICKS, encoded, large, noisy, small
what, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True)
if what == "--names":
    print(*large(), *(name for name, make in TRICKS.items() if len(make()) > 60_000))
elif what == "--small":
    for name, data in small():
        (folder / name).write_bytes(data)
elif what == "--ordinary":
    (folder / "ordinary.png").write_bytes(encoded(noisy("RGB", 64), "PNG"))
else:
    (folder / what).write_bytes({**TRICKS, **large()}[what]())
"""


class Cost(NamedTuple):
    seconds: float
    mebibytes: float
    code: int


def make(what: str, folder: Path) -> str:
    command = [sys.executable, "-c", MAKE, what, str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def convsmith(folder: Path, *arguments: str) -> Cost:
    """Run a command; its output is left in out.txt."""
    with (folder / "out.txt").open("w") as out:
        command = [sys.executable, "-m", "convsmith.cli", *arguments]
        child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child.returncode)


def check(folder: Path, data: Path) -> tuple[Cost, dict[str, str]]:
    """`data check`, and the verdict on each file by its name."""
    cost = convsmith(folder, "data", "check", str(data), "--out", "check.json")
    files = json.loads((folder / "check.json").read_text())["files"]
    return cost, {Path(file["id"]).name: file["verdict"] for file in files}


def counts(verdicts: Iterable[object]) -> dict[str, int]:
    return dict(Counter(str(verdict) for verdict in verdicts).most_common())


def measure(folder: Path, name: str, base: dict[str, Cost]) -> dict[str, object]:
    place = folder / name
    make(name, place / "data" / "a")
    make("--ordinary", place / "data" / "b")
    cost, verdicts = check(place, place / "data")
    costs = {"data check": cost, "predict": convsmith(place, "predict", str(folder / "runs/run"), "data")}
    found: dict[str, object] = {"name": name, "verdict": verdicts[name]}
    found["bytes"] = (place / "data" / "a" / name).stat().st_size
    for verb, spent in costs.items():
        seconds, mebibytes = spent.seconds - base[verb].seconds, spent.mebibytes - base[verb].mebibytes
        found[verb] = {"seconds": round(max(seconds, 0), 2), "mebibytes": round(max(mebibytes, 0))}
    (place / "data" / "a" / name).unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="measure one large image, and write nothing")
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CONVSMITH_CACHE"] = str(folder / "cache")
        names = [args.only] if args.only else make("--names", folder / "names").split()
        assert convsmith(folder, "train", "--name", "run", "--epochs", "1").code == 0
        make("--ordinary", folder / "base" / "a")
        make("--ordinary", folder / "base" / "b")
        base = {"data check": check(folder, folder / "base")[0]}
        base["predict"] = convsmith(folder, "predict", "runs/run", "base")
        rows = []
        for each in names:
            rows.append(measure(folder, each, base))
            print(json.dumps(rows[-1]), flush=True)
        excess = [
            row["name"]
            for row in rows
            for verb in base
            if row[verb]["seconds"] > SECONDS or row[verb]["mebibytes"] > BYTES / 2**20
        ]
        if not args.only:
            make("--small", folder / "small" / "a")
            make("--ordinary", folder / "small" / "b")
            cost, verdicts = check(folder, folder / "small")
            result = {
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "pillow": __import__("PIL").__version__,
                "small": {
                    "files": len(verdicts) - 1,
                    "verdicts": counts(verdicts.values()),
                    "seconds": round(cost.seconds - base["data check"].seconds, 2),
                    "mebibytes": round(cost.mebibytes - base["data check"].mebibytes),
                },
                "large": {
                    "files": len(rows),
                    "verdicts": dict(Counter(str(row["verdict"]) for row in rows).most_common()),
                },
                "most": {
                    verb: {key: max(rows, key=lambda row: row[verb][key]) for key in ("seconds", "mebibytes")}
                    for verb in base
                },
                "files": rows,
            }
            RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{len(rows)} files, more than {SECONDS:g} s or {BYTES / 2**20:g} MiB: {', '.join(excess) or 'none'}")
    sys.exit(bool(excess))


if __name__ == "__main__":
    main()
