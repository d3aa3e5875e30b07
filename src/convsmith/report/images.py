"""Sections of a report that show images: confusion matrix, worst mistakes, suspected labels, augmented inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convsmith.data.augment import Augment
from convsmith.data.dataset import Subset
from convsmith.data.preprocess import InputPixels, ToInput
from convsmith.data.sampler import epoch_order
from convsmith.errors import UserError
from convsmith.explain.gradcam import heat_maps, overlay
from convsmith.figures.page import pixels_uri, thumbnail_uri
from convsmith.prediction.evaluation import Predictions
from convsmith.prediction.model_file import ModelCard
from convsmith.report.analysis import confused_order, likely_label_errors
from convsmith.report.inputs import Inputs

TABLE_CLASSES = 40  # classes up to which the confusion matrix is a table; beyond, the most confused pairs are listed
MOST_PAIRS = 30
PICTURE = 400  # approximate side in pixels of the picture of the matrix
CORRECT, MISTAKE = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's blue and vermillion
CELL_IMAGES = 600  # in all cells together
A_CELL = 6  # images in one cell at most
LEVELS = 10  # of shading
MISTAKES = 12
SUSPECTED = 18
MANY = 0.05  # share of the labels; a model that suspects more than this is often wrong itself
SAMPLES = 24

Section = dict[str, Any]
Heats = Callable[[Sequence[int]], list[str | None]]


class Gallery:
    """The images of a subset that a page shows, by position; each is encoded once however often it is shown."""

    def __init__(self, subset: Subset | None, ids: Sequence[str]) -> None:
        """`ids` give the image at each position, in the order of the predictions, which may differ from the subset's.

        UserError for an id that the subset does not have.
        """
        self._subset = subset
        self._at = {} if subset is None else {name: at for at, name in enumerate(subset.ids)}
        self._ids = ids
        self.uris: dict[int, str] = {}
        if strange := next((name for name in ids if subset is not None and name not in self._at), None):
            raise UserError(
                f"the predictions name '{strange}', which is not among the images: run convsmith evaluate again"
            )

    def __bool__(self) -> bool:
        return self._subset is not None

    def pixels(self, positions: Iterable[int]) -> NDArray[np.uint8]:
        """uint8 [N, H, W, C]."""
        assert self._subset is not None
        return self._subset.gather([self._at[self._ids[position]] for position in positions])

    def add(self, positions: Iterable[int]) -> None:
        new = [position for position in dict.fromkeys(map(int, positions)) if position not in self.uris]
        if self._subset is not None and new:
            self.uris.update(zip(new, map(thumbnail_uri, self.pixels(new)), strict=True))


def confusion(predictions: Predictions, gallery: Gallery) -> Section:
    """The matrix as rows of cells, and for each nonempty cell its most informative images.

    A cell off the diagonal shows its most confident mistakes, a cell on the diagonal its least confident images. Where
    there are too many classes for a table, a picture of the matrix and the most confused pairs take its place.
    """
    classes = predictions.classes
    counts = predictions.confusion
    order = confused_order(counts)
    pairs = [(int(row), int(column)) for row in order for column in order if counts[row, column]]
    as_table = len(classes) <= TABLE_CLASSES
    if not as_table:
        wrong = [pair for pair in pairs if pair[0] != pair[1]]
        pairs = sorted(wrong, key=lambda pair: -counts[pair])[:MOST_PAIRS]
    each = max(1, min(A_CELL, CELL_IMAGES // max(len(pairs), 1)))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    cells = {pair: _cell(pair, counts, shares, classes) for pair in pairs}
    shots = {}
    for pair in pairs:
        chosen = most_informative(predictions, *pair, each)
        gallery.add(chosen)
        shots[f"{pair[0]}-{pair[1]}"] = [{"image": str(at), "text": _caption(predictions, at)} for at in chosen]
    empty = {"count": 0, "share": 0.0}
    return {
        "as_table": as_table,
        "picture": None if as_table else _matrix_picture(shares[np.ix_(order, order)]),
        "classes": [classes[at] for at in order],
        "rows": [
            {"name": classes[row], "cells": [cells.get((row, column), empty) for column in map(int, order)]}
            for row in map(int, order)
        ]
        if as_table
        else [],
        "pairs": [cell for pair, cell in cells.items() if pair[0] != pair[1]],
        "shots": shots,
        "count": len(predictions.labels),
    }


def _matrix_picture(shares: NDArray[np.float64]) -> str:
    """A data URI of the matrix [K, K]: correct predictions are blue, mistakes orange; a larger share is darker."""
    depth = np.sqrt(shares)[..., None]
    ink = np.where(np.eye(len(shares), dtype=bool)[..., None], CORRECT, MISTAKE)
    pixels = np.rint(255 * (1 - depth) + ink * depth).astype(np.uint8)
    scale = max(1, PICTURE // len(shares))
    return pixels_uri(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def most_informative(predictions: Predictions, true: int, guessed: int, most: int) -> list[int]:
    """Positions of the images of one cell: the most confident mistakes, or the least confident correct ones."""
    inside = np.flatnonzero((predictions.labels == true) & (predictions.predicted == guessed))
    confidence = predictions.probabilities[inside, guessed]
    order = np.argsort(confidence if true == guessed else -confidence, kind="stable")
    return [int(at) for at in inside[order[:most]]]


def mistakes(predictions: Predictions, gallery: Gallery, heats: Heats) -> list[Section]:
    """The mistakes with the highest loss, each with the heat map of the class that was predicted."""
    wrong = np.flatnonzero(~predictions.correct)
    worst = [int(at) for at in wrong[np.argsort(-predictions.losses[wrong], kind="stable")][:MISTAKES]]
    gallery.add(worst)
    return [
        _shot(predictions, at, gallery)
        | {"heat": heat, "loss": float(predictions.losses[at]), "probabilities": _most_probable(predictions, at)}
        for at, heat in zip(worst, heats(worst) if worst and gallery else [None] * len(worst), strict=True)
    ]


def suspected_labels(predictions: Predictions, gallery: Gallery) -> Section:
    """Likely label errors, or why there are none to show."""
    try:
        found = likely_label_errors(predictions)
    except UserError as error:
        return {"count": 0, "shots": [], "reason": str(error), "of": len(predictions.labels)}
    chosen = [int(at) for at in found[:SUSPECTED]]
    gallery.add(chosen)
    shots = [_shot(predictions, at, gallery) for at in chosen]
    many = len(found) > MANY * len(predictions.labels)
    return {"count": len(found), "many": many, "shots": shots, "reason": "", "of": len(predictions.labels)}


def samples(inputs: Inputs) -> list[Section]:
    """Train images in the order of the first epoch, each before augmentation and as the net saw it; none without it."""
    dataset, config, card = inputs.dataset, inputs.config, inputs.card
    if dataset is None or not config.augment.active:
        return []
    train = dataset.train
    order = epoch_order(train.labels, config.train.seed, 0, config.data.sampling == "balanced")
    chosen = order[: min(SAMPLES, config.train.batch)]
    pixels = train.gather(chosen)
    to_input = ToInput(card.preprocessing, torch.device("cpu"))
    generator = torch.Generator().manual_seed(config.train.seed)
    labels = torch.from_numpy(train.labels[chosen])
    batch = Augment(config.augment, to_input)(torch.from_numpy(pixels), labels, generator, [config.train.seed, 0, 0])
    shown = to_input.back(batch.images)
    classes = card.classes
    result = []
    for at, label in enumerate(batch.labels.tolist()):
        words = classes[label]
        if batch.others is not None and batch.weight is not None:
            words = f"{100 * batch.weight:.0f}% {words} + {classes[int(batch.others[at])]}"
        before = f"{train.ids[chosen[at]]} ({classes[train.labels[chosen[at]]]})"
        result.append(
            {"before": thumbnail_uri(pixels[at]), "after": thumbnail_uri(shown[at]), "text": words, "id": before}
        )
    return result


def heats_of(model: nn.Module | None, card: ModelCard, predictions: Predictions, gallery: Gallery) -> Heats:
    """A function from positions to the Grad-CAM of the predicted class, laid over each image, as data URIs.

    They are None where the model is None, or has no convolutions and hence no such map.
    """

    def heats(positions: Sequence[int]) -> list[str | None]:
        pixels = gallery.pixels(positions)
        to_input = card.to_input(torch.device("cpu"))
        try:
            maps = (
                heat_maps(model, to_input, InputPixels(pixels), predictions.predicted[list(positions)])
                if model
                else None
            )
        except UserError:
            maps = None
        if maps is None:
            return [None] * len(positions)
        return [thumbnail_uri(overlay(image, heat)) for image, heat in zip(pixels, maps, strict=True)]

    return heats


def _cell(pair: tuple[int, int], counts: NDArray[Any], shares: NDArray[Any], classes: Sequence[str]) -> Section:
    row, column = pair
    share = float(shares[pair])
    return {
        "key": f"{row}-{column}",
        "true": classes[row],
        "predicted": classes[column],
        "right": row == column,
        "count": int(counts[pair]),
        "share": share,
        # The square root keeps rare confusions visible.
        "level": max(1, round(LEVELS * share**0.5)),
    }


def _shot(predictions: Predictions, at: int, gallery: Gallery) -> Section:
    return {
        "id": predictions.ids[at],
        "uri": gallery.uris.get(at),
        "true": predictions.classes[predictions.labels[at]],
        "predicted": predictions.classes[predictions.predicted[at]],
        "confidence": float(predictions.probabilities[at].max()),
        "label_probability": float(predictions.probabilities[at, predictions.labels[at]]),
    }


def _most_probable(predictions: Predictions, at: int) -> list[tuple[str, float]]:
    """The three most probable classes."""
    row = predictions.probabilities[at]
    return [(predictions.classes[index], float(row[index])) for index in np.argsort(-row, kind="stable")[:3]]


def _caption(predictions: Predictions, at: int) -> str:
    return f"{predictions.ids[at]}: {100 * predictions.probabilities[at].max():.1f}% confident"
