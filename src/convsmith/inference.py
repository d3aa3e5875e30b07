"""One path from images to logits, for validation, evaluate and predict; and the files of a trained model."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from convsmith.config import read_run_config
from convsmith.contracts import Section
from convsmith.data.batches import ToInput
from convsmith.data.config import Preprocessing
from convsmith.data.dataset import Dataset, Subset, open_dataset, unseal_test
from convsmith.data.decode import IMAGE_SUFFIXES, DecodeError, DecodeRules, decode, from_array, from_image
from convsmith.data.sources import Source
from convsmith.errors import UserError
from convsmith.insight.evaluation import evaluation, prediction_rows
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.nets.exported import ARCHIVE_SUFFIX, open_exported
from convsmith.rundir import RunDir, explain_os_errors, read_json, read_splits, write_bytes, write_json, write_text
from convsmith.runtime import select_device, set_threads
from convsmith.training.checkpoint import checksum
from convsmith.training.state import load_strictly

WEIGHTS, CARD = "model.safetensors", "model.json"
EXPORTED = (".onnx", ARCHIVE_SUFFIX)
BATCH = 256  # images a forward pass; small enough for 224 x 224, large enough for 32 x 32


class ModelCard(Section):
    """model.json: all that predict, serve and export need besides the weights. Holds no time and no path."""

    architecture: ModelConfig | None  # None: a module of the user's own
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    layout: str


def memory_format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write model.safetensors and model.json, each whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # One entry alone: safetensors writes several in an order that changes, and equal runs make equal files.
    write_bytes(folder / WEIGHTS, save(tensors, {"sha256": checksum(tensors)}))
    write_json(folder / CARD, card.model_dump(mode="json"))


def read_card(folder: Path) -> ModelCard:
    """model.json."""
    try:
        return ModelCard.model_validate(read_json(folder / CARD))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"'{folder / CARD}' is damaged ({where}: {problem['msg']}): restore it, or train again"
        ) from None


def read_model(folder: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """What `save_model` wrote; a UserError where it is not that any more."""
    card, mend = read_card(folder), "restore it, or train again"
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            said = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise UserError(f"'{folder / WEIGHTS}' cannot be read ({error.strerror or error}): {mend}") from None
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the model in '{folder}' is damaged ({reason}): {mend}") from None
    if said is not None and said != checksum(tensors):
        raise UserError(f"the model in '{folder}' is damaged (checksum does not fit): {mend}")
    return card, tensors


def load_model(folder: Path, device: torch.device, module: nn.Module | None = None) -> tuple[nn.Module, ModelCard]:
    """The model in eval mode on `device`. A module of the user's own must be handed in as `module`."""
    card, tensors = read_model(folder)
    if card.architecture is not None:
        size = card.preprocessing.image_size
        module = build(card.architecture, card.preprocessing.channels, size, len(card.classes))
    elif module is None:
        raise UserError(f"the model in '{folder}' is a module of your own: hand it in, convsmith.load(run, model=...)")
    load_strictly(module, tensors, f"the model in '{folder}'")
    assert module is not None
    return module.to(device=device, memory_format=memory_format(card.layout)).eval(), card  # type: ignore[call-overload]


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    batches: Iterable[NDArray[np.uint8]],
    to_input: Callable[[Tensor], Tensor],
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32] | None:
    """Logits float32 [N, K] of batches of uint8 [B, W, W, C]; None where `stop()` turned true on the way.

    Puts the model into eval mode and back. Draws no random numbers.
    """
    training = model.training
    model.eval()
    parts: list[Tensor] = []
    for pixels in batches:
        if stop():
            break
        parts.append(model(to_input(torch.from_numpy(pixels).to(device))))
    model.train(training)
    assert parts or stop(), "no images"
    return None if stop() else torch.cat(parts).float().cpu().numpy()


