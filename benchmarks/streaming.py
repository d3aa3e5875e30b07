"""Training from WebDataset shards against the library's own loader, and against the same images in the cache.

Usage: python benchmarks/streaming.py CIFAR10 ANTS_BEES WORK, where CIFAR10 holds the Parquet files, ANTS_BEES is a
folder of photographs with train/ and val/, and WORK takes the shards and the runs. Writes docs/results/streaming.json.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

import convsmith
from convsmith.data.config import DataConfig
from convsmith.data.dataset import Subset, open_dataset
from convsmith.data.epochs import epoch_of
from convsmith.data.sampler import batch_positions
from convsmith.data.sources import open_source

OUT = Path(__file__).resolve().parents[1] / "docs/results/streaming.json"
BATCH, BUFFER = 128, 1_000
IMAGES, ROUNDS = 6_000, 3


def write_shards(folder: Path, data: str, per_shard: int, seed: int = 0) -> None:
    """The images of a source as shards ``SPLIT-000000.tar`` in `folder`, in random order, with classes as text."""
    source = open_source(DataConfig(source=data))
    folder.mkdir(parents=True, exist_ok=True)
    for split in sorted(set(source.given.tolist())):
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(source.given == split))
        contents: dict[int, tuple[bytes, str]] = {}
        for row in np.sort(rows).tolist():  # in which order reading is fast
            record = source.read(row)
            content = record if isinstance(record, bytes) else Path(str(record)).read_bytes()
            suffix = "png" if content.startswith(b"\x89PNG") else "jpg"
            contents[row] = content, suffix
        for number, part in enumerate(np.array_split(rows, -(-len(rows) // per_shard))):
            with tarfile.open(folder / f"{split}-{number:06d}.tar", "w") as shard:
                for row in part.tolist():
                    content, suffix = contents[row]
                    _add(shard, f"{row:08d}.{suffix}", content)
                    _add(shard, f"{row:08d}.cls", source.classes[source.labels[row]].encode())


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))


def ours(train: Subset, images: int) -> float:
    """Images a second that a training would get, in batches."""
    order, reading = epoch_of(train, DataConfig(shuffle_buffer=BUFFER), 0, 0)
    assert reading is not None
    return rate(map(len, train.streamed(list(batch_positions(order, BATCH)), reading)), images)


def webdataset(shards: list[str], workers: int, images: int) -> float:
    """The same by webdataset: uint8 batches, shuffled by shard and through a buffer of the same size."""
    import webdataset as wds

    data = wds.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
    data = data.shuffle(BUFFER).decode("rgb8", only=["png"]).to_tuple("png", "cls").batched(BATCH)
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers)
    return rate((len(pixels) for pixels, _ in loader), images)


def rate(batches: Iterable[int], images: int) -> float:
    """Images a second of `images` images, after the first batch, for which processes start."""
    sizes, seen = iter(batches), 0
    next(sizes)
    began = time.perf_counter()
    while seen < images:
        seen += next(sizes)
    return seen / (time.perf_counter() - began)


def accuracies(source: str | list[str], stream: bool, work: Path, seeds: int, **settings: Any) -> list[float]:
    """The val accuracy of a training for each seed."""
    data = {"source": source, "stream": stream, **settings.pop("data", {})}
    kind = "streamed" if stream else "cached"
    return [
        convsmith.train(
            data=data,
            seed=seed,
            name=f"{Path(str(source)).parent.name}-{kind}-{seed}",
            runs_dir=work / "runs",
            **settings,
        ).summary["val"]["accuracy"]
        for seed in range(seeds)
    ]


def compared(source: str, work: Path, seeds: int, **settings: Any) -> dict[str, Any]:
    """Accuracies of streamed and of cached trainings of the same seeds, which differ in the order of the images."""
    found = {kind: accuracies(source, kind == "streamed", work, seeds, **settings) for kind in ("streamed", "cached")}
    differences = np.subtract(found["streamed"], found["cached"])
    return found | {"mean_difference": float(differences.mean()), "deviation": float(differences.std(ddof=1))}


def main() -> None:
    cifar, ants, work = (Path(argument) for argument in sys.argv[1:4])
    result: dict[str, Any] = {"machine": machine(), "shuffle_buffer": BUFFER, "batch": BATCH}
    shards = {name: work / "shards" / name for name in ("cifar10", "photographs")}
    if not shards["cifar10"].exists():
        write_shards(shards["cifar10"], str(cifar), 1_000)
        write_shards(shards["photographs"], str(ants), 50)
    pattern = str(shards["cifar10"] / "train-*.tar")
    train = open_dataset(DataConfig(source=pattern, val_fraction=0.1, test_fraction=0)).train
    files = sorted(map(str, shards["cifar10"].glob("train-*.tar")))
    loaders: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(train, IMAGES),
        "webdataset, 0 workers": lambda: webdataset(files, 0, IMAGES),
        "webdataset, 2 workers": lambda: webdataset(files, 2, IMAGES),
    }
    rounds = [{name: load() for name, load in loaders.items()} for _ in range(ROUNDS)]
    result["images_per_second"] = {name: statistics.median(one[name] for one in rounds) for name in loaders}
    result["rounds"] = rounds
    best = max(value for name, value in result["images_per_second"].items() if name != "ours")
    result["ratio"] = result["images_per_second"]["ours"] / best
    write(result)
    small = {"preset": "baseline", "epochs": 2, "track": {"wandb": "off"}}
    result["cifar10"] = compared(
        pattern, work, 3, data={"val_fraction": 0.1, "test_fraction": 0, "limit": 10_000}, **small
    )
    write(result)
    both = str(shards["photographs"] / "{train,val}-*.tar")
    result["photographs"] = compared(both, work, 3, **small | {"epochs": 8})
    write(result)


def write(result: dict[str, Any]) -> None:
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key not in ("machine", "rounds")}))


if __name__ == "__main__":
    main()
