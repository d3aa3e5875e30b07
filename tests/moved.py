"""A finished run on a folder of files, for the tests of what may happen to its data: made without a training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from convsmith import records
from convsmith.config import read_run_config
from convsmith.data.dataset import open_dataset
from convsmith.rundir import RunDir

KEPT = Path(__file__).parent / "first_edition" / "finished"
SPLITS = {"train": range(60), "val": range(60, 110), "test": range(110, 160)}


def plant_digits(root: Path, numbers: range, classes: str = "0123456789") -> Path:
    """Digits as PNG files in class folders."""
    digits = load_digits()
    for number in numbers:
        name = str(digits.target[number])
        if name in classes:
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = np.rint(digits.images[number] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


def run_on_files(folder: Path, limit: int | None = None) -> tuple[RunDir, Path]:
    """The run `folder`/runs/digits on `folder`/photos, which has train, val and test."""
    photos = folder / "photos"
    for split, numbers in SPLITS.items():
        plant_digits(photos / split, numbers)
    run = RunDir(folder / "runs" / "digits")
    shutil.copytree(KEPT, run.path)
    config = read_run_config(run.config)
    config = config.with_values(data={"source": str(photos), "limit": limit})
    run.config.write_text(config.to_yaml(), encoding="utf-8")
    records.write(run.splits, records.Splits, open_dataset(config.data).splits_record())
    for file in [*run.path.glob("evaluation-*"), *run.path.glob("predictions-*"), run.test_access]:
        file.unlink()
    return run, photos
