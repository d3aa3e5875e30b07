"""Occlusion, a second opinion on heat maps; deletion and insertion, which score them against random maps.

All work with the probability of a class and use the input's mean (zero after normalisation) as the empty baseline. An
interval decides whether the maps of several images are better than random ones. Nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.contracts import Size, hw
from convsmith.explain.gradcam import enlarge, evaluating

BATCH = 256  # images of 64 x 64 pixels at a time, and proportionally fewer of larger ones
STEPS = 16  # equal steps in which deletion and insertion replace the pixels
RANDOM_ORDERS = 4  # random maps per image, whose mean is the baseline
FEWEST = 5  # images needed for an interval over them
DIGITS = 3  # decimal places in which differences are shown, and on which the verdict is based

Verdict = Literal["better", "worse", "no difference shown", "too few images"]
Curve = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def occlusion_window(size: Size) -> tuple[int, int]:
    """Side and stride in pixels of the occluding square: a quarter and an eighth of the image's shorter side."""
    side = min(hw(size))
    return max(1, round(side / 4)), max(1, round(side / 8))


def occlusion(model: nn.Module, images: Tensor, classes: Tensor, window: int, stride: int) -> Tensor:
    """The drop in the probability of each image's class when a square is covered: float [N, H, W].

    `images` float [N, C, H, W], `classes` int64 [N]. The square of `window` pixels moves by `stride`; the last squares
    may extend over the edge. A pixel's value is the mean over the squares that cover it, negative where covering helps.

    Source: M. D. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014), section 4.2.
    """
    size = images.shape[-2:]
    tops, lefts = ([n * stride for n in range(math.ceil((side - window) / stride) + 1)] for side in size)
    mask = torch.zeros(len(tops) * len(lefts), *size, dtype=torch.bool, device=images.device)
    for number, (top, left) in enumerate(product(tops, lefts)):
        mask[number, top : top + window, left : left + window] = True
    before = class_probability(model, images, classes)
    found = []
    for image, label, whole in zip(images, classes, before, strict=True):
        # One image with all its squares forms one batch.
        covered = image * ~mask[:, None]
        drops = whole - class_probability(model, covered, label.expand(len(mask)))
        found.append((drops[:, None, None] * mask).sum(dim=0) / mask.sum(dim=0))
    return torch.stack(found)


def deletion(model: nn.Module, images: Tensor, classes: Tensor, heat: Tensor, steps: int = STEPS) -> Tensor:
    """The probability of the class as the hottest pixels are removed first: float [N, steps + 1], from all to none.

    `images` float [N, C, H, W], `classes` int64 [N], `heat` float [N, H, W]. With a good map it falls early: the
    smaller the area under the curve, the better.

    Source of deletion and insertion: V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation
    of Black-box Models" (BMVC 2018, arXiv:1806.07421), section 4.3.
    """
    return _exchange(model, images, torch.zeros_like(images), classes, heat, steps)


def insertion(model: nn.Module, images: Tensor, classes: Tensor, heat: Tensor, steps: int = STEPS) -> Tensor:
    """The same as a blurred image is restored, the hottest pixels first: the larger the area, the better."""
    return _exchange(model, blurred(images), images, classes, heat, steps)


def blurred(images: Tensor) -> Tensor:
    """`images` float [N, C, H, W] blurred by a Gaussian of an eighth of their shorter side: shapes disappear and
    colours remain.
    """
    from torchvision.transforms.functional import gaussian_blur

    side = min(images.shape[-2:])
    sigma = side / 8
    # The padding reflects the image once, so the window must not reach further than its side.
    reach = min(math.ceil(2 * sigma), side - 1)
    result: Tensor = gaussian_blur(images, [2 * reach + 1, 2 * reach + 1], [sigma, sigma])
    return result


@dataclass(frozen=True)
class Score:
    """A way to score heat maps: the function for its curves, and whether a larger area under them is better."""

    curve: Curve
    higher_is_better: bool


SCORES = {"deletion": Score(deletion, False), "insertion": Score(insertion, True)}


def area_under_curve(curves: NDArray[Any]) -> NDArray[np.float64]:
    """Area under each curve [..., steps + 1] over the share of replaced pixels, by trapezoids: [...], in [0, 1]."""
    from scipy.integrate import trapezoid

    area: NDArray[np.float64] = trapezoid(curves.astype(np.float64), dx=1 / (curves.shape[-1] - 1))
    return area


