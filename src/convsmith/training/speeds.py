"""How fast networks of libraries trained on this machine, as their trainings measured it: a small file in the cache."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from convsmith import files
from convsmith.errors import UserError

_KEY = "images_per_second"  # beside which older files name the size of the images and the device


def remember(cache: Path, model: str, images_per_second: float) -> None:
    """Keep the speed of ``library/name``. If that fails, it is not known later; nothing else is lost."""
    with contextlib.suppress(OSError):
        path = _file(cache, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {_KEY: images_per_second})


def recall(cache: Path, model: str) -> float | None:
    """The images per second of a training step, as they were measured last, or None."""
    try:
        stored: Any = files.read_json(_file(cache, model))
    except (OSError, UserError, ValueError):
        return None
    rate = stored.get(_KEY) if isinstance(stored, dict) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _file(cache: Path, model: str) -> Path:
    return cache / "speeds" / f"{model.replace('/', '-')}.json"
