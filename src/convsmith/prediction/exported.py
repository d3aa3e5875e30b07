"""Exported ONNX files: their checksum, and opening them as modules. Never opens torch.export archives.

Only what `export` itself could have written reaches onnxruntime: other ONNX files can name files to be read, functions,
operators of libraries, and loops without end.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from convsmith.contracts import Section, hw
from convsmith.errors import UserError, first_line, missing_extra
from convsmith.files import open_file, parse_json
from convsmith.prediction.model_file import ModelCard
from convsmith.records import problem, refuse_newer

if TYPE_CHECKING:
    import onnx

ARCHIVE_SUFFIX = ".pt2"
METADATA = ("classes", "preprocessing", "input")  # the keys of an exported file's metadata; the values are JSON
ARCHIVED = "convsmith.json"  # the file within a torch.export archive that holds them

# In ONNX's encoding, the end of a file that is sealed: an entry of the metadata with the key sha256, whose value, the
# digest of all bytes before it, is text in quotation marks. Protocol buffers may be in several parts.
_SEAL = b'\x72\x4c\x0a\x06sha256\x12\x42"%s"'
_LARGEST = 2**31  # bytes of a protocol buffer


class Input(Section):
    """What an exported file takes: uint8 pixels, or normalised floats; `input` and `how` tell a person the details."""

    kind: Literal["pixels", "normalised"]
    input: str
    how: str


class Exported(nn.Module):
    """A network that is only a function: `compute` takes a batch and returns logits [N, classes].

    It computes on the CPU and in eval mode only, and has neither features nor stages.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(images)


def seal(path: Path) -> str:
    """Append its checksum to an ONNX file that has none, as the last entry of its metadata, and return it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("ab") as file:
        file.write(_SEAL % digest.encode())
    return digest


def open_exported(path: Path) -> tuple[Exported, ModelCard, Input]:
    """The network in an .onnx file that `convsmith export` wrote, its card (without an architecture) and its input.

    Raises UserError for damaged files, for files of other origin, and for torch.export archives: torch compiles names
    in such an archive into source code, so opening one can run any code of its author.
    """
    if path.suffix == ARCHIVE_SUFFIX:
        raise UserError(
            f"'{path}' is a torch.export archive, which can run code when it is opened: predict with the run itself, "
            "or with an ONNX file (convsmith export RUN --format onnx)"
        )
    try:
        return _open_onnx(path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the parsers of onnx and onnxruntime can raise any error
        raise UserError(f"'{path}' cannot be opened ({first_line(error)}): export the run again") from None


def _open_onnx(path: Path) -> tuple[Exported, ModelCard, Input]:
    # Official builds write an identifier into the user's cache and send events to Microsoft, unless this is set.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "export") from None
    with open_file(path) as file:
        content = file.read(_LARGEST)
    proto = onnx.load_model_from_string(content)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    _refuse_damaged(path, content, metadata)
    card, taken = _read_metadata(path, metadata)
    if (reason := _foreign(proto, card, taken)) is not None:
        raise UserError(f"'{path}' {reason}, which convsmith export never writes: export the run again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # warnings concern only its optimisations, and errors are raised
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {name: images.contiguous().numpy()})
        if logits.shape != (len(images), len(card.classes)):
            raise UserError(f"'{path}' gives {list(logits.shape)} for {len(images)} images: export the run again")
        return torch.from_numpy(logits)

    return Exported(compute), card, taken


def _refuse_damaged(path: Path, content: bytes, metadata: dict[str, str]) -> None:
    """Raise UserError if the file has changed since it was sealed; files without a version never were."""
    if "format_version" not in metadata:
        return
    refuse_newer(path, parse_json(metadata["format_version"]))
    length = len(_SEAL % bytes(64))
    body, end = content[:-length], content[-length:]
    if end != _SEAL % hashlib.sha256(body).hexdigest().encode():
        raise UserError(f"'{path}' has changed since its export (the checksum does not match): export the run again")


def _read_metadata(path: Path, metadata: dict[str, str]) -> tuple[ModelCard, Input]:
    if missing := [name for name in METADATA if name not in metadata]:
        raise UserError(f"'{path}' does not contain its {', '.join(missing)}: give a file that convsmith export wrote")
    values: dict[str, Any] = {name: parse_json(metadata[name]) for name in METADATA}
    card = {"architecture": None, "layout": "contiguous"} | {name: values[name] for name in METADATA if name != "input"}
    for kind, value in ((ModelCard, card), (Input, values["input"])):
        if (reason := problem(kind, value)) is not None:
            raise UserError(f"the metadata of '{path}' are damaged ({reason}): export the run again")
    return ModelCard.model_validate(card), Input.model_validate(values["input"])


def _foreign(proto: onnx.ModelProto, card: ModelCard, taken: Input) -> str | None:
    """What of a model `export` would not have written, as a sentence without a subject; None if it could have."""
    import onnx

    graph, kinds = proto.graph, onnx.AttributeProto
    if proto.functions or proto.training_info or graph.sparse_initializer:
        return "has functions, training or sparse tensors"
    domains = {opset.domain for opset in proto.opset_import} | {node.domain for node in graph.node}
    if domains - {"", "ai.onnx"}:
        return f"uses operators of {', '.join(sorted(domains - {'', 'ai.onnx'}))}"
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    plain = (kinds.FLOAT, kinds.INT, kinds.STRING, kinds.TENSOR, kinds.FLOATS, kinds.INTS, kinds.STRINGS)
    if any(attribute.type not in plain for attribute in attributes):
        return "has a graph within its graph"
    for tensor in (*graph.initializer, *(attribute.t for attribute in attributes if attribute.type == kinds.TENSOR)):
        if tensor.data_location or tensor.external_data:
            return f"reads its tensor '{tensor.name}' from another file"
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if min(tensor.dims, default=0) < 0 or len(tensor.raw_data) != size * math.prod(tensor.dims):
            return f"has {len(tensor.raw_data):,} bytes of its tensor '{tensor.name}' {list(tensor.dims)}"
    settings, pixels = card.preprocessing, taken.kind == "pixels"
    image = settings.prepared_shape if pixels else (settings.channels, *hw(settings.image_size))
    expected = [
        (onnx.TensorProto.UINT8 if pixels else onnx.TensorProto.FLOAT, *image),
        (onnx.TensorProto.FLOAT, len(card.classes)),
    ]
    if [*_forms(graph.input), *_forms(graph.output)] != expected:
        return "has other inputs and outputs than its metadata say"
    onnx.checker.check_model(proto)
    return None


def _forms(values: Any) -> Iterator[tuple[int, ...]]:
    """The type and the shape of each input or output but for the number of images, which may be any."""
    for value in values:
        kind = value.type.tensor_type
        batch, *rest = kind.shape.dim
        if not batch.HasField("dim_value"):
            yield (kind.elem_type, *(dim.dim_value for dim in rest))