def batches_of(subset: Subset, size: int = BATCH) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(subset), size):
        yield subset.gather(np.arange(start, min(start + size, len(subset))))


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files, the images below folders (by suffix, sorted), and patterns of either; a UserError where one finds none."""
    found: list[Path] = []
    for text in paths:
        matches = (
            [Path(text)]
            if text and Path(text).exists()
            else [Path(name) for name in sorted(glob(text, recursive=True))]
        )
        if not matches:
            raise UserError(f"no file matches '{text}': give files, folders or a pattern such as 'photos/*.jpg'")
        images = [image for match in matches for image in (_images_below(match) if match.is_dir() else [match])]
        if not images:
            raise UserError(f"no images below '{text}': give files, folders or a pattern such as 'photos/*.jpg'")
        found += images
    return found


def _images_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def evaluate_split(
    model: nn.Module, card: ModelCard, subset: Subset, device: torch.device, run: RunDir, split: str
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Evaluate on one split and write evaluation-<split>.json and predictions-<split>.csv; record and logits [N, K]."""
    to_input = ToInput(card.preprocessing, device, memory_format(card.layout))
    logits = logits_of(model, batches_of(subset), to_input, device)
    assert logits is not None
    record = evaluation(subset.labels, logits, card.classes)
    text = io.StringIO()
    rows = prediction_rows(subset.ids, logits, card.classes, subset.labels)
    write_rows(text, rows)
    write_text(run.predictions(split), text.getvalue())
    write_json(run.evaluation(split), record)
    return record, logits


def evaluate(
    run: RunDir,
    split: str,
    command: str,
    device: str = "auto",
    source: Source | None = None,
    module: nn.Module | None = None,
) -> dict[str, Any]:
    """The record of evaluation-<split>.json. The test split is opened here alone, and `command` is noted first.

    UserError where the run has no such split, or its data has changed or cannot be had again.
    """
    config, splits = read_run_config(run.config), read_splits(run)["splits"]
    there = [name for name in ("val", "test") if name in splits]
    if split not in there:
        raise UserError(f"run '{run.path}' has no {split} split to evaluate. Splits: {', '.join(there)}")
    set_threads(config.train.threads)
    dataset = run_dataset(run, source)
    model, card = load_model(run.model, where := select_device(device), module)
    with explain_os_errors(f"run '{run.path}'"):
        if split == "test":
            run.record_test_access(command)
        subset = unseal_test(dataset) if split == "test" else dataset.val
        return evaluate_split(model, card, subset, where, run, split)[0]


def run_dataset(run: RunDir, source: Source | None = None) -> Dataset:
    """The data of a run, divided as it was in training; UserError where it has changed or cannot be had again."""
    config, splits = read_run_config(run.config), read_splits(run)
    dataset = open_dataset(config.data, config.train.seed, source=source)
    if dataset.hash != splits["hash"]:
        raise UserError(
            f"the data of run '{run.path}' has changed since it was trained: its splits are no longer the same"
        )
    return dataset.with_splits(splits["splits"])


def write_rows(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """Rows of equal keys as CSV with a header."""
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)


