"""What damaged, hostile and huge images cost the real `data check` and `predict`: seconds, memory and verdicts.

    python benchmarks/hostile_images.py [--only PART...]

The small images of tests/data/hostile_images.py are checked as one data set, and each of the large ones alone, beside
an ordinary one. Seconds are those of the processor, and memory is the process's highest (getrusage(2)); from both, what
the same command takes on ordinary images is subtracted. Each command is a copy (fork) of a process that has imported
everything. Linux alone. Ends with exit code 1 where a file takes more than 5 s or 1 GiB. Writes
docs/results/hostile_images.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import imagehash  # noqa: F401 (what the commands import)
import PIL
import torch  # noqa: F401

from convsmith.cli import main as main_of_cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from data.hostile_images import TRICKS, encoded, large, noisy, small

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "hostile_images.json"
SECONDS, MEBIBYTES = 5.0, 1024
COSTLY = (  # of the tricks that are cheap to make
    "many-chunks.png profiles.png texts.png exif-numbers.png scans.jpg exif-parts.jpg comments.gif numbers.tif "
    "strips.tif same-strips.tif comments.ppm"
).split()


class Cost(NamedTuple):
    seconds: float
    mebibytes: float
    code: int


def forked(work: Callable[[], int]) -> Cost:
    """What `work` costs in a copy of this process, which has imported everything, but holds no images."""
    if (child := os.fork()) == 0:
        code = 99
        try:
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status))


def convsmith(*arguments: str) -> Cost:
    def command() -> int:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return main_of_cli(arguments)

    return forked(command)


def make(path: Path, content: Callable[[], bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cost = forked(lambda: path.write_bytes(content()) and 0)
    assert cost.code == 0, path


def ordinary(folder: Path) -> None:
    make(folder / "ordinary.png", lambda: encoded(noisy("RGB", 64), "PNG"))


def check(data: Path) -> tuple[Cost, dict[str, str]]:
    """`data check`, and the verdict on each file by its name."""
    out = data / "check.json"
    cost = convsmith("data", "check", str(data), "--out", str(out))
    return cost, {Path(file["id"]).name: file["verdict"] for file in json.loads(out.read_text())["files"]}


def counts(verdicts: Iterable[object]) -> dict[str, int]:
    return dict(Counter(str(verdict) for verdict in verdicts).most_common())


def measure(folder: Path, name: str, content: Callable[[], bytes], base: dict[str, Cost]) -> dict[str, Any]:
    data = folder / name
    make(data / "a" / name, content)
    ordinary(data / "b")
    cost, verdicts = check(data)
    costs = {"data check": cost, "predict": convsmith("predict", str(folder / "runs/run"), str(data))}
    found: dict[str, Any] = {"name": name, "verdict": verdicts[name], "bytes": (data / "a" / name).stat().st_size}
    for verb, spent in costs.items():
        seconds, mebibytes = spent.seconds - base[verb].seconds, spent.mebibytes - base[verb].mebibytes
        found[verb] = {"seconds": round(max(seconds, 0), 2), "mebibytes": round(max(mebibytes, 0))}
    (data / "a" / name).unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    only = "large images with one of these in their names; the other rows stay as they are"
    parser.add_argument("--only", metavar="PART", nargs="+", help=only)
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    files = {**{name: TRICKS[name] for name in COSTLY}, **large()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["CONVSMITH_CACHE"] = str(folder / "cache")
        trained = convsmith("train", "--name", "run", "--epochs", "1", "--runs-dir", str(folder / "runs"))
        assert trained.code == 0
        ordinary(folder / "base" / "a")
        ordinary(folder / "base" / "b")
        base = {"data check": check(folder / "base")[0]}
        base["predict"] = convsmith("predict", str(folder / "runs/run"), str(folder / "base"))
        known = json.loads(RESULT.read_text())["files"] if args.only else []
        rows = {row["name"]: row for row in known if row["name"] in files}
        for each, content in files.items():
            if args.only is None or any(part in each for part in args.only):
                rows[each] = measure(folder, each, content, base)
                print(json.dumps(rows[each]), flush=True)
        for each, content in small():
            make(folder / "small" / "a" / each, lambda content=content: content)
        ordinary(folder / "small" / "b")
        cost, verdicts = check(folder / "small")
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Pillow {PIL.__version__}",
        "small": {
            "files": len(verdicts) - 1,
            "verdicts": counts(verdicts.values()),
            "seconds": round(cost.seconds - base["data check"].seconds, 2),
            "mebibytes": round(cost.mebibytes - base["data check"].mebibytes),
        },
        "large": {"files": len(rows), "verdicts": counts(row["verdict"] for row in rows.values())},
        "most": {
            f"{verb}, {key}": max((row[verb][key], name) for name, row in rows.items())
            for verb in base
            for key in ("seconds", "mebibytes")
        },
        "files": list(rows.values()),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    over = [name for name, row in rows.items() for verb in base if exceeds(row[verb])]
    print(f"{len(rows)} files, more than {SECONDS:g} s or {MEBIBYTES} MiB: {', '.join(over) or 'none'}")
    sys.exit(bool(over))


def exceeds(cost: dict[str, float]) -> bool:
    return cost["seconds"] > SECONDS or cost["mebibytes"] > MEBIBYTES


if __name__ == "__main__":
    main()
