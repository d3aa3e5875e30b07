"""How fast networks of libraries trained on this machine, as their trainings measured it: a small file in the cache."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from convsmith import files
from convsmith.errors import UserError


class Speed(NamedTuple):
    """Images per second of a training step, with images of this size on this device."""

    images_per_second: float
    image_size: Any  # a side in pixels, or [height, width]
    device: str


def remember(cache: Path, model: str, speed: Speed) -> None:
    """Keep the speed of ``library/name``. If that fails, it is not known later; nothing else is lost."""
    with contextlib.suppress(OSError):
        path = _file(cache, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, speed._asdict())


def recall(cache: Path, model: str) -> Speed | None:
    """The speed that was measured last, or None."""
    try:
        stored: Any = files.read_json(_file(cache, model))
    except (OSError, UserError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.keys() != set(Speed._fields):
        return None
    rate = stored["images_per_second"]
    return Speed(**stored) if isinstance(rate, int | float) and rate > 0 else None


def _file(cache: Path, model: str) -> Path:
    return cache / "speeds" / f"{model.replace('/', '-')}.json"