@dataclass(frozen=True)
class Prediction:
    """`probabilities` by class name, the most probable first."""

    id: str
    label: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Predictor:
    """A trained model with its preprocessing, on a device; `takes_pixels` where the model does the rest itself."""

    model: nn.Module
    card: ModelCard
    device: torch.device
    takes_pixels: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    def pixels(self, image: Any) -> NDArray[np.uint8]:
        """A path, PIL image, array or tensor -> uint8 [W, W, C] by the model's own preprocessing.

        Arrays are uint8 [H, W] or [H, W, C]; tensors are uint8 [C, H, W] or floats in [0, 1] of that shape. DecodeError
        for a file that cannot be read, UserError for what is no image at all.
        """
        rules = DecodeRules.of(self.card.preprocessing)
        if isinstance(image, str | Path):
            return decode(Path(image), rules)
        if isinstance(image, Image.Image):
            return from_image(image, rules)
        return from_array(_as_array(image), rules)

    def to_input(self) -> Callable[[Tensor], Tensor]:
        """From uint8 [B, W, W, C], as `pixels` gives them, to what the model takes."""
        if self.takes_pixels:
            return lambda pixels: pixels
        return ToInput(self.card.preprocessing, self.device, memory_format(self.card.layout))

    def rows(self, ids: Sequence[str], images: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Rows as in predictions-<split>.csv, without labels; a UserError names what cannot be read."""

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for name, image in zip(ids, images, strict=True):
                try:
                    yield self.pixels(image)
                except DecodeError as error:
                    raise UserError(f"cannot read image '{name}': {error}") from None

        if not ids:
            return iter(())
        logits = logits_of(self.model, _stacks(pixels()), self.to_input(), self.device)
        assert logits is not None
        return prediction_rows(ids, logits, self.classes)

    def readable(self, files: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
        """The files that decode, and those that do not with the reason."""
        sound, broken = [], []
        for file in files:
            try:
                self.pixels(file)
                sound.append(file)
            except DecodeError as error:
                broken.append((file, str(error)))
        return sound, broken

    def predict(self, images: Any) -> list[Prediction]:
        """Predict a list of images or one: paths, PIL images, uint8 arrays, tensors (see `pixels`)."""
        many = _as_list(images)
        ids = [str(image) if isinstance(image, str | Path) else str(number) for number, image in enumerate(many)]
        return [_prediction(row) for row in self.rows(ids, many)]


def _prediction(row: dict[str, Any]) -> Prediction:
    chances = {key.removeprefix("p_"): value for key, value in row.items() if key.startswith("p_")}
    ranked = dict(sorted(chances.items(), key=lambda item: -item[1]))
    return Prediction(row["id"], row["predicted"], row["confidence"], ranked)


def _stacks(pixels: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    stack: list[NDArray[np.uint8]] = []
    for image in pixels:
        stack.append(image)
        if len(stack) == BATCH:
            yield np.stack(stack)
            stack = []
    if stack:
        yield np.stack(stack)


def _as_list(images: Any) -> list[Any]:
    """A batch (array or tensor of one more dimension) or a sequence as a list; one image as a list of one.

    An array [A, B, C] with 1, 3 or 4 in the last place is one image, else it is gray images [N, H, W].
    """
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] not in (1, 3, 4):
        return list(images)
    if isinstance(images, Tensor | np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, str):
        return list(images)
    return [images]


def _as_array(image: Any) -> NDArray[np.uint8]:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.is_floating_point():
            if image.numel() and not (
                float(image.min()) >= 0 and float(image.max()) <= 1
            ):  # so written, NaN is refused
                raise UserError("a float tensor must hold values in [0, 1]: hand in pixels before any normalisation")
            image = (image * 255).round().to(torch.uint8)
        return np.asarray(image.permute(1, 2, 0) if image.ndim == 3 else image)
    if not isinstance(image, np.ndarray):
        raise UserError(f"cannot predict a {type(image).__name__}: give paths, PIL images, arrays or tensors")
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise UserError(f"an array must be uint8 [H, W] or [H, W, C], not {image.dtype} {list(image.shape)}")
    pixels: NDArray[np.uint8] = image
    return pixels


def load_predictor(run: str | Path, device: str = "auto", module: nn.Module | None = None) -> Predictor:
    """The model of a run directory, of its `model/` folder, or in an ONNX file that `convsmith export` wrote."""
    path = Path(run)
    if path.suffix in EXPORTED and path.is_file():
        return _exported_predictor(path, device)
    folder = path if (path / CARD).exists() else RunDir(path).model
    if not (folder / CARD).exists():
        from convsmith.rundir import open_run

        open_run(path, f"model/{CARD}")
    model, card = load_model(folder, where := select_device(device), module)
    return Predictor(model, card, where)


def _exported_predictor(path: Path, device: str) -> Predictor:
    if device not in ("auto", "cpu"):
        raise UserError(f"'{path}' computes on the CPU: leave --device {device} out, or predict with the run itself")
    module, facts = open_exported(path)
    settings = {"classes": facts["classes"], "preprocessing": facts["preprocessing"]}
    card = ModelCard.model_validate({"architecture": None, "layout": "contiguous", **settings})
    return Predictor(module, card, torch.device("cpu"), takes_pixels=facts["input"]["kind"] == "pixels")
