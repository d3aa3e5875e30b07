"""Tensors by name: their checksum, and loading them strictly into a network. Reads and writes no files."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convsmith.errors import UserError


def checksum(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """sha256 of names, types, shapes and values, and of `facts`."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)  # NumPy knows no bfloat16
    return digest.hexdigest()


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load every tensor of `model`; a UserError lists missing, unexpected and misshapen keys, loading none."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} ({tuple(tensors[name].shape)} for {tuple(expected[name].shape)})"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        listed = "; ".join(f"{label}: {', '.join(names)}" for label, names in parts if names)
        raise UserError(f"{what} is of another architecture; {listed}")
    named = OrderedDict(tensors)
    # Names that fit are those of the present version, which some modules ask for (torchvision's MNASNet).
    named._metadata = expected._metadata  # type: ignore[attr-defined]
    model.load_state_dict(named)
