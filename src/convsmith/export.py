"""Export of a run's model to one file, kept only if it computes what PyTorch does. Files of others are not opened."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.contracts import channels_text, hw, size_text, size_word
from convsmith.data.config import Preprocessing
from convsmith.data.decode import DecodeError
from convsmith.data.preprocess import InputPixels, ToInput
from convsmith.data.sources import Source
from convsmith.errors import RunFailed, UserError, choose, first_line, missing_extra
from convsmith.files import explain_os_errors, refuse_to_replace, write_bytes, write_text
from convsmith.memory import explain_memory_errors
from convsmith.prediction.evaluate import logits_of, run_dataset
from convsmith.prediction.exported import ARCHIVED, METADATA, open_exported, seal
from convsmith.prediction.inputs import find_images
from convsmith.prediction.model_file import ModelCard
from convsmith.prediction.predictor import Predictor, load_predictor
from convsmith.prediction.script import NAME as SCRIPT
from convsmith.prediction.script import is_script, script
from convsmith.records import versioned
from convsmith.rundir import RunDir

Format = Literal["onnx", "torch"]
PreprocessingIn = Literal["graph", "metadata"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18  # of ONNX 1.13 (2022): PyTorch's exporter emits it, and any runtime since then can run it
TOLERANCE = 1e-4  # of the largest logit
IMAGES = 64  # compared after each export, spread over the validation split


@dataclass(frozen=True)
class Export:
    """A written file, its input, and how its logits differ from PyTorch's on images that `compared` tells.

    `difference` is the largest absolute difference, and `scale` the largest absolute logit. `script` is the program
    beside an ONNX file.
    """

    path: Path
    takes: str
    compared: str
    difference: float
    scale: float
    script: Path | None = None


class FromPixels(nn.Module):
    """Preprocessing and network in one graph: uint8 [N, H, W, C] of the working size -> logits [N, K].

    Antialiased resizing from one fixed size to another is linear in each direction, so it is a matrix product, which
    every runtime computes alike; their own resize operators differ.
    """

    scale: Tensor
    shift: Tensor
    down: Tensor
    across: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        to_input = ToInput(preprocessing, torch.device("cpu"))
        self.register_buffer("scale", to_input.scale)
        self.register_buffer("shift", to_input.shift)
        size, working = preprocessing.image_size, preprocessing.working_size
        self.resizes = size != working
        if self.resizes:
            mode = preprocessing.interpolation
            for name, to, side in zip(("down", "across"), hw(size), hw(working), strict=True):
                eye = torch.eye(side)[None, None]
                matrix = nn.functional.interpolate(eye, (to, side), mode=mode, antialias=True)[0, 0]
                self.register_buffer(name, matrix)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self.resizes:
            images = (self.down @ images @ self.across.T).clamp(0, 255)
        logits: Tensor = self.model(self.shift + images * self.scale)
        return logits


def metadata(card: ModelCard, preprocessing: PreprocessingIn) -> dict[str, str]:
    """The metadata of the file, each value as JSON: classes, preprocessing, and a description of its input."""
    settings = card.preprocessing
    working, channels = settings.working_size, settings.channels
    order = channels_text(channels)
    pixels = f"uint8 [N, {', '.join(map(str, settings.prepared_shape))}], {order}"
    resize = settings.resize if settings.crop == 1 else f"{settings.resize} {settings.crop:g}"
    form = f"a square of {working}" if isinstance(working, int) else size_text(working)
    how = f"the upright image as {form} pixels (resize: {resize}, {settings.interpolation})"
    if settings.range != "full":
        how += f", samples of more than 8 bits scaled from {settings.range[0]:g}..{settings.range[1]:g} to 0..255"
    if preprocessing == "graph":
        says = {"kind": "pixels", "input": pixels, "how": how}
    else:
        floats = f"float32 [N, {', '.join(map(str, (channels, *hw(settings.image_size))))}], {order}"
        if settings.image_size != working:
            how += f", resized to {size_word(settings.image_size)} with antialiasing ({settings.interpolation})"
        says = {"kind": "normalised", "input": floats, "how": f"{how}; then (pixels / 255 - mean) / std by channel"}
    values = {"classes": card.classes, "preprocessing": settings.model_dump(mode="json"), "input": says}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in versioned(values).items()}


@explain_memory_errors("in the export")
def export(
    run: RunDir,
    format: Format,
    out: Path | None = None,
    preprocessing: PreprocessingIn = "graph",
    module: nn.Module | None = None,
    source: Source | None = None,
    images: Sequence[str | Path] = (),
) -> Export:
    """Write the model of `run` to `out` (default: ``export/model.onnx`` or ``.pt2`` in the run) and check it.

    With `preprocessing` graph the file takes uint8 pixels, else normalised floats. `module` and `source` are the user's
    own network and data, if the run was trained with such. The new file is compared with PyTorch on `images` (files,
    folders or patterns), by default on validation images; a model without its run is compared on random pixels. If its
    logits differ by more than TOLERANCE, it is removed, an existing `out` is left as it was, and RunFailed is raised.
    Raises UserError where the validation images are not available.
    """
    if format not in SUFFIXES:
        raise choose("format", format, SUFFIXES)
    if preprocessing not in get_args(PreprocessingIn):
        raise choose("preprocessing", preprocessing, get_args(PreprocessingIn))
    path = out or run.path / "export" / f"model{SUFFIXES[format]}"
    if out is None:
        run.refuse_links()
    if torch.__version__ < "2.9":  # earlier archives are pickles; torch's version compares as a version, not as text
        raise UserError(f"export needs PyTorch 2.9 or newer, not {torch.__version__}: pip install 'convsmith[export]'")
    if path.suffix != SUFFIXES[format]:
        raise UserError(f"--out '{path}' must end in {SUFFIXES[format]} for --format {format}")
    marks = METADATA if format == "onnx" else (ARCHIVED,)
    refuse_to_replace(path, lambda content: all(mark.encode() in content for mark in marks), "an exported model")
    program = path.with_name(SCRIPT) if format == "onnx" else None
    if program:
        refuse_to_replace(program, is_script, "a program that export wrote")
    predictor = load_predictor(run.path, "cpu", module)
    pixels, kind = _compared_on(run, predictor, source, images)
    compared = f"{len(pixels)} {kind}"
    expected = logits_of(predictor.model, [pixels], predictor.to_input(), predictor.device)
    assert expected is not None

    model = predictor.model.to(memory_format=torch.contiguous_format)
    settings = predictor.card.preprocessing
    network = FromPixels(model, settings).eval() if preprocessing == "graph" else model
    to_input = (lambda taken: taken) if preprocessing == "graph" else ToInput(settings, predictor.device)
    sample = to_input(pixels.tensor(predictor.device)[:2])
    with explain_os_errors(f"'{path}'"), tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, path.name)
        sha256 = _WRITERS[format](network, sample, says := metadata(predictor.card, preprocessing), draft)
        found = _logits(draft, format, pixels, to_input)
        difference, scale = _compared(path, found, expected, compared)
        write_bytes(path, draft.read_bytes())
        if program:
            write_text(program, script(path.name, sha256, predictor.card, takes_pixels=preprocessing == "graph"))
    takes = json.loads(says["input"])
    return Export(path, f"{takes['input']}: {takes['how']}", compared, difference, scale, program)


def _compared_on(
    run: RunDir, predictor: Predictor, source: Source | None, images: Sequence[str | Path]
) -> tuple[InputPixels, str]:
    """At most IMAGES prepared images, evenly spread over those that there are, and what kind of images they are."""
    if images:
        files = find_images(list(map(str, images)))
        chosen = [files[at] for at in _spread(len(files))]
        parts = []
        for file, found in zip(chosen, predictor.decoded(chosen), strict=True):
            if isinstance(found, DecodeError):
                raise UserError(f"cannot read image '{file}': {found}")
            parts.append(found.array)
        return InputPixels(np.concatenate(parts)), "images given"
    if run.alone and source is None:
        rules = predictor.card.preprocessing
        shape = (IMAGES, *rules.prepared_shape)
        random = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return InputPixels(random), "images of random pixels (give real ones with --images)"
    val = run_dataset(run, source).val
    if not len(val):
        raise UserError(f"run '{run.path}' has no validation images to compare on: give some with --images")
    return val.inputs(_spread(len(val))), "validation images"


def _spread(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, IMAGES).round().astype(np.int64))


def _logits(
    file: Path, format: Format, pixels: InputPixels, to_input: Callable[[Tensor], Tensor]
) -> NDArray[np.float32]:
    """The logits [N, K] of a file that was just written, in batches of one and of many."""
    model: nn.Module = open_exported(file)[0] if format == "onnx" else _Reopened(file)
    batches = [InputPixels(part) for part in (pixels.array[:1], pixels.array[1:]) if len(part)]
    found = logits_of(model, batches, to_input, torch.device("cpu"))
    assert found is not None
    return found


class _Reopened(nn.Module):
    """A torch.export archive of our own, opened in the process that wrote it; any other archive could run code."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        with warnings.catch_warnings():  # PyTorch 2.9 warns of its own way of reading the weights
            warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
            self.compute = torch.export.load(file).module()
        self.training = False

    def train(self, mode: bool = True) -> _Reopened:
        return self  # such a module refuses to change its mode

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.compute(images)
        return logits


