"""The images to explain, and the explanation of each: Grad-CAM, occlusion, and the scores of the Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsmith.contracts import hw
from convsmith.data.decode import DecodeError
from convsmith.data.preprocess import InputPixels
from convsmith.errors import UserError, choose
from convsmith.events import Counted, Listener, nobody
from convsmith.explain.attribution import SCORES, Judged, occlusion, occlusion_window, random_orders
from convsmith.explain.context import ExplainContext
from convsmith.explain.gradcam import enlarge, grad_cam, stages_of
from convsmith.prediction.metrics import probabilities

MOST_INFORMATIVE = 4  # mistakes, and as many correct predictions, where no image was given
MOST = 24  # images in one call
TOGETHER = 8  # images processed at a time


@dataclass(frozen=True, eq=False)
class Example:
    """An image as the net takes it, float [C, H, W], and as pixels uint8 [H, W, C]; the class to explain is `target`.

    `probability` is that of the target. `label` is None where the truth is not known; `why` says how it was chosen.
    """

    id: str
    image: Tensor
    pixels: NDArray[np.uint8]
    target: int
    predicted: int
    probability: float
    label: int | None
    why: str


@dataclass(frozen=True, eq=False)
class Explained:
    """`heat` (Grad-CAM, in [0, 1]) and `covered` (occlusion, negative where covering helps) are float [H, W].

    `scores` compare the Grad-CAM with random maps, by name: deletion and insertion.
    """

    example: Example
    heat: NDArray[np.float32]
    covered: NDArray[np.float32]
    scores: dict[str, Judged]


def class_index(context: ExplainContext, name: str | None) -> int | None:
    if name is not None and name not in context.classes:
        raise choose("class", name, context.classes)
    return None if name is None else context.classes.index(name)


def examples_of_images(
    context: ExplainContext, images: Sequence[Any], target: int | None
) -> tuple[list[Example], list[tuple[str, str]]]:
    """Images in any form that a predictor takes, each explained for its predicted class or for `target`.

    The second value lists the images that do not decode, with the reasons; UserError where none does.
    """
    ids: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    broken: list[tuple[str, str]] = []
    for number, (image, found) in enumerate(zip(images, context.predictor.decoded(images), strict=True), start=1):
        name = str(image) if isinstance(image, str | Path) else f"image {number}"
        if isinstance(found, DecodeError):
            broken.append((name, str(found)))
        else:
            pixels.append(found.array)
            ids.append(name)
    if not ids:
        raise UserError(f"no image could be read: {'; '.join(f'{name}: {reason}' for name, reason in broken[:10])}")
    inputs = context.inputs(InputPixels(np.concatenate(pixels)))
    with torch.no_grad():
        likely = probabilities(context.model(inputs).float().cpu().numpy())
    return _examples(context, ids, inputs, likely, target, [None] * len(ids), [""] * len(ids)), broken


def most_informative_examples(context: ExplainContext, target: int | None) -> list[Example]:
    """The validation images with the worst mistakes, and as many with the most confident correct predictions.

    A mistake is worse the lower the probability of the true class is. The correct predictions cover as many classes as
    possible. With `target`, only images of this class or predicted as it are considered.
    """
    found, labels = probabilities(context.val_logits), context.val.labels
    wrong, right = most_informative(found, labels, target)
    chosen = np.array([*wrong, *right], dtype=np.int64)
    if not len(chosen):
        assert target is not None
        name = context.classes[target]
        raise UserError(f"no validation image is of class '{name}' or predicted as it: give PATHs of images to explain")
    why = ["one of the worst mistakes"] * len(wrong) + ["one of the most confident correct predictions"] * len(right)
    ids = [context.val.ids[at] for at in chosen]
    known: list[int | None] = [int(label) for label in labels[chosen]]
    inputs = context.inputs(context.val.inputs(chosen))
    return _examples(context, ids, inputs, found[chosen], target, known, why)


def most_informative(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], target: int | None, count: int = MOST_INFORMATIVE
) -> tuple[list[int], list[int]]:
    """Positions of the `count` mistakes with the lowest probability of the true class, and of as many true positives.

    `probabilities` [N, K], `labels` [N]. The true positives are the most confident ones and cover as many classes as
    possible. With `target`, only images of that class or predicted as it are considered.
    """
    predicted = probabilities.argmax(axis=1)
    concerned = np.ones(len(labels), bool) if target is None else (labels == target) | (predicted == target)
    true = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(true, kind="stable")
    wrong = [int(at) for at in order if concerned[at] and predicted[at] != labels[at]][:count]
    right = [int(at) for at in order[::-1] if concerned[at] and predicted[at] == labels[at]]
    firsts = {int(labels[at]): at for at in reversed(right)}.values()  # the most confident one of each class
    spread = [*sorted(firsts, key=right.index), *(at for at in right if at not in set(firsts))]
    return wrong, spread[:count]


def explain_examples(
    context: ExplainContext, examples: Sequence[Example], stage: str, listener: Listener = nobody
) -> list[Explained]:
    """Explain each example at `stage`."""
    window, stride = occlusion_window(context.image_size)
    model = context.model
    generators = {name: torch.Generator().manual_seed(0) for name in SCORES}
    found: list[Explained] = []
    for start in range(0, len(examples), TOGETHER):
        part = examples[start : start + TOGETHER]
        images = torch.stack([example.image for example in part])
        targets = torch.tensor([example.target for example in part], device=images.device)
        maps = grad_cam(model, stages_of(model)[stage], images, targets).float()
        heat = enlarge(maps, hw(context.image_size))
        covered = occlusion(model, images, targets, window, stride)
        curves = {}
        for name, score in SCORES.items():
            ours = score.curve(model, images, targets, heat)
            # Each image has its own random maps, so that the images are independent.
            random = random_orders(score.curve, model, images, targets, maps.shape[-2:], generators[name])
            curves[name] = (ours.cpu().numpy(), random.cpu().numpy())
        for at, example in enumerate(part):
            scores = {name: Judged(ours[at], random[at]) for name, (ours, random) in curves.items()}
            found.append(Explained(example, heat[at].cpu().numpy(), covered[at].cpu().numpy(), scores))
        listener(Counted("explaining", len(found), len(examples)))
    return found


def _examples(
    context: ExplainContext,
    ids: Sequence[str],
    images: Tensor,
    probabilities: NDArray[np.float32],
    target: int | None,
    labels: Sequence[int | None],
    why: Sequence[str],
) -> list[Example]:
    pixels = context.seen(images)
    examples = []
    for at, name in enumerate(ids):
        predicted = int(probabilities[at].argmax())
        explained = predicted if target is None else target
        probability = float(probabilities[at, explained])
        examples.append(Example(name, images[at], pixels[at], explained, predicted, probability, labels[at], why[at]))
    return examples
