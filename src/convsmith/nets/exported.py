"""Exported networks, ONNX files and torch.export archives, opened as modules again."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.errors import UserError, missing_extra

FACTS = ("classes", "preprocessing", "input")  # what an exported file says of itself, each as JSON
ARCHIVED = "convsmith.json"  # where a torch.export archive holds them

# What an archive of ours consists of. Pickled weights, objects and sample inputs, and compiled code, are not.
_MEMBERS = re.compile(
    r"archive_(?:format|version)|byteorder|version|\.data/(?:serialization_id|version)"
    r"|models/model\.json|extra/convsmith\.json|data/sample_inputs/model\.pt"
    r"|data/(?:weights|constants)/(?:model_(?:weights|constants)_config\.json|weight_\d+|tensor_\d+)"
)
_OPERATORS = ("torch.ops.aten.", "_operator.")
# A size that depends on the batch, such as Mul(Integer(64), Symbol('s7', integer=True)): PyTorch evaluates the text.
_SIZES = re.compile(r"(?:Symbol\('[su]\d+'(?:, \w+=True)*\)|(?:Integer|Add|Mul)\(|\d+|[-+*/(), ])*")


class Exported(nn.Module):
    """A network of which only the function is left: `compute` takes a batch and returns logits [N, classes].

    It computes on the CPU, in evaluation alone, and knows neither features nor stages.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(images)


def open_exported(path: Path) -> tuple[Exported, dict[str, Any]]:
    """The network in a .onnx or .pt2 file that `convsmith export` wrote, and what it says of itself (`FACTS`).

    Raises UserError for damaged files and for files of other origin.
    """
    try:
        compute, facts = (_open_onnx if path.suffix == ".onnx" else _open_archive)(path)
        missing = [name for name in FACTS if name not in facts]
        if missing:
            raise UserError(f"'{path}' does not hold its {' and '.join(missing)}: only files of convsmith export do")
        return Exported(compute), {name: json.loads(facts[name]) for name in FACTS}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # both libraries raise whatever their parsers stumble upon
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"'{path}' cannot be opened ({reason}): export the run again") from None


def _open_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise missing_extra("onnxruntime", "export") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors are raised; its warnings concern its own optimisations
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return compute, session.get_modelmeta().custom_metadata_map


def _open_archive(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    _refuse_foreign(path)
    extra = {ARCHIVED: ""}
    module = torch.export.load(path, extra_files=extra).module()

    def compute(images: Tensor) -> Tensor:
        logits: Tensor = module(images)
        return logits

    return compute, json.loads(extra[ARCHIVED] or "{}")


def _refuse_foreign(path: Path) -> None:
    """Refuse an archive with anything in it that opening would unpickle or run as code."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inside = [name.partition("/")[2] for name in names]
        odd = [name for name in inside if not _MEMBERS.fullmatch(name) or inside.count(name) > 1]
        if not odd:
            texts = [(name, archive.read(name)) for name in names if name.endswith((".json", ".pt"))]
            odd = [name for name, text in texts if name.endswith(".pt") and text]
            odd += [
                f"{name}: {key} {value}"
                for name, text in texts
                if name.endswith(".json")
                for key, value in _pairs(json.loads(text))
                if (key == "use_pickle" and value)
                or (key == "target" and not str(value).startswith(_OPERATORS))
                or (key == "expr_str" and not _SIZES.fullmatch(str(value)))
            ]
    if odd:
        raise UserError(f"'{path}' holds what convsmith export never writes ({odd[0]}): it is not opened")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values at any depth of a JSON value."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _pairs(inner)