def _compared(
    path: Path, found: NDArray[np.float32], expected: NDArray[np.float32], compared: str
) -> tuple[float, float]:
    """The largest difference of logits [N, K] from `expected`, and the largest logit; RunFailed above TOLERANCE."""
    difference, scale = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * scale:  # so written, NaN is refused too
        raise RunFailed(
            f"the exported model disagrees with PyTorch by {difference:.2g} on {compared} (logits "
            f"up to {scale:.3g}, tolerance {TOLERANCE:.0e} of that): '{path}' was not written; try the other --format"
        )
    return difference, scale


def _program(network: nn.Module, sample: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph for batches of any size."""
    try:
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(network, (sample,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # PyTorch reports what a graph cannot hold in many ways
        raise _cannot(error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _cannot(error: Exception) -> RunFailed:
    return RunFailed(f"this network cannot be exported by PyTorch {torch.__version__}: {first_line(error)}")


def _write_onnx(network: nn.Module, sample: Tensor, says: dict[str, str], path: Path) -> str:
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ModuleNotFoundError:
            raise missing_extra(package, "export") from None
    program = _program(network, sample)
    try:
        made = torch.onnx.export(
            program,
            input_names=["pixels" if sample.dtype == torch.uint8 else "images"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except Exception as error:
        raise _cannot(error) from error
    assert made is not None
    made.model.metadata_props.update(says)
    made.save(path, external_data=False)
    return seal(path)


def _write_torch(network: nn.Module, sample: Tensor, says: dict[str, str], path: Path) -> str:
    program = _program(network, sample)
    program.example_inputs = None  # they would be pickled into the file
    torch.export.save(program, path, extra_files={ARCHIVED: json.dumps(says, ensure_ascii=False)})
    with zipfile.ZipFile(path, "a") as archive:
        root, _, _ = archive.namelist()[0].partition("/")
        archive.writestr(zipfile.ZipInfo(f"{root}/extra/sha256"), digest := digest_of_archive(archive))
    return digest


def digest_of_archive(archive: zipfile.ZipFile) -> str:
    """SHA-256 of the names (below the first folder) and the contents of all files but ``extra/sha256``, by name."""
    digest = hashlib.sha256()
    for name in sorted(archive.namelist()):
        inner = name.partition("/")[2]
        if inner != "extra/sha256":
            digest.update(hashlib.sha256(inner.encode()).digest() + hashlib.sha256(archive.read(name)).digest())
    return digest.hexdigest()


#: Each writes a file and returns the checksum in it.
_WRITERS: dict[Format, Callable[[nn.Module, Tensor, dict[str, str], Path], str]] = {
    "onnx": _write_onnx,
    "torch": _write_torch,
}
