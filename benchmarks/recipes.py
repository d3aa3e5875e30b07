"""Whether the rules by which `train` chooses a recipe choose well: each recipe on each kind of images.

    python benchmarks/recipes.py ANTS_BEES CIFAR WEIGHTS.safetensors

Cross-validates the presets `baseline` and `linear-probe` (of timm/tf_efficientnet_lite0, from the file) on 200
photographs in gray, on gray drawings (each digit of Pillow's font, turned, moved and scaled at random, on white, 40 of
each) and on 1,000 images of CIFAR-10. `chosen` is what `convsmith.recipes` takes for these images. Photographs in
colour are in transfer.json. Writes docs/results/recipes.json after each preset: a stopped run leaves its part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import convsmith
from convsmith.data.config import DataConfig
from convsmith.recipes import BASELINE, LINEAR_PROBE, images_of

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "recipes.json"
NETWORK = "timm/tf_efficientnet_lite0"
FOLDS, SIDE, EACH = 3, 128, 40


def in_gray(source: Path, target: Path) -> Path:
    for path in source.rglob("*.jpg"):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").save(place, quality=95)
    return target


def drawings(target: Path) -> Path:
    random = np.random.default_rng(0)
    for digit in "0123456789":
        (target / digit).mkdir(parents=True)
        for number in range(EACH):
            image = Image.new("L", (SIDE, SIDE), 255)
            font = ImageFont.load_default(int(random.integers(40, 90)))
            ImageDraw.Draw(image).text(tuple(random.integers(10, 50, 2).tolist()), digit, 0, font)
            image.rotate(float(random.uniform(-30, 30)), fillcolor=255).save(target / digit / f"{number}.png")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds: dict[str, tuple[Path, dict[str, Any]]] = {
            "gray photographs": (in_gray(args.photographs, folder / "gray"), {"limit": 200}),
            "gray drawings": (drawings(folder / "drawings"), {}),
            "CIFAR-10, 1,000 images": (args.cifar, {"limit": 1_000}),
        }
        for kind, (source, data) in kinds.items():
            found = images_of(DataConfig(source=str(source), **data))
            results[kind] = {"chosen": LINEAR_PROBE if found.suit_pretrained else BASELINE, "kind": found.kind}
            for preset in (BASELINE, LINEAR_PROBE):
                pretrained = {"model": NETWORK, "transfer": {"weights": str(args.weights)}}
                study = convsmith.crossval(
                    data={"source": str(source), **data},
                    preset=preset,
                    folds=FOLDS,
                    runs_dir=folder / "runs",
                    show=False,
                    track={"wandb": "off"},
                    **(pretrained if preset == LINEAR_PROBE else {}),
                )
                seconds = sum(fold["seconds"] for fold in study.per_fold)
                results[kind][preset] = {
                    "accuracy": study.mean["accuracy"],
                    "ci95": study.ci95["accuracy"],
                    "seconds": seconds,
                }
                print(kind, preset, results[kind][preset], flush=True)
                OUT.write_text(json.dumps({"folds": FOLDS, "kinds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
