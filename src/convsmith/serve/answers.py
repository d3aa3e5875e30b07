"""The server's answers about an image: prediction, heat map, nearest training images. HTTP is handled in `app`."""

from __future__ import annotations

from typing import Any

from convsmith.data.preprocess import InputPixels
from convsmith.errors import UserError
from convsmith.explain.gradcam import heat_maps, overlay
from convsmith.figures.page import pixels_uri
from convsmith.memory import explain_memory_errors
from convsmith.prediction.predictor import Predictor
from convsmith.serve.neighbours import Neighbours

NEIGHBOURS = 6


class Answers:
    """Answers of a model; without `neighbours` they name no training images. Not thread-safe."""

    def __init__(self, predictor: Predictor, neighbours: Neighbours | None) -> None:
        self._predictor, self._neighbours = predictor, neighbours

    @property
    def classes(self) -> tuple[str, ...]:
        return self._predictor.classes

    def predict(self, pixels: InputPixels) -> dict[str, Any]:
        """`label`, `confidence`, and `probabilities` by class, the most probable first."""
        found = self._predictor.predict(pixels)[0]
        return {"label": found.label, "confidence": found.confidence, "probabilities": found.probabilities}

    @explain_memory_errors("in the explanation")
    def explain(self, pixels: InputPixels) -> dict[str, Any]:
        """The same, with pictures as data URLs: the image as the net sees it, its heat map, the nearest images."""
        answer = self.predict(pixels)
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
