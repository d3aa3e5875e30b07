"""The server's answers about an image: prediction, heat map, nearest training images. HTTP is handled in `app`."""

from __future__ import annotations

from typing import Any

from convsmith.data.decode import DecodeError, read_header
from convsmith.data.preprocess import InputPixels
from convsmith.errors import UserError
from convsmith.explain.gradcam import heat_maps, overlay
from convsmith.figures.page import pixels_uri
from convsmith.prediction.predictor import Predictor
from convsmith.serve.neighbours import Neighbours
from convsmith.serve.upload import Refused

MAX_PIXELS = 25_000_000  # decoding an image with transparency takes 60 bytes per pixel
NEIGHBOURS = 6


class Answers:
    """Answers of a model; without `neighbours` they name no training images. Not thread-safe."""

    def __init__(self, predictor: Predictor, neighbours: Neighbours | None) -> None:
        self._predictor, self._neighbours = predictor, neighbours

    @property
    def classes(self) -> tuple[str, ...]:
        return self._predictor.classes

    def predict(self, content: bytes) -> dict[str, Any]:
        """`label`, `confidence`, and `probabilities` by class, the most probable first."""
        return self._prediction(self._pixels(content))

    def explain(self, content: bytes) -> dict[str, Any]:
        """The same, with pictures as data URLs: the image as the net sees it, its heat map, the nearest images."""
        return self.explain_pixels(self._pixels(content))

    def explain_pixels(self, pixels: InputPixels) -> dict[str, Any]:
        answer = self._prediction(pixels)
        winner = self.classes.index(answer["label"])
        answer["seen"] = pixels_uri(pixels.array[0])
        try:
            heat = heat_maps(self._predictor.model, self._predictor.to_input(), pixels, [winner])[0]
            answer["heat_map"] = pixels_uri(overlay(pixels.array[0], heat))
        except UserError as error:
            answer["heat_map"], answer["heat_map_missing"] = None, str(error)
        near = self._neighbours.nearest(pixels, NEIGHBOURS) if self._neighbours else []
        answer["nearest"] = [
            {
                "id": one.id,
                "label": self.classes[one.label],
                "similarity": one.similarity,
                "image": pixels_uri(one.pixels),
            }
            for one in near
        ]
        return answer

    def _pixels(self, content: bytes) -> InputPixels:
        """The image, prepared; Refused where the image is broken or too large."""
        try:
            header = read_header(content)
            if header.width * header.height > MAX_PIXELS:
                size = f"{header.width} x {header.height}"
                raise Refused(413, f"the image is too large: {size} pixels, at most {MAX_PIXELS // 10**6} million")
            return self._predictor.pixels(content)
        except DecodeError as error:
            status = 413 if error.kind == "bomb" else 422
            raise Refused(status, f"the image cannot be read ({error}): send another one") from None
        except MemoryError:
            raise Refused(413, "the image needs more memory than is available: send a smaller one") from None

    def _prediction(self, pixels: InputPixels) -> dict[str, Any]:
        found = self._predictor.predict(pixels)[0]
        return {"label": found.label, "confidence": found.confidence, "probabilities": found.probabilities}
