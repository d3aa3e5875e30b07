"""Hostile files in the place of each file of finished runs and studies: every verb that reads them says one line.

    python benchmarks/hostile_records.py [--quick]

Each file of the runs in tests/first_edition is replaced by each of the texts of `TEXTS`, and each value in its JSON and
YAML files, by path, by each of `VALUES`; then all functions that read the directory are called. Only `UserError` and
`RunFailed` may come. The counts go to docs/results/hostile_records.json. `--quick` tries the texts alone, and writes
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convsmith.errors import RunFailed, UserError

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "tests" / "first_edition"
OUT = ROOT / "docs" / "results" / "hostile_records.json"

TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "a blank": b" ",
    "a newline": b"\n",
    "a word": b"word",
    "null": b"null",
    "true": b"true",
    "a number": b"1",
    "a text": b'"text"',
    "a list": b"[]",
    "a list of lists": b"[[], [1]]",
    "an object": b"{}",
    "an object of null": b'{"a": null}',
    "a list of objects": b"[{}]",
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 50_000,
    "closed nested lists": b"[" * 900 + b"]" * 900,
    "NaN": b"NaN",
    "a large float": b"1e999",
    "10^30": b"1" + b"0" * 30,
    "5,000 digits": b"9" * 5_000,
    "equal keys": b'{"a": 1, "a": 2}',
    "half an object": b'{"a": 1',
    "two values": b"{} {}",
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": b'{"caf\xe9": 1}',
    "a surrogate": b'{"a": "\\ud800"}',
    "a NUL": b'{"a": "\0"}',
    "NULs": b"\0" * 1_000,
    "bytes": bytes(range(256)),
    "a newer edition": b'{"format_version": 99}',
    "an odd edition": b'{"format_version": "two"}',
    "escapes": b'\x1b[31m{"\x1b]0;a\x07": 1}',
    "an alias bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *c]\n",
    "a tag": b"!!python/object/apply:os.system [ls]",
    "a broken tag": b"a: !!bool x",
    "a header": b"epoch,train_loss\n",
    "a short row": b"epoch,train_loss\n1\n",
    "a long row": b"epoch,train_loss\n1,2,3,4\n",
    "an odd row": b'epoch,"train_loss\n1,2\r3\n',
}
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**62, 10**30, 1.5, -0.5, 1e308, "", "x", "a\x1b[31m\n", "../../x", "\0",
    [], [None], [[1]], {}, {"a": {}},
)  # fmt: skip
READ = ("json", "yaml")  # files whose values are replaced one by one


def readers(place: Path) -> dict[str, Callable[[Path], object]]:
    """What reads a directory of `place`, by the name of the verb; each takes the directory."""
    import convsmith
    from convsmith.report import sections
    from convsmith.report.inputs import read_inputs
    from convsmith.rundir import RunDir, kind_of, open_run
    from convsmith.training import setup

    image = place / "image.png"
    other = place / "other"

    def resume(run: Path) -> object:
        directory = open_run(run)
        if kind_of(directory) == "run" and not directory.summary.exists():
            return setup.resume(directory)  # up to its first step
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


def mutated(file: Path, quick: bool) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each hostile version of a file."""
    yield from TEXTS.items()
    content = file.read_bytes()
    yield "cut in half", content[: len(content) // 2]
    yield "one byte", content[: len(content) // 2] + b"\xff" + content[len(content) // 2 + 1 :]
    if quick or file.suffix[1:] not in READ:
        return
    if file.suffix == ".json":
        value = json.loads(content)
        write: Callable[[Any], str] = json.dumps
    else:
        from convsmith.plainyaml import parse_yaml, to_yaml

        value, write = parse_yaml(content.decode(), str(file)), to_yaml
    for path in paths(value):
        for odd in VALUES:
            with contextlib.suppress(ValueError):
                yield (
                    f"{'.'.join(map(str, path))} = {odd!r}",
                    write(replaced(value, path, odd)).encode("utf-8", "replace"),
                )
        yield f"{'.'.join(map(str, path))} is gone", write(replaced(value, path, GONE)).encode()


GONE = object()


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value but the root; of a list, and of objects that are alike, only those in the first one."""
    if above:
        yield above
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        keys = {tuple(part) for part in value.values() if isinstance(part, dict)}
        alike = len(keys) == 1 and all(isinstance(part, dict) for part in value.values())
        inner = list(value.items())[: 1 if alike else None]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:1]
    for key, part in inner:
        yield from paths(part, (*above, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with `new` at `path`, or without what is there."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    inner = replaced(copy[path[0]], path[1:], new)
    if inner is GONE:
        del copy[path[0]]
    else:
        copy[path[0]] = inner
    return copy


def prepare(place: Path) -> None:
    shutil.copytree(KEPT / "finished", place / "other")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(place / "image.png")


def trials(place: Path, name: str, quick: bool, only: str = "") -> Iterator[tuple[str, str, str, str | None]]:
    """Yield (file, mutation, verb, the traceback of an unexpected exception or None) for a directory."""
    kept, run = KEPT / name, place / "runs" / name
    calls = readers(place)
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    files = [
        path
        for path in files
        if path.suffix in (".json", ".yaml", ".csv", ".jsonl") and (not only or str(path) == only)
    ]
    seen: Counter[str] = Counter()
    for file in files:
        pattern = "/".join("*" if part.isdigit() else part for part in file.parts)
        seen[pattern] += 1
        if seen[pattern] > 1:  # one fold of all
            continue
        for number, (mutation, content) in enumerate(mutated(kept / file, quick)):
            for verb in CALLED[name]:
                if verb in SLOW and number % EVERY:
                    continue
                shutil.rmtree(run, ignore_errors=True)
                shutil.copytree(kept, run)
                (run / file).write_bytes(content)
                yield str(file), mutation, verb, _unexpected(calls[verb], run)


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
    parser.add_argument("--quick", action="store_true", help="the texts alone; writes no result")
    parser.add_argument("--only", default="", help="one directory")
    parser.add_argument("--file", default="", help="one file of it")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["WANDB_MODE"] = "disabled"
    counts: dict[str, Any] = {}
    faults: Counter[str] = Counter()
    began = time.perf_counter()
    for name in [args.only] if args.only else CALLED:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            prepare(place)
            tried: Counter[str] = Counter()
            for file, mutation, verb, fault in trials(place, name, args.quick, args.file):
                tried[verb] += 1
                if fault:
                    last = fault.strip().splitlines()
                    at = next((line.strip() for line in reversed(last) if "/convsmith/" in line), "")
                    key = f"{at} {last[-1][:150]}"
                    faults[key] += 1
                    if faults[key] == 1:
                        print(f"{name} {verb}: {file}: {mutation}\n    {key}", flush=True)
            counts[name] = dict(sorted(tried.items()))
            print(f"{name}: {sum(tried.values()):,} calls", flush=True)
    result = {
        "command": "python benchmarks/hostile_records.py",
        "texts": len(TEXTS) + 2,
        "values": len(VALUES) + 1,
        "calls": counts,
        "unexpected": sum(faults.values()),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(result, indent=2))
    if not (args.quick or args.only or args.file):
        OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
