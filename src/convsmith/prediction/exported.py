"""Opens exported ONNX files as modules. Never opens torch.export archives, since they can run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.errors import UserError, first_line, missing_extra
from convsmith.files import require_file

ARCHIVE_SUFFIX = ".pt2"
METADATA = ("classes", "preprocessing", "input")  # the keys of an exported file's metadata; the values are JSON
ARCHIVED = "convsmith.json"  # the file within a torch.export archive that holds them


class Exported(nn.Module):
    """A network that is only a function: `compute` takes a batch and returns logits [N, classes].

    It computes on the CPU and in eval mode only, and has neither features nor stages.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(images)


def open_exported(path: Path) -> tuple[Exported, dict[str, Any]]:
    """The network in an .onnx file that `convsmith export` wrote, and its metadata (`METADATA`).

    Raises UserError for damaged files, for files of other origin, and for torch.export archives: torch compiles names
    in such an archive into source code, so opening one can run any code of its author.
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
            raise UserError(
                f"'{path}' does not contain its {', '.join(missing)}: give a file that convsmith export wrote"
            )
        return Exported(compute), {name: json.loads(metadata[name]) for name in METADATA}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # onnxruntime's parser can raise any error
        raise UserError(f"'{path}' cannot be opened ({first_line(error)}): export the run again") from None


def _open_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise missing_extra("onnxruntime", "export") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # no warnings, since they concern only its optimisations; errors are raised
    require_file(path)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return compute, session.get_modelmeta().custom_metadata_map
