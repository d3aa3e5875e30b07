"""Predicts images from anywhere (paths, PIL images, arrays, tensors) with a trained model. Knows no data sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.contracts import Classifier, hw, size_text
from convsmith.data.decode import DecodeError
from convsmith.data.parallel import thread_map
from convsmith.data.preprocess import InputPixels, prepare
from convsmith.errors import UserError
from convsmith.memory import explain_memory_errors
from convsmith.prediction.evaluate import images_per_pass, logits_of, refuse_nonfinite_logits
from convsmith.prediction.evaluation import prediction_rows
from convsmith.prediction.exported import ARCHIVE_SUFFIX, open_exported
from convsmith.prediction.inputs import read_streams, with_ids
from convsmith.prediction.model_file import WEIGHTS, ModelCard, load_model
from convsmith.prediction.output import ERROR, Row, columns_of
from convsmith.prediction.threshold import Threshold
from convsmith.rundir import CARD, RunDir, open_single
from convsmith.runtime import keep_freed_memory, select_device
from convsmith.terminal import plural

EXPORTED = (".onnx", ARCHIVE_SUFFIX)


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image; `probabilities` are by class name, the most probable first.

    An image that cannot be read has the reason as its `error`, no label, no probabilities and the confidence 0.
    """

    id: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    error: str | None = None


class Answers(NamedTuple):
    """The rows of a batch of images (`output.columns_of`), and the features [N, F], NaN where an image is unreadable.

    There are no features if none were asked for, or if no image of the batch can be read.
    """

    rows: list[Row]
    features: NDArray[np.float32] | None


@dataclass(frozen=True)
class Predictor:
    """A trained model with its preprocessing, on a device; with `takes_pixels`, the model takes pixels as input.

    `files` are those that it was loaded from.
    """

    model: nn.Module
    card: ModelCard
    device: torch.device
    takes_pixels: bool = False
    files: tuple[Path, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    @property
    def folder(self) -> Path | None:
        """The folder of its files."""
        return self.files[0].parent if self.files else None

    def pixels(self, image: Any) -> InputPixels:
        """Prepare one image of any form that `prepare` accepts; images that are prepared already are returned as is.

        Raises DecodeError for a file that cannot be read, UserError for an object that is not an image.
        """
        rules = self.card.preprocessing
        if not isinstance(image, InputPixels):
            return prepare(image, rules)
        if image.array.shape[1:] != (expected := rules.prepared_shape):
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

        return thread_map(read, images, result_bytes=math.prod(rules.prepared_shape))

    def to_input(self) -> Callable[[Tensor], Tensor]:
        """The function that turns prepared pixels, uint8 [B, H, W, C], into the model's input."""
        if self.takes_pixels:
            return lambda pixels: pixels
        return self.card.to_input(self.device)

    def answers(
        self, ids: Sequence[str], images: Sequence[Any], threshold: Threshold | None = None, features: bool = False
    ) -> Iterator[Answers]:
        """The rows of images in batches, in order, with `features` also what the head gets of each image.

        The images are decoded in threads while the network computes.
        """
        if features and not isinstance(self.model, Classifier):
            raise UserError(
                "this model has no features that are apart from its head: name a run with one of our models"
            )
        if self.device.type == "cpu":
            keep_freed_memory()
        decoded = zip(ids, self.decoded(read_streams(images)), strict=True)
        while some := list(islice(decoded, images_per_pass(*hw(self.card.preprocessing.working_size)))):
            yield self._answers(some, threshold, features)

    def _answers(
        self, images: list[tuple[str, InputPixels | DecodeError]], threshold: Threshold | None, features: bool
    ) -> Answers:
        read = [(name, pixels) for name, pixels in images if not isinstance(pixels, DecodeError)]
        rows: Iterator[Row] = iter(())
        vectors: NDArray[np.float32] | None = None
        if read:
            logits, vectors = self._compute(InputPixels(np.concatenate([pixels.array for _, pixels in read])), features)
            rows = prediction_rows([name for name, _ in read], logits, self.classes)
            if threshold is not None:
                rows = threshold.judged(rows, logits)
        empty = dict.fromkeys(columns_of(self.classes, threshold is not None))
        whole: list[Row] = [
            empty | ({"id": name, ERROR: str(pixels)} if isinstance(pixels, DecodeError) else next(rows))
            for name, pixels in images
        ]
        if vectors is not None and len(read) < len(images):
            given, vectors = vectors, np.full((len(images), vectors.shape[1]), np.nan, np.float32)
            vectors[[not isinstance(pixels, DecodeError) for _, pixels in images]] = given
        return Answers(whole, vectors)

    @torch.inference_mode()
    def _compute(self, pixels: InputPixels, features: bool) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits [N, K], and with `features` what the head got [N, F]."""
        height, width, _ = pixels.array.shape[1:]
        size = size_text((height, width))
        with explain_memory_errors(f"in batches of {plural(len(pixels), 'image')} of {size} pixels"):
            if not features:
                logits = logits_of(self.model, [pixels], self.to_input(), self.device)
                assert logits is not None
                vectors = None
            else:
                assert isinstance(self.model, Classifier)
                found = self.model.features(self.to_input()(pixels.tensor(self.device)))
                logits = self.model.head(found).float().cpu().numpy()
                vectors = found.flatten(1).float().cpu().numpy()
        refuse_nonfinite_logits(logits)
        return logits, vectors

    def predict(self, images: Any, top_k: int | None = None) -> list[Prediction]:
        """Predict one image, a list of images or a batch, each in a form that `pixels` accepts, or a folder of images.

        Only the `top_k` largest probabilities of each image are returned.
        """
        ids, many = with_ids(images, self.card.preprocessing.channels)
        return [as_prediction(row, top_k) for batch in self.answers(ids, many) for row in batch.rows]


def as_prediction(row: Row, top_k: int | None = None) -> Prediction:
    """A row of predictions as an object, with its `top_k` largest probabilities."""
    if row[ERROR] is not None:
        return Prediction(row["id"], "", 0.0, {}, row[ERROR])
    by_class = {key.removeprefix("p_"): value for key, value in row.items() if key.startswith("p_")}
    ranked = dict(sorted(by_class.items(), key=lambda item: -item[1])[:top_k])
    return Prediction(row["id"], row["predicted"], row["confidence"], ranked)


@explain_memory_errors("while the model was loaded")
def load_predictor(run: str | Path, device: str = "auto", module: nn.Module | None = None) -> Predictor:
    """Load the model of a run directory, of its `model/` folder, or of an ONNX file that `convsmith export` wrote."""
    path = Path(run)
    if path.suffix in EXPORTED and path.is_file():
        return _exported_predictor(path, device)
    folder = path if (path / CARD).exists() else RunDir(path).model
    if not (folder / CARD).exists():
        open_single(path, f"model/{CARD}")
    model, card = load_model(folder, where := select_device(device), module)
    return Predictor(model, card, where, files=(folder / CARD, folder / WEIGHTS))


def _exported_predictor(path: Path, device: str) -> Predictor:
    if device not in ("auto", "cpu"):
        raise UserError(
            f"'{path}' computes on the CPU only: leave out --device {device}, or predict with the run itself"
        )
    module, card, taken = open_exported(path)
    return Predictor(module, card, torch.device("cpu"), takes_pixels=taken.kind == "pixels", files=(path,))
