"""Named tensors: reading them from safetensors files, checksums, and loading into a network. Writes no files."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from convsmith.errors import UserError
from convsmith.files import require_file


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header's metadata and all tensors of a file. Raises SafetensorError or OSError if it cannot be read."""
    require_file(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
        return file.metadata() or {}, tensors


def checksum(tensors: Mapping[str, Tensor], metadata: str = "") -> str:
    """SHA-256 of names, types, shapes and values, and of `metadata`."""
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)  # NumPy knows no bfloat16
    return digest.hexdigest()


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load all tensors of `model`, or none: a UserError lists missing, unexpected and misshapen ones."""
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
    # The names are those of the current version, which some modules check in the metadata (torchvision's MNASNet).
    named._metadata = expected._metadata  # type: ignore[attr-defined]
    model.load_state_dict(named)
