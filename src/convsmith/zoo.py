"""The networks that have pretrained weights, and what is known of them on this machine. Downloads nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from convsmith.contracts import Size
from convsmith.data.config import DataConfig
from convsmith.data.sources import cache_folder
from convsmith.errors import UserError
from convsmith.nets.backbones import library_network
from convsmith.nets.shapes import totals, trace
from convsmith.training import speeds
from convsmith.transfer import lookup
from convsmith.transfer.pretrained import expected_input


def matching(pattern: str | None) -> list[str]:
    """Names ``library/network`` with pretrained weights that contain `pattern`, or match it as ``timm/resnet*``.

    Without a pattern, those whose weights are on this machine and those that `train` prefers. Raises UserError where
    none is found.
    """
    if pattern is None:
        return list(dict.fromkeys([*lookup.all_at_hand(cache_folder(DataConfig())), *lookup.PREFERRED]))
    import timm
    from torchvision import models

    names = [f"torchvision/{name}" for name in models.list_models(module=models)]
    names += [f"timm/{lookup.untagged(name)}" for name in timm.list_models(pretrained=True)]
    wanted = pattern.lower()
    found = [name for name in names if wanted in name.lower() or fnmatch.fnmatchcase(name.lower(), wanted)]
    if not found:
        raise UserError(
            f"no network with pretrained weights matches '{pattern}': give a part of its name, such as lite"
        )
    return sorted(found)


def described(names: Sequence[str], progress: Callable[[int, int], None] = lambda *_: None) -> list[dict[str, Any]]:
    """What `convsmith.models` says of each network; ``progress(done, total)`` is called after each."""
    cache, found = cache_folder(DataConfig()), []
    for name in names:
        found.append(_described(name, cache))
        progress(len(found), len(names))
    return found


def _described(name: str, cache: Path) -> dict[str, Any]:
    spec = expected_input(name)
    file, speed = lookup.at_hand(name, cache), speeds.recall(cache, name)
    size = None if spec is None else spec.size
    parameters, macs = _facts(name, 3 if spec is None else spec.channels, 224 if size is None else size)
    return {
        "model": name,
        "parameters": parameters,
        "macs": macs,
        "image_size": size,
        "weights": file,
        "images_per_second": speed,
    }


def _facts(name: str, channels: int, size: Size) -> tuple[int | None, int | None]:
    """Parameters, and MACs for one image; None for a network that cannot be built or run without its weights."""
    try:
        with torch.device("meta"):
            whole = totals(trace(library_network(name), channels, size))
    except (RuntimeError, NotImplementedError, AssertionError, TypeError, ValueError):
        return None, None
    return whole.parameters, whole.macs
