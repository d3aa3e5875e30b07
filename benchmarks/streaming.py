"""Training from WebDataset shards against the library's own loader, and against the same images in the cache.

Usage: python benchmarks/streaming.py CIFAR10 ANTS_BEES WORK, where CIFAR10 holds the Parquet files, ANTS_BEES is a
folder of photographs with train/ and val/, and WORK takes the shards and the runs. Writes docs/results/streaming.json.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from convsmith.data.config import DataConfig
from convsmith.data.sources import open_source


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
