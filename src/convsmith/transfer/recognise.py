"""Which network of timm or torchvision a file of weights belongs to, by the names and shapes of its tensors.

Candidates are built on the meta device, without memory for their weights: those that the file's name begins with, or
else those of timm whose first convolution and head are called as in the file, and at last all of torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from convsmith.errors import UserError
from convsmith.nets.backbones import library_network
from convsmith.nets.config import in_libraries
from convsmith.transfer.lookup import SUFFIXES
from convsmith.transfer.pretrained import AUXILIARY, read_tensors

SHOWN = 8  # networks that are named where several fit
Shapes = dict[str, tuple[int, ...]]


def recognise(path: Path) -> str:
    """The name ``library/network`` for a file of weights. Raises UserError if none fits, or several do.

    Of timm's and torchvision's own versions of a network, the file's suffix decides, as where weights are looked up.
    """
    shapes = _shapes(read_tensors(path))
    found = [name for name in _named_alike(path) if _fits(name, shapes)]
    if not found:
        found = [name for name in _called_alike(shapes) if _fits(name, shapes)]
    if not found:
        found = [name for name in _torchvisions() if _fits(name, shapes)]
    by_suffix = [name for name in found if path.suffix == SUFFIXES[name.partition("/")[0]]]
    if len(found) == 1 or len(by_suffix) == 1:
        return (found if len(found) == 1 else by_suffix)[0]
    if not found:
        raise UserError(
            f"transfer.weights '{path}' is of no network of timm or torchvision that its names and shapes would tell: "
            "name it, --model, or if it is of a run of yours, give the run's directory"
        )
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UserError(
        f"transfer.weights '{path}' fits several networks ({', '.join(found[:SHOWN])}{more}): name one, --model"
    )


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name, without what is only for training and without batch norm's counters, which old files lack."""
    return {
        name: tuple(value.shape)
        for name, value in tensors.items()
        if not name.startswith(AUXILIARY) and not name.endswith("num_batches_tracked")
    }


def _named_alike(path: Path) -> list[str]:
    """The networks that the file's name begins with, those with the longest such name: resnet18-f37072fd.pth."""
    words = re.split(r"(?=[-.])", path.stem)
    for count in range(len(words), 0, -1):
        if found := sorted(in_libraries("".join(words[:count]))):
            return found
    return []


def _called_alike(shapes: Shapes) -> Iterator[str]:
    """timm's networks with weights whose first convolution and head have names that are in the file."""
    import timm

    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            continue
        parts = [part for part in (config.first_conv, config.classifier) if part]
        names = [name for part in parts for name in ([part] if isinstance(part, str) else part)]
        if names and all(f"{part}.weight" in shapes for part in names):
            yield f"timm/{name}"


def _torchvisions() -> Iterable[str]:
    from torchvision import models

    return (f"torchvision/{name}" for name in models.list_models(module=models))


def _fits(name: str, shapes: Shapes) -> bool:
    """Whether a network has these names and shapes, but for the number of classes, which may be any."""
    try:
        with torch.device("meta"):
            own = _shapes(library_network(name).state_dict())
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    if own.keys() != shapes.keys():
        return False
    other = [name for name in own if own[name] != shapes[name]]
    return all(_is_head(own[name], shapes[name]) for name in other) and len(other) <= 2


def _is_head(own: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes differ in the number of classes alone: the library's 1,000 or 21,841, and another one."""
    return bool(own) and len(own) == len(other) and own[1:] == other[1:] and own[0] in (1_000, 1_001, 21_841)
