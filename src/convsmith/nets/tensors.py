"""Named tensors: reading them from safetensors files, checksums, and loading into a network. Writes no files."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from convsmith.errors import UserError
from convsmith.files import require_file

MOST = 100_000  # tensors of a file; the largest networks have a few thousand, with the state of their optimiser

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_KINDS = {**dict.fromkeys(_FLOATING, "floating"), **dict.fromkeys(_INTEGER, "integer")}


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header's metadata and all tensors of a file. Raises SafetensorError or OSError if it cannot be read."""
    require_file(path)
    with safe_open(path, "pt") as file:
        if len(names := file.keys()) > MOST:
            raise SafetensorError(f"{len(names):,} tensors, but a network has {MOST:,} at most")
        tensors = {name: file.get_tensor(name) for name in names}
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
    """Load all tensors of `model`, or none: a UserError lists those that do not fit, as `refuse_misfits` does."""
    refuse_misfits(model, tensors, what)
    named = OrderedDict(tensors)
    # The names are those of the current version, which some modules check in the metadata (torchvision's MNASNet).
    named._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(named)


def refuse_misfits(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise UserError that lists missing and unexpected tensors, and those of another shape or type.

    Floating-point numbers of any usual precision fit each other, and so do integers; bool and complex ones fit alone.
    """
    expected = model.state_dict()
    both = sorted(expected.keys() & tensors.keys())
    misfits = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": [
            f"{name} ({shape_of(tensors[name])} for {shape_of(expected[name])})"
            for name in both
            if tensors[name].shape != expected[name].shape
        ],
    }
    if any(misfits.values()):
        listed = "; ".join(f"{label}: {', '.join(names)}" for label, names in misfits.items() if names)
        raise UserError(f"{what} is of another architecture; {listed}")
    if other := [name for name in both if kind_of(tensors[name]) != kind_of(expected[name])]:
        listed = ", ".join(f"{name} ({kind_of(tensors[name])} for {kind_of(expected[name])})" for name in other)
        raise UserError(f"{what} has tensors of another type; {listed}")


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def shape_of(tensor: Tensor) -> str:
    """The shape as text; a file may contain a tensor of a million dimensions."""
    return str(tuple(tensor.shape)) if tensor.dim() <= 8 else f"{tensor.dim():,} dimensions"


def kind_of(tensor: Tensor) -> str:
    """``floating``, ``integer`` or the name of the dtype: tensors of one kind can be copied to each other."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return "without plain values"
    return _KINDS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def refuse_nonfinite(model: nn.Module, what: str) -> None:
    """Raise UserError if parameters are infinite or not a number; buffers may be, as masks are."""
    wrong = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if wrong:
        raise UserError(f"{what} has weights that are not finite numbers: {', '.join(wrong)}")
