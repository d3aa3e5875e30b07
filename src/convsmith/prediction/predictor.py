"""Predicts images from anywhere (paths, PIL images, arrays, tensors) with a trained model. Knows no data sets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.data.decode import IMAGE_SUFFIXES, DecodeError
from convsmith.data.parallel import thread_map
from convsmith.data.preprocess import InputPixels, prepare, stacks
from convsmith.data.source import readable
from convsmith.errors import UserError
from convsmith.files import as_csv, explain_os_errors, parse_json, refuse_to_replace, write_text
from convsmith.memory import explain_memory_errors
from convsmith.prediction.evaluate import images_per_pass, logits_of, refuse_nonfinite_logits
from convsmith.prediction.evaluation import prediction_rows
from convsmith.prediction.exported import ARCHIVE_SUFFIX, open_exported
from convsmith.prediction.model_file import ModelCard, load_model
from convsmith.rundir import CARD, RunDir
from convsmith.runtime import select_device

EXPORTED = (".onnx", ARCHIVE_SUFFIX)


def find_images(paths: Sequence[str]) -> list[Path]:
    """The images that files, folders (by suffix, sorted) and patterns name; raises UserError if one names none."""
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
            raise UserError(f"there are no images below '{text}': give files, folders or a pattern, as 'photos/*.jpg'")
        found += images
    return found


def _images_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image; `probabilities` are by class name, the most probable first."""

    id: str
    label: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Predictor:
    """A trained model with its preprocessing, on a device; with `takes_pixels`, the model takes pixels as input."""

    model: nn.Module
    card: ModelCard
    device: torch.device
    takes_pixels: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    def pixels(self, image: Any) -> InputPixels:
        """Prepare one image of any form that `prepare` accepts; images that are prepared already are returned as is.

        Raises DecodeError for a file that cannot be read, UserError for an object that is not an image.
        """
        rules = self.card.preprocessing
        if not isinstance(image, InputPixels):
            return prepare(image, rules)
        if image.array.shape[1:] != (expected := (rules.working_size, rules.working_size, rules.channels)):
            found = list(image.array.shape[1:])
            raise UserError(f"these pixels {found} were prepared for another model, which takes {list(expected)}")
        return image

    def decoded(self, images: Iterable[Any]) -> Iterator[InputPixels | DecodeError]:
        """`pixels` of each image, or why it cannot be read; in threads, so that a signal is heard while they decode."""
        rules = self.card.preprocessing

        def read(image: Any) -> InputPixels | DecodeError:
            try:
                return self.pixels(image)
            except DecodeError as error:
                return error

        return thread_map(read, images, result_bytes=rules.working_size**2 * rules.channels)

    def to_input(self) -> Callable[[Tensor], Tensor]:
        """The function that turns prepared pixels, uint8 [B, W, W, C], into the model's input."""
        if self.takes_pixels:
            return lambda pixels: pixels
        return self.card.to_input(self.device)

    def rows(self, ids: Sequence[str], images: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Rows as in predictions-<split>.csv, without labels; a UserError names an image that cannot be read."""

        def prepared() -> Iterator[InputPixels]:
            for name, pixels in zip(ids, self.decoded(images), strict=True):
                if isinstance(pixels, DecodeError):
                    raise UserError(f"cannot read image '{name}': {pixels}")
                yield pixels

        return prediction_rows(ids, self._logits(prepared()), self.classes) if ids else iter(())

    def predict_files(self, files: Sequence[Path]) -> tuple[list[dict[str, Any]], list[tuple[Path, str]]]:
        """Rows of the files that can be decoded, in order, and the others with the reason. Reads each file once."""
        ids: list[str] = []
        broken: list[tuple[Path, str]] = []

        def prepared() -> Iterator[InputPixels]:
            for file, pixels in zip(files, self.decoded(files), strict=True):
                if isinstance(pixels, DecodeError):
                    broken.append((file, str(pixels)))
                else:
                    ids.append(readable(str(file)))
                    yield pixels

        images = prepared()
        if (first := next(images, None)) is None:
            return [], broken
        return list(prediction_rows(ids, self._logits(chain([first], images)), self.classes)), broken

    def _logits(self, images: Iterable[InputPixels]) -> NDArray[np.float32]:
        side = self.card.preprocessing.working_size
        size = images_per_pass(side)
        with explain_memory_errors(f"in batches of {size} images of {side} x {side} pixels"):
            logits = logits_of(self.model, stacks(images, size), self.to_input(), self.device)
        assert logits is not None
        refuse_nonfinite_logits(logits)
        return logits

    def predict(
        self, images: Any, out: Path | None = None, top_k: int | None = None, csv_safe: bool = False
    ) -> list[Prediction]:
        """Predict one image, a list of images or a batch, each in a form that `pixels` accepts.

        Only the `top_k` largest probabilities of each image are returned. With `out`, a .csv or .json file, all
        probabilities are written there; for `csv_safe` see `files.as_csv`.
        """
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k must be at least 1, but got {top_k}")
        refuse_out(out, csv_safe)
        many = as_list(images)
        ids = [str(image) if isinstance(image, str | Path) else str(number) for number, image in enumerate(many)]
        rows = list(self.rows(ids, many))
        if out is not None:
            write_predictions(out, rows, csv_safe)
        return [_prediction(row, top_k) for row in rows]


def _prediction(row: dict[str, Any], top_k: int | None) -> Prediction:
    by_class = {key.removeprefix("p_"): value for key, value in row.items() if key.startswith("p_")}
    ranked = dict(sorted(by_class.items(), key=lambda item: -item[1])[:top_k])
    return Prediction(row["id"], row["predicted"], row["confidence"], ranked)


def refuse_out(out: Path | None, csv_safe: bool = False) -> None:
    """Raise UserError for a file that `write_predictions` cannot write, or not as asked, or that has other content."""
    if out is not None and out.suffix not in (".csv", ".json"):
        raise UserError(f"--out '{out}' must end in .csv or .json")
    if csv_safe and (out is None or out.suffix != ".csv"):
        raise UserError("--csv-safe is about cells of a CSV file: give --out FILE.csv, too")
    if out is not None:
        refuse_to_replace(out, lambda content: _are_predictions(content, out.suffix), "a file of predictions")


def _are_predictions(content: bytes, suffix: str) -> bool:
    text = content.decode("utf-8-sig")  # a spreadsheet program may have saved it again
    keys = [*(parse_json(text)[0] if suffix == ".json" else next(csv.reader(io.StringIO(text, newline=""))))]
    return keys[:3] == ["id", "predicted", "confidence"] and all(key.startswith("p_") for key in keys[3:])


def write_predictions(out: Path, rows: list[dict[str, Any]], csv_safe: bool = False) -> None:
    """Write rows of predictions to a .csv or .json file, atomically; for `csv_safe` see `files.as_csv`."""
    text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n" if out.suffix == ".json" else as_csv(rows, csv_safe)
    with explain_os_errors(f"'{out}'"):
        write_text(out, text)


def as_list(images: Any) -> list[Any]:
    """A batch (array or tensor of one more dimension) or a sequence as a list; one image as a list of one.

    An array [A, B, C] whose last dimension is 1, 3 or 4 is one image; otherwise it holds gray images [N, H, W].
    """
    if isinstance(images, InputPixels):
        return [InputPixels(image[None]) for image in images.array]
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] not in (1, 3, 4):
        return list(images)
    if isinstance(images, Tensor | np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, str):
        return list(images)
    return [images]


@explain_memory_errors("while the model was loaded")
def load_predictor(run: str | Path, device: str = "auto", module: nn.Module | None = None) -> Predictor:
    """Load the model of a run directory, of its `model/` folder, or of an ONNX file that `convsmith export` wrote."""
    path = Path(run)
    if path.suffix in EXPORTED and path.is_file():
        return _exported_predictor(path, device)
    folder = path if (path / CARD).exists() else RunDir(path).model
    if not (folder / CARD).exists():
        from convsmith.rundir import open_single

        open_single(path, f"model/{CARD}")
    model, card = load_model(folder, where := select_device(device), module)
    return Predictor(model, card, where)


def _exported_predictor(path: Path, device: str) -> Predictor:
    if device not in ("auto", "cpu"):
        raise UserError(
            f"'{path}' computes on the CPU only: leave out --device {device}, or predict with the run itself"
        )
    module, card, taken = open_exported(path)
    return Predictor(module, card, torch.device("cpu"), takes_pixels=taken.kind == "pixels")
