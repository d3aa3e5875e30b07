"""Sections of a report that show images: confusion matrix, mistakes, doubtful labels, what the net saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convsmith.data.augment import Augment
from convsmith.data.batches import ToInput, epoch_order
from convsmith.errors import UserError
from convsmith.inference import memory_format
from convsmith.insight.gradcam import heat_maps, overlay
from convsmith.report.classes import confused_order
from convsmith.report.labels import likely_label_errors
from convsmith.report.material import Material, Predictions
from convsmith.report.pictures import Gallery, data_uri

TABLE_CLASSES = 40  # up to which the confusion matrix is a table; beyond, the most confused pairs are listed
MOST_PAIRS = 60
CELL_IMAGES = 600  # of all cells together
A_CELL = 6
LEVELS = 10  # of shading
MISTAKES = 12
DOUBTFUL = 18
SAMPLES = 24

Section = dict[str, Any]


def confusion(material: Material, gallery: Gallery) -> Section:
    """The matrix as rows of cells, and for each cell that has any the images that tell most about it.

    A wrong cell shows the mistakes made with most confidence, a right one the hits made with least.
    """
    predictions, classes = material.predictions, material.card.classes
    counts = np.asarray(material.evaluation["confusion_matrix"]["counts"], dtype=np.int64)
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
        chosen = telling(predictions, *pair, each)
        gallery.add(chosen)
        shots[f"{pair[0]}-{pair[1]}"] = [{"image": str(at), "text": _caption(predictions, at)} for at in chosen]
    empty = {"count": 0, "share": 0.0}
    return {
        "as_table": as_table,
        "classes": [classes[at] for at in order],
        "rows": [
            {"name": classes[row], "cells": [cells.get((row, column), empty) for column in map(int, order)]}
            for row in map(int, order)
        ]
        if as_table
        else [],
        "pairs": [cell for pair, cell in cells.items() if pair[0] != pair[1]],
        "shots": shots,
    }


def telling(predictions: Predictions, true: int, guessed: int, most: int) -> list[int]:
    """Positions of the images of one cell: the most confident mistakes, or the least confident hits."""
    inside = np.flatnonzero((predictions.labels == true) & (predictions.predicted == guessed))
    confidence = predictions.probabilities[inside, guessed]
    order = np.argsort(confidence if true == guessed else -confidence, kind="stable")
    return [int(at) for at in inside[order[:most]]]


def mistakes(material: Material, gallery: Gallery) -> list[Section]:
    """The mistakes with the highest loss, each with the heat map of the class that was predicted."""
    predictions = material.predictions
    wrong = np.flatnonzero(~predictions.right)
    worst = [int(at) for at in wrong[np.argsort(-predictions.losses[wrong], kind="stable")][:MISTAKES]]
    gallery.add(worst)
    heats = _heat_maps(material, gallery, worst)
    return [
        _shot(predictions, at, gallery)
        | {"heat": heat, "loss": float(predictions.losses[at]), "chances": _chances(predictions, at)}
        for at, heat in zip(worst, heats, strict=True)
    ]


def doubtful_labels(material: Material, gallery: Gallery) -> Section:
    """Likely label errors, or why there are none to show."""
    try:
        found = likely_label_errors(material.predictions)
    except UserError as error:
        return {"count": 0, "shots": [], "reason": str(error)}
    chosen = [int(at) for at in found[:DOUBTFUL]]
    gallery.add(chosen)
    return {"count": len(found), "shots": [_shot(material.predictions, at, gallery) for at in chosen], "reason": ""}


def samples(material: Material) -> list[Section]:
    """Train images augmented as in training, in the order of the first epoch: each as it was and as the net saw it."""
    dataset, config, card = material.dataset, material.config, material.card
    if dataset is None:
        return []
    train = dataset.train
    order = epoch_order(train.labels, config.train.seed, 0, config.data.sampling == "balanced")
    chosen = order[: min(SAMPLES, config.train.batch_size)]
    pixels = train.gather(chosen)
    to_input = ToInput(card.preprocessing, torch.device("cpu"))
    generator = torch.Generator().manual_seed(config.train.seed)
    labels = torch.from_numpy(train.labels[chosen])
    batch = Augment(config.augment, to_input)(torch.from_numpy(pixels), labels, generator)
    seen = (batch.images - to_input.shift) / to_input.scale  # normalisation undone: pixels in [0, 255]
    shown = seen.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    classes = card.classes
    result = []
    for at, label in enumerate(batch.labels.tolist()):
        words = classes[label]
        if batch.others is not None and batch.weight is not None:
            words = f"{100 * float(batch.weight):.0f}% {words} + {classes[int(batch.others[at])]}"
        before = f"{train.ids[chosen[at]]} ({classes[train.labels[chosen[at]]]})"
        result.append({"before": data_uri(pixels[at]), "after": data_uri(shown[at]), "text": words, "id": before})
    return result


def _heat_maps(material: Material, gallery: Gallery, positions: Sequence[int]) -> list[str | None]:
    """Grad-CAM laid over each image, as data URIs; None where the images or the model cannot be had."""
    if not positions or not gallery or material.model is None:
        return [None] * len(positions)
    pixels = gallery.pixels(positions)
    to_input = ToInput(material.card.preprocessing, torch.device("cpu"), memory_format(material.card.layout))
    try:
        maps = heat_maps(material.model, to_input, pixels, material.predictions.predicted[list(positions)])
    except UserError:  # a net without convolutions has no such map
        return [None] * len(positions)
    return [data_uri(overlay(image, heat)) for image, heat in zip(pixels, maps, strict=True)]


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
        # The square root keeps rare confusions in sight.
        "level": max(1, round(LEVELS * share**0.5)),
    }


def _shot(predictions: Predictions, at: int, gallery: Gallery) -> Section:
    return {
        "id": predictions.ids[at],
        "uri": gallery.uris.get(at),
        "true": predictions.classes[predictions.labels[at]],
        "predicted": predictions.classes[predictions.predicted[at]],
        "confidence": float(predictions.probabilities[at].max()),
        "chance": float(predictions.probabilities[at, predictions.labels[at]]),
    }


def _chances(predictions: Predictions, at: int) -> list[tuple[str, float]]:
    """The three most probable classes."""
    row = predictions.probabilities[at]
    return [(predictions.classes[index], float(row[index])) for index in np.argsort(-row, kind="stable")[:3]]


def _caption(predictions: Predictions, at: int) -> str:
    return f"{predictions.ids[at]}: {100 * predictions.probabilities[at].max():.1f}% sure"
