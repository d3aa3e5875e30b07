"""The data loss: cross-entropy or focal loss, with smoothing, class weights and mixed labels, without penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convsmith.contracts import Batch, Share
from convsmith.errors import choose
from convsmith.training.config import TrainConfig

Loss = Callable[[Tensor, Batch], Tensor]


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """n / (classes x count) for each class, like scikit-learn's `balanced`; 0 for empty classes. float32 [K]."""
    counts = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), classes * counts, out=np.zeros(classes), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


def class_weights(setting: str | Mapping[str, float], labels: np.ndarray, classes: Sequence[str]) -> Tensor | None:
    """The weights of `train.class_weights`, float32 [K]; None for none. UserError for a class that does not exist."""
    if setting == "none":
        return None
    if isinstance(setting, str):
        return balanced_weights(labels, len(classes))
    if unknown := [name for name in setting if name not in classes]:
        raise choose("train.class_weights: class", unknown[0], classes)
    return torch.tensor([setting.get(name, 1.0) for name in classes], dtype=torch.float32)


def share_of(labels: np.ndarray, whole: np.ndarray, weights: Tensor | None) -> Share:
    """The share of a batch with `labels` in a batch with the labels `whole`: of its images, or of their class weights.

    The loss is a mean weighted by those; so the losses of all parts times their shares add up to that of the whole.
    """
    if weights is None:
        return Share(len(labels) / len(whole), len(whole))
    by_class = weights.double().numpy()
    return Share(float(by_class[labels].sum() / by_class[whole].sum()), len(whole))


def focal(logits: Tensor, labels: Tensor, gamma: float, weights: Tensor | None) -> Tensor:
    """The mean of -w (1 - p)^gamma log p over the batch (Lin et al. 2017), weighted like torch's cross-entropy.

    log (1 - p) is computed from the logits of the other classes, since p may be rounded to 1, where the derivative of
    (1 - p)^gamma is infinite for gamma < 1, although that of the loss approaches 0.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    log_rest = others.logsumexp(1) - logits.logsumexp(1)
    losses = -(gamma * log_rest).exp() * log_p
    if weights is None:
        return losses.mean()
    weight = weights[labels]
    return (weight * losses).sum() / weight.sum()


def build_loss(config: TrainConfig, label_smoothing: float, weights: Tensor | None) -> Loss:
    """A loss function of logits [B, K] and a Batch; for mixed batches, the weighted mean of both labels' losses."""

    def single(logits: Tensor, labels: Tensor) -> Tensor:
        if config.loss == "focal":
            return focal(logits, labels, config.focal_gamma, weights)
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        if batch.others is None or batch.weight is None:
            return single(logits, batch.labels)
        return batch.weight * single(logits, batch.labels) + (1 - batch.weight) * single(logits, batch.others)

    return loss
