"""Which images to explain, and all that is said of each: Grad-CAM, occlusion, and what the Grad-CAM is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsmith.errors import UserError, choose
from convsmith.explain.attribution import area, deletion, insertion, occlusion, occlusion_window, random_orders
from convsmith.explain.context import Subject
from convsmith.explain.gradcam import enlarge, grad_cam, stage_with_maps, stages_of
from convsmith.prediction.metrics import probabilities

TELLING = 4  # worst mistakes, and as many best hits, where no image was asked for
MOST = 24  # images of one command
TOGETHER = 8  # images at a time


@dataclass(frozen=True, eq=False)
class Case:
    """An image uint8 [S, S, C] and the class that it is asked about; `why` it was chosen, if it was."""

    id: str
    pixels: NDArray[np.uint8]
    target: int
    predicted: int
    probability: float
    label: int | None
    why: str


@dataclass(frozen=True, eq=False)
class Explained:
    """`heat` (Grad-CAM) and `covered` (occlusion, negative where covering helps) are float [S, S].

    `deletion` and `insertion` are curves [steps + 1] of the map, and by chance.
    """

    case: Case
    heat: NDArray[np.float32]
    covered: NDArray[np.float32]
    deletion: tuple[Tensor, Tensor]
    insertion: tuple[Tensor, Tensor]

    def areas(self, curves: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """The areas under the curve of the map and under that of chance."""
        ours, chance = area(torch.stack(curves)).tolist()
        return ours, chance


def class_index(subject: Subject, name: str | None) -> int | None:
    if name is not None and name not in subject.classes:
        raise choose("class", name, subject.classes)
    return None if name is None else subject.classes.index(name)


def cases_of_files(subject: Subject, files: Sequence[Path], target: int | None) -> list[Case]:
    """Files that decode, each asked about its predicted class or about `target`."""
    pixels = np.concatenate([subject.predictor.pixels(file).array for file in files])
    with torch.no_grad():
        chances = probabilities(subject.model(subject.inputs(pixels)).float().cpu().numpy())
    return _cases([str(file) for file in files], subject.seen(pixels), chances, target, [None] * len(files), None)


def telling_cases(subject: Subject, target: int | None) -> list[Case]:
    """Of the validation images the worst mistakes, and the best hits, each of another class as far as there are.

    With `target`, of the images that are of this class or are taken for it.
    """
    chances, labels = probabilities(subject.val_logits), subject.val.labels
    worst, best = telling(chances, labels, target)
    chosen = np.array([*worst, *best], dtype=np.int64)
    if not len(chosen):
        assert target is not None
        raise UserError(f"no validation image is of class '{subject.classes[target]}' or taken for it: give PATHs")
    why = ["a worst mistake"] * len(worst) + ["a best hit"] * len(best)
    ids = [subject.val.ids[at] for at in chosen]
    known: list[int | None] = [int(label) for label in labels[chosen]]
    return _cases(ids, subject.seen(subject.val.gather(chosen)), chances[chosen], target, known, why)


def telling(
    chances: NDArray[np.float32], labels: NDArray[np.int64], target: int | None, count: int = TELLING
) -> tuple[list[int], list[int]]:
    """Positions of the `count` surest mistakes (of the least probable truth) and of as many surest hits.

    `chances` [N, K]. The hits are of as many classes as there are; `target` keeps to images of that class, or taken
    for it.
    """
    predicted = chances.argmax(axis=1)
    concerned = np.ones(len(labels), bool) if target is None else (labels == target) | (predicted == target)
    true = chances[np.arange(len(labels)), labels]
    order = np.argsort(true, kind="stable")
    worst = [int(at) for at in order if concerned[at] and predicted[at] != labels[at]][:count]
    hits = [int(at) for at in order[::-1] if concerned[at] and predicted[at] == labels[at]]
    firsts = {int(labels[at]): at for at in reversed(hits)}.values()  # the surest hit of each class
    spread = [*sorted(firsts, key=hits.index), *(at for at in hits if at not in set(firsts))]
    return worst, spread[:count]


def stage_of(subject: Subject, name: str | None) -> str:
    """The stage called `name`, or the last one with feature maps; UserError as `stage_with_maps` has it."""
    preprocessing = subject.predictor.card.preprocessing
    blank = torch.zeros(1, preprocessing.channels, preprocessing.image_size, preprocessing.image_size)
    return stage_with_maps(subject.model, blank.to(subject.predictor.device), name)


def explain(
    subject: Subject, cases: Sequence[Case], stage: str, progress: Callable[[int, int], None]
) -> list[Explained]:
    """Explain each case at `stage`."""
    preprocessing, device = subject.predictor.card.preprocessing, subject.predictor.device
    window, stride = occlusion_window(preprocessing.image_size)
    found: list[Explained] = []
    for start in range(0, len(cases), TOGETHER):
        part = cases[start : start + TOGETHER]
        images = subject.inputs(np.stack([case.pixels for case in part]))
        targets = torch.tensor([case.target for case in part], device=device)
        maps = grad_cam(subject.model, stages_of(subject.model)[stage], images, targets).float()
        heat = enlarge(maps, preprocessing.image_size)
        covered = occlusion(subject.model, images, targets, window, stride)
        curves = []
        for score in (deletion, insertion):
            ours = score(subject.model, images, targets, heat).cpu()
            chance = random_orders(score, subject.model, images, targets, maps.shape[-1]).cpu()
            curves.append(list(zip(ours, chance, strict=True)))
        rows = zip(part, heat.cpu().numpy(), covered.cpu().numpy(), *curves, strict=True)
        found += [Explained(*row) for row in rows]
        progress(len(found), len(cases))
    return found


def _cases(
    ids: Sequence[str],
    pixels: NDArray[np.uint8],
    chances: NDArray[np.float32],
    target: int | None,
    labels: Sequence[int | None],
    why: Sequence[str] | None,
) -> list[Case]:
    cases = []
    for place, name in enumerate(ids):
        predicted = int(chances[place].argmax())
        asked = predicted if target is None else target
        reason = why[place] if why else ""
        cases.append(Case(name, pixels[place], asked, predicted, float(chances[place, asked]), labels[place], reason))
    return cases
