"""Gradients by layer in a deeper net with sigmoid, tanh and ReLU: for the evidence book. Takes seconds.

python benchmarks/vanishing_gradients.py CIFAR10_PARQUET_FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from convsmith.data.config import DataConfig
from convsmith.data.dataset import open_dataset
from convsmith.data.preprocess import ToInput
from convsmith.explain.activations import gradient_rms
from convsmith.figures.curves import gradient_figure
from convsmith.figures.style import save
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig

ROOT = Path(__file__).resolve().parents[1]
DEPTH, CHANNELS, IMAGES = 12, 32, 256
NETS = {
    "sigmoid, Xavier": ("sigmoid", "xavier_uniform"),
    "tanh, Xavier": ("tanh", "xavier_uniform"),
    "ReLU, Xavier": ("relu", "xavier_uniform"),
    "ReLU, Kaiming": ("relu", "kaiming_uniform"),
    "sigmoid, default": ("sigmoid", "default"),
    "ReLU, default": ("relu", "default"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    dataset = open_dataset(DataConfig(source=parser.parse_args().folder))
    pixels = torch.from_numpy(dataset.train.gather(np.arange(IMAGES)))
    images = ToInput(dataset.preprocessing(), torch.device("cpu"))(pixels)
    labels = torch.from_numpy(dataset.train.labels[:IMAGES])
    blocks = tuple(BlockConfig(channels=CHANNELS, pool="max" if n % 4 == 3 else "none") for n in range(DEPTH))
    series = {}
    for name, (activation, init) in NETS.items():
        torch.manual_seed(0)
        config = ModelConfig(
            name="convnet",
            blocks=blocks,
            hidden=(),
            norm="none",
            activation=activation,
            init=init,
            global_pool="average",
        )
        found = gradient_rms(build(config, 3, 32, len(dataset.classes)), images, labels)
        series[name] = [value for layer, value in found.items() if layer.startswith("blocks")]
    record = {
        "command": "python benchmarks/vanishing_gradients.py CIFAR10_PARQUET_FOLDER",
        "images": IMAGES,
        "layers": [f"blocks.{number}.conv" for number in range(DEPTH)],
        "series": series,
    }
    path = ROOT / "docs/results/evidence/gradients.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    title = "Gradients of a new net, by layer (CIFAR-10)"
    save(gradient_figure(series, title), ROOT / "docs/images/evidence-gradients.svg")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
