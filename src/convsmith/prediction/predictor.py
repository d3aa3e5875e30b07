"""A trained model on images from anywhere: one way from a path, a PIL image, an array or a tensor to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convsmith.data.decode import IMAGE_SUFFIXES, DecodeError, DecodeRules, decode, from_array, from_image
from convsmith.data.preprocess import ToInput
from convsmith.errors import UserError
from convsmith.prediction.evaluate import BATCH, logits_of
from convsmith.prediction.evaluation import prediction_rows
from convsmith.prediction.exported import ARCHIVE_SUFFIX, open_exported
from convsmith.prediction.model_file import CARD, ModelCard, load_model, memory_format
from convsmith.rundir import RunDir
from convsmith.runtime import select_device

EXPORTED = (".onnx", ARCHIVE_SUFFIX)


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
