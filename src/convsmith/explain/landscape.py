"""The loss around a solution, and on the plane of the optimiser's path to it, as numbers. `figures.surfaces` draws it.

Source: H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, "Visualizing the Loss Landscape of Neural Nets"
(NeurIPS 2018, arXiv:1712.09913): filter-normalised directions in section 4, paths by PCA in section 7.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from convsmith.figures.surfaces import PathPoint, Surface

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], float]

POINTS = 15  # values along each axis of a plane
MARGIN = 0.3  # of its extent, around the path
LARGEST = 1e3  # times the lowest loss: larger values and NaN are replaced by this


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters by name, without buffers."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def by_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch norms use the statistics of the batch, as in training, while dropout is off."""
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return twin


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Loss:
    """A function from weights to the mean cross-entropy (nats) on `images` [N, C, H, W] with `labels` int64 [N].

    Batch norm uses the statistics of these images, since the averages from training fit only one point. Dropout is off.
    The model is not changed.
    """
    twin = by_batch_statistics(model)

    def loss(weights: Weights) -> float:
        with torch.no_grad():
            logits = functional_call(twin, dict(weights), (images,))
            return float(nn.functional.cross_entropy(logits, labels))

    return loss


def random_direction(weights: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """A Gaussian direction in which each filter (or neuron) has the norm of the weights' filter: d_i ||w_i|| / ||d_i||.

    Biases and norms do not move (their direction is zero), as in the paper.
    """
    direction = {}
    for name, value in weights.items():
        if value.ndim < 2:
            direction[name] = torch.zeros_like(value)
            continue
        drawn = torch.randn(value.shape, generator=generator).to(value.device)
        over = tuple(range(1, value.ndim))
        direction[name] = drawn * _norm(value, over) / _norm(drawn, over).clamp_min(1e-12)
    return direction


def around(weights: Weights, loss: Loss, seed: int = 0, tick: Callable[[], None] = lambda: None) -> Surface:
    """The loss over one filter norm either way of `weights`, along two random filter-normalised directions."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (random_direction(weights, generator) for _ in range(2))
    at = np.linspace(-1, 1, POINTS)
    values = _grid(weights, loss, first, second, at, at, tick)
    unit = "filter norms along a random direction"
    return Surface(
        "Around the solution, random directions", unit, unit, at, at, values, (PathPoint("the model", 0, 0, True),)
    )


def along(
    points: Mapping[str, Weights], solution: str, loss: Loss, seed: int = 0, tick: Callable[[], None] = lambda: None
) -> Surface:
    """The loss on the plane of the optimiser's path: `points` by name, in order, at least two; `solution` names one.

    The plane goes through the solution, along the two principal components of the points' differences from it. Where
    the points lie on a line, the second axis is a random filter-normalised direction perpendicular to it.
    """
    names, origin = list(points), points[solution]
    assert len(names) > 1, "one point is no path"
    differences = torch.stack([_flat(point) - _flat(origin) for point in points.values()])
    _, spread, components = torch.linalg.svd(differences, full_matrices=False)
    # The start is to the left of the end.
    first = components[0] if (differences[-1] - differences[0]) @ components[0] > 0 else -components[0]
    if spread[1] > 1e-4 * spread[0]:
        second = components[1]
    else:
        second = _flat(random_direction(origin, torch.Generator().manual_seed(seed)))
        second = second - (second @ first) * first
        second = second / second.norm()
    positions = torch.stack([differences @ first, differences @ second], dim=1).cpu().numpy().astype(np.float64)
    half = (0.5 + MARGIN) * float(np.ptp(positions, axis=0).max() or 1.0)
    centre = (positions.max(axis=0) + positions.min(axis=0)) / 2
    xs, ys = (np.linspace(middle - half, middle + half, POINTS) for middle in centre)
    values = _grid(origin, loss, _shaped(first, origin), _shaped(second, origin), xs, ys, tick)
    path = tuple(
        PathPoint(name, float(x), float(y), name == solution) for name, (x, y) in zip(names, positions, strict=True)
    )
    shares = spread.square() / spread.square().sum().clamp_min(1e-30)
    x_label, y_label = (f"distance in weight space ({float(share):.0%} of the path's)" for share in shares[:2])
    return Surface("On the plane of the optimiser's path (PCA)", x_label, y_label, xs, ys, values, path)


def _grid(
    centre: Weights,
    loss: Loss,
    first: Weights,
    second: Weights,
    xs: NDArray[np.float64],
    ys: NDArray[np.float64],
    tick: Callable[[], None],
) -> NDArray[np.float64]:
    values = np.empty((len(ys), len(xs)))
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            moved = {name: value + x * first[name] + y * second[name] for name, value in centre.items()}
            values[row, column] = loss(moved)
            tick()
    finite = values[np.isfinite(values)]
    top = LARGEST * max(float(finite.min()), 1e-6) if len(finite) else 1.0
    return np.nan_to_num(values, nan=top, posinf=top).clip(max=top)


def _norm(value: Tensor, over: tuple[int, ...]) -> Tensor:
    return value.square().sum(dim=over, keepdim=True).sqrt()


def _flat(weights: Weights) -> Tensor:
    return torch.cat([value.flatten() for value in weights.values()])


def _shaped(flat: Tensor, like: Weights) -> dict[str, Tensor]:
    parts = flat.split([value.numel() for value in like.values()])
    return {name: part.view(value.shape) for part, (name, value) in zip(parts, like.items(), strict=True)}
