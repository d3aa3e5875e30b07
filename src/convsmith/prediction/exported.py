"""Exported networks in ONNX files, opened as modules again. A torch.export archive is never opened: it can run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.errors import UserError, missing_extra

ARCHIVE_SUFFIX = ".pt2"
METADATA = ("classes", "preprocessing", "input")  # what an exported file says of itself, each as JSON
ARCHIVED = "convsmith.json"  # where a torch.export archive holds them


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
    """The network in an .onnx file that `convsmith export` wrote, and what it says of itself (`METADATA`).

    Raises UserError for damaged files, for files of other origin, and for torch.export archives: torch compiles the
    names that such an archive holds into source code, so opening one can run whatever its author wrote.
    """
    if path.suffix == ARCHIVE_SUFFIX:
        raise UserError(
            f"'{path}' is a torch.export archive, which can run code when it is opened: predict with the run itself, "
            "or with an ONNX file (convsmith export RUN --format onnx)"
        )
    try:
        compute, metadata = _open_onnx(path)
        missing = [name for name in METADATA if name not in metadata]
        if missing:
            raise UserError(f"'{path}' does not hold its {' and '.join(missing)}: only files of convsmith export do")
        return Exported(compute), {name: json.loads(metadata[name]) for name in METADATA}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # onnxruntime raises whatever its parser stumbles upon
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
