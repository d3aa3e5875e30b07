"""Damage every kind of file that is read back, and count what is noticed: flipped bits, zeros, a cut, a missing file.

    python benchmarks/flipped_bytes.py [--flips 200] [--seed 0]

Damage is `noticed` where the file is refused or made anew, and `harmless` where the answer is the same as before (the
byte has no meaning, such as a time in a zip archive). Ends with exit code 1 if an answer differs (`silent`) or if there
is any other error than one for the user (`traceback`). The counts go to docs/results/flipped_bytes.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convsmith
from convsmith.data.building import INDEX, PIXELS
from convsmith.data.cache import open_images
from convsmith.data.config import DataConfig, DecodeRules
from convsmith.data.depth import scan
from convsmith.data.named import open_digits
from convsmith.data.source import recall
from convsmith.data.sources import cache_folder
from convsmith.data.stored import read_arrays
from convsmith.errors import UserError
from convsmith.export import export
from convsmith.nets.tensors import checksum
from convsmith.prediction.model_file import CARD, WEIGHTS, load_model
from convsmith.prediction.predictor import load_predictor
from convsmith.rundir import RunDir
from convsmith.training import checkpoint

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "flipped_bytes.json"
CPU = torch.device("cpu")
Answer = Callable[[], Any]


class Refused(Exception):
    """The file was refused, or what it held was made anew."""


def files(folder: Path) -> Iterator[tuple[str, Path, Answer]]:
    """A name, a file, and what depends on it; raises Refused or UserError if the damage is noticed."""
    settings: dict[str, Any] = {"data": "digits", "epochs": 1, "runs_dir": folder / "runs", "device": "cpu"}
    settings |= {"train": {"threads": 1}, "track": {"wandb": "off"}}
    convsmith.train(name="run", **settings)
    convsmith.train(name="head", **settings, preset="linear-probe", transfer={"weights": str(folder / "runs/run")})
    run, cache = RunDir(folder / "runs/run"), cache_folder(DataConfig())
    images = (np.random.default_rng(0).random((4, 8, 8, 1)) * 255).astype(np.uint8)

    def model() -> Any:
        net, card = load_model(run.model, CPU)
        return checksum(net.state_dict(), card.model_dump_json())

    def last() -> Any:
        tensors, facts = checkpoint.read(run.checkpoints / checkpoint.LAST)
        return checksum(tensors, json.dumps(facts))

    yield CARD, run.model / CARD, model
    yield WEIGHTS, run.model / WEIGHTS, model
    yield f"checkpoints/{checkpoint.LAST}", run.checkpoints / checkpoint.LAST, last
    for place in ("graph", "metadata"):
        path = export(run, "onnx", folder / f"{place}.onnx", place).path
        yield f"ONNX ({place})", path, lambda path=path: load_predictor(path).predict(list(images))

    source, rules = open_digits(cache), DecodeRules(working_size=8, channels=1)

    def pixels() -> Any:
        noted.clear()
        opened = open_images(source, rules, cache)
        if noted:
            raise Refused
        parts = [opened.pixels, opened.kept, opened.moments, opened.depths]
        return [hashlib.sha256(np.ascontiguousarray(part).data).hexdigest() for part in parts], opened.hash

    opened = pixels()
    (kept,) = (path for path in (cache / "images").iterdir() if path.is_dir())
    yield f"cache: {PIXELS}", kept / PIXELS, pixels
    yield f"cache: {INDEX}", kept / INDEX, pixels
    assert pixels() == opened

    def made(found: Any) -> Any:
        if found is None:
            raise Refused
        return repr(found)

    yield "cache: labels", cache / "sources/digits-1.npz", lambda: made(recall(cache, source.fingerprint))
    scan(source, cache)
    depths = cache / "sources/digits-1.depths.npz"
    forms = {"depths": (np.float64, (None, 3)), "decodes": (np.bool_, (None,))}
    yield "cache: depths", depths, lambda: made(read_arrays(depths, **forms))
    views = next((cache / "features").glob("*.npz"))
    yield "features of a backbone", views, lambda: made(read_arrays(views, features=(np.float32, (None, None))))


def damages(whole: bytes, flips: int, rng: random.Random) -> Iterator[bytes | None]:
    for _ in range(flips):
        at = rng.randrange(len(whole))
        yield whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    yield from (bytes(len(whole)), whole[: rng.randrange(len(whole))], b"", None)


def outcome(path: Path, content: bytes | None, answer: Answer, expected: Any) -> str:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    try:
        return "harmless" if answer() == expected else "silent"
    except (Refused, UserError, checkpoint.DamagedCheckpointError):
        return "noticed"
    except Exception as error:
        print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, result = random.Random(args.seed), {}
    logging.getLogger("convsmith").addHandler(Noting())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVSMITH_CACHE"] = f"{folder}/cache"
        for name, path, answer in files(Path(folder)):
            whole, expected = path.read_bytes(), answer()
            counts = Counter(outcome(path, damaged, answer, expected) for damaged in damages(whole, args.flips, rng))
            path.write_bytes(whole)
            result[name] = {"bytes": len(whole), **{kind: counts[kind] for kind in KINDS}}
            print(name, result[name], flush=True)
    RESULT.write_text(json.dumps({"flips": args.flips, "files": result}, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(counts["silent"] or counts["traceback"] for counts in result.values()))


KINDS = ("noticed", "harmless", "silent", "traceback")
noted: list[str] = []


class Noting(logging.Handler):
    """Keeps the warnings of damage, by which a cache is known to be made anew."""

    def emit(self, record: logging.LogRecord) -> None:
        noted.append(record.getMessage())


if __name__ == "__main__":
    main()
