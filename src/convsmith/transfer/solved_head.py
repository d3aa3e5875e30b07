"""The best linear head on features of a frozen backbone, solved instead of descended to: logistic regression.

Source: multinomial logistic regression with an L2 penalty (Hastie, Tibshirani and Friedman, The Elements of Statistical
Learning, 4.4), on standardised features; Kumar et al. 2022 (arXiv:2202.10054) start finetuning from such a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits
from torch import nn

from convsmith.nets.convnet import ScaledLinear

Floats = NDArray[np.floating[Any]]
STEPS = 200  # of L-BFGS at most; the objective is strictly convex, and a fraction of them suffices
WORTH_THREADS = 10_000_000  # values of features, below which threads of BLAS wait for each other: 20 times the time
TOLERANCE = 1e-6  # of the gradient's largest entry


class Head(NamedTuple):
    """Logits are ``features @ weight.T + bias``: weight float64 [K, F], bias float64 [K]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """`features` float [N, F] -> float64 [N, K]."""
        result: NDArray[np.float64] = features.astype(np.float64) @ self.weight.T + self.bias
        return result

    @torch.no_grad()
    def copy_to(self, module: nn.Linear) -> None:
        """Give a network's head the weights with which its outputs are these logits."""
        scale = module.scale if isinstance(module, ScaledLinear) else 1.0
        module.weight.copy_(torch.from_numpy(self.weight / scale))
        module.bias.copy_(torch.from_numpy(self.bias / scale))


def solve(
    features: Floats,
    labels: NDArray[np.int64],
    classes: int,
    penalties: Sequence[float],
    class_weights: Floats | None = None,
) -> list[Head]:
    """The head for each of `penalties`, which must fall: each solution is the start for the next.

    It minimises the mean cross-entropy plus ``penalty / 2`` times the sum of squared weights (not of biases), both of
    features that are standardised: less their mean, divided by their standard deviation. The head that is returned
    takes features as they are. `features` float [N, F], `labels` int64 [N] below `classes`, `class_weights` [K].
    """
    assert list(penalties) == sorted(penalties, reverse=True)
    threads = 1 if features.size < WORTH_THREADS else None
    with threadpool_limits(threads, user_api="blas"):
        return list(_path(features, labels, classes, penalties, class_weights))


def _path(
    features: Floats,
    labels: NDArray[np.int64],
    classes: int,
    penalties: Sequence[float],
    class_weights: Floats | None,
) -> Iterator[Head]:
    values = features.astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    std[std == 0] = 1.0
    values = (values - mean) / std
    rotation = None
    if len(values) < values.shape[1]:  # the penalty does not change under rotations, and there are at most N directions
        left, scales, rotation = np.linalg.svd(values, full_matrices=False)
        values = left * scales
    each = np.full(len(labels), 1.0) if class_weights is None else class_weights.astype(np.float64)[labels]
    each /= each.sum()
    targets = np.zeros((len(labels), classes))
    targets[np.arange(len(labels)), labels] = 1.0
    width = values.shape[1]

    def split(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return flat[: classes * width].reshape(classes, width), flat[classes * width :]

    def objective(flat: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        weight, bias = split(flat)
        logits = values @ weight.T + bias
        loss = -float(each @ (log_softmax(logits, axis=1) * targets).sum(axis=1))
        wrong = (softmax(logits, axis=1) - targets) * each[:, None]
        gradient = np.concatenate([(wrong.T @ values + penalty * weight).ravel(), wrong.sum(axis=0)])
        return loss + penalty / 2 * float((weight**2).sum()), gradient

    flat = np.zeros(classes * (width + 1))
    for penalty in penalties:
        options = {"maxiter": STEPS, "gtol": TOLERANCE, "maxcor": 20}
        flat = minimize(objective, flat, (penalty,), method="L-BFGS-B", jac=True, options=options).x
        weight, bias = split(flat)
        weight = (weight if rotation is None else weight @ rotation) / std
        yield Head(weight, bias - weight @ mean)