def random_orders(
    curve: Curve, model: nn.Module, images: Tensor, classes: Tensor, size: Sequence[int], generator: torch.Generator
) -> Tensor:
    """The baseline of a score: its mean curve over random maps drawn with `generator`, [N, STEPS + 1].

    The random maps are as coarse as the one that is scored: of `size`, enlarged in the same way. Maps of
    single pixels would not be comparable: scattered pixels disturb a net more than a patch of the same area.
    """
    curves = []
    for _ in range(RANDOM_ORDERS):
        noise = torch.rand(len(images), *size, generator=generator)
        curves.append(curve(model, images, classes, enlarge(noise, images.shape[-2:]).to(images.device)))
    return torch.stack(curves).mean(dim=0)


@dataclass(frozen=True, eq=False)
class Judged:
    """One score of a heat map: its curve for the map, and its mean curve for random maps, each float [STEPS + 1]."""

    curve: NDArray[np.float32]
    random: NDArray[np.float32]

    @property
    def areas(self) -> tuple[float, float]:
        """The areas under the two curves."""
        return float(area_under_curve(self.curve)), float(area_under_curve(self.random))


@dataclass(frozen=True)
class Comparison:
    """A score of heat maps against random maps over `n` images.

    `mean` and `random` are mean areas under the curve; `difference` is that of the maps minus that of random ones, with
    its 95% interval where there are at least `FEWEST` images.
    """

    score: str
    n: int
    mean: float
    random: float
    difference: float
    ci95: tuple[float, float] | None
    verdict: Verdict


def compare_with_random(score: str, areas: Sequence[tuple[float, float]]) -> Comparison:
    """Compare the areas (of the map, of random maps) of each image, by Student's t over the images' differences.

    Each image has its own random maps, so the spread of the differences includes that of the random maps. The maps are
    called better or worse only if the interval as shown, rounded to `DIGITS` decimal places, excludes zero.
    """
    from scipy.stats import ttest_1samp

    ours, random = np.array(areas, dtype=np.float64).T
    differences = ours - random
    mean = float(differences.mean())
    ci95: tuple[float, float] | None = None
    verdict: Verdict = "too few images"
    if len(areas) >= FEWEST:
        # Without any spread the interval is the mean itself, for which scipy returns NaN.
        spread = float(differences.std()) > 1e-12
        low, high = ttest_1samp(differences, 0).confidence_interval(0.95) if spread else (mean, mean)
        ci95 = float(low), float(high)
        gains = sorted(round(end, DIGITS) * (1 if SCORES[score].higher_is_better else -1) for end in ci95)
        verdict = "better" if gains[0] > 0 else "worse" if gains[1] < 0 else "no difference shown"
    return Comparison(score, len(areas), float(ours.mean()), float(random.mean()), mean, ci95, verdict)


def class_probability(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """The softmax probability of one class per image: float [N] for `images` [N, C, H, W] and `classes` int64 [N]."""
    batch = max(1, BATCH * 64**2 // max(images.shape[-1], 64) ** 2)
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    with torch.no_grad(), evaluating(model):
        logits = torch.cat([model(part.contiguous(memory_format=layout)) for part in images.split(batch)])
    return logits.softmax(dim=1).gather(1, classes[:, None])[:, 0]


def _exchange(model: nn.Module, source: Tensor, target: Tensor, classes: Tensor, heat: Tensor, steps: int) -> Tensor:
    """The probabilities as the pixels of `source` become those of `target` in equal steps, the hottest first."""
    rank = _ranks(heat)
    count = rank.shape[-1] * rank.shape[-2]
    curve = []
    for step in range(steps + 1):
        moved = (rank < round(count * step / steps))[:, None]
        curve.append(class_probability(model, torch.where(moved, target, source), classes))
    return torch.stack(curve, dim=1)


def _ranks(heat: Tensor) -> Tensor:
    """The rank of each pixel, the hottest being 0, int64 [N, H, W]; ties are broken in a fixed random order."""
    flat = heat.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(heat.device)
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(flat.shape[1], device=heat.device).expand_as(order))
    return rank.view_as(heat)
