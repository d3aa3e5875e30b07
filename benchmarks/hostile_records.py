"""Hostile files in the place of each file of runs and studies: every verb that reads them says one line.

    python benchmarks/hostile_records.py --minutes 60

Each file of the runs in tests/first_edition is replaced by each of the `TEXTS` of hostile/values.py, and each value in
its JSON and YAML files, by path, by each of the `VALUES`; then all functions that read the directory are called. Only
`UserError` and `RunFailed` may come. What is tried, in random order until the time is over, goes to
docs/results/hostile_records.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile.values import Version, mutated
from PIL import Image

from convsmith.errors import RunFailed, UserError

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "tests" / "first_edition"
OUT = ROOT / "docs" / "results" / "hostile_records.json"

SUFFIXES = (".json", ".yaml", ".csv", ".jsonl")


def readers(place: Path) -> dict[str, Callable[[Path], object]]:
    """What reads a directory of `place`, by the name of the verb; each takes the directory."""
    import convsmith
    from convsmith.report import sections
    from convsmith.report.inputs import read_inputs
    from convsmith.rundir import RunDir, kind_of, open_run
    from convsmith.training import restore

    image = place / "image.png"
    other = place / "other"

    def resume(run: Path) -> object:
        directory = open_run(run)
        if kind_of(directory) == "run" and not directory.summary.exists():
            return restore.resume(directory)  # up to its first step
        return convsmith.resume(run, show=False)

    def loaded(run: Path) -> object:
        found = convsmith.load(run, device="cpu")
        return found.summary, found.metrics, found.best_epoch, found._repr_html_()

    def inputs(run: Path) -> object:
        """What `report` and `compare` read, before they draw."""
        found = read_inputs(run)
        return sections.data(found), sections.diagnosis(found), sections.reproduction(found)

    return {
        "runs": lambda run: convsmith.runs(run.parent),
        "load": loaded,
        "summary": lambda run: convsmith.summary(config=run),
        "predict": lambda run: convsmith.load(run, device="cpu").predict(image),
        "evaluate": lambda run: convsmith.load(run, device="cpu").evaluate("test"),
        "resume": resume,
        "inputs": inputs,
        "compare": lambda run: convsmith.compare([other, run], place / "compare.html"),
        "report": lambda run: (
            convsmith.Run(run, device="cpu").report(show=False) if not RunDir(run).study.exists() else _report(run)
        ),
        "explain": lambda run: convsmith.load(run, device="cpu").explain(image, show=False),
    }


def _report(run: Path) -> object:
    from convsmith.report.run import report

    return report(run)


#: What is called for each directory.
CALLED = {
    "finished": ("runs", "load", "inputs", "summary", "predict", "evaluate", "resume", "compare", "report", "explain"),
    "stopped": ("runs", "load", "summary", "resume"),
    "crossval": ("runs", "resume", "report"),
    "ablation": ("runs", "resume"),
    "tuning": ("runs", "resume"),
}
SLOW = ("predict", "evaluate", "report", "explain", "compare")
EVERY = 6  # of so many versions of a file, one is given to the slow ones


def prepare(place: Path) -> None:
    shutil.copytree(KEPT / "finished", place / "other")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(place / "image.png")


Trial = tuple[str, Path, Version, str]  # directory, file, what is put in its place, the verb


def trials() -> list[Trial]:
    """Every hostile version of every file, with every verb that may read it, in random order."""
    found: list[Trial] = []
    for name, verbs in CALLED.items():
        files = sorted(path.relative_to(KEPT / name) for path in (KEPT / name).rglob("*") if path.suffix in SUFFIXES)
        patterns: dict[str, Path] = {}
        for file in files:  # one fold stands for all
            patterns.setdefault("/".join("*" if part.isdigit() else part for part in file.parts), file)
        for file in patterns.values():
            for number, version in enumerate(mutated(KEPT / name / file)):
                given = [verb for verb in verbs if verb not in SLOW or not number % EVERY]
                found += [(name, file, version, verb) for verb in given]
    random.Random(0).shuffle(found)
    return found


def tried(place: Path, trial: Trial, calls: dict[str, Callable[[Path], object]]) -> str | None:
    """Call the verb on a copy of the directory; the traceback of an unexpected exception, or None."""
    name, file, (_, made), verb = trial
    run = place / "runs" / name
    shutil.rmtree(run.parent, ignore_errors=True)
    shutil.copytree(KEPT / name, run)
    (run / file).write_bytes(made())
    return _unexpected(calls[verb], run)


def _unexpected(call: Callable[[Path], object], run: Path) -> str | None:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(run)
        except (UserError, RunFailed) as error:
            return None if "\n" not in str(error) else f"several lines: {error}"
        except BaseException:
            return traceback.format_exc()
        finally:
            import matplotlib.pyplot as plt

            plt.close("all")
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60, help="how long to try; a part is drawn at random [60]")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["WANDB_MODE"] = "disabled"
    counts: dict[str, Counter[str]] = {name: Counter() for name in CALLED}
    faults: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "within", "it")  # some of the odd values are relative paths, upwards, too
        place.mkdir(parents=True)
        os.chdir(place)
        prepare(place)
        calls, every = readers(place), trials()
        for trial in every:
            if time.monotonic() - began > 60 * args.minutes:
                break
            counts[trial[0]][trial[3]] += 1
            if fault := tried(place, trial, calls):
                lines = fault.strip().splitlines()
                at = next((line.strip() for line in reversed(lines) if "/convsmith/" in line), "")
                faults[f"{at} {lines[-1][:200]}"] += 1
                print(f"{trial[0]} {trial[3]}: {trial[1]}: {trial[2][0]}\n    {at} {lines[-1][:200]}", flush=True)
    done = sum(map(Counter.total, counts.values()))
    result = {
        "command": f"python benchmarks/hostile_records.py --minutes {args.minutes:g}",
        "possible": len(every),
        "calls": done,
        "by_directory_and_verb": {name: dict(sorted(verbs.items())) for name, verbs in counts.items()},
        "unexpected": sum(faults.values()),
    }
    print(json.dumps(result, indent=2))
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
