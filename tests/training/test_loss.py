from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from convsmith.config import flag_layer, validate
from convsmith.contracts import Batch
from convsmith.errors import UserError
from convsmith.training.config import TrainConfig
from convsmith.training.loss import balanced_weights, build_loss, class_weights

LOGITS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(12) % 4
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)


def batch(mixed: bool = False) -> Batch:
    if not mixed:
        return Batch(torch.zeros(12), LABELS)
    return Batch(torch.zeros(12), LABELS, LABELS.flip(0), 0.7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs(smoothing: float, weights: torch.Tensor | None) -> None:
    ours = build_loss(TrainConfig(), smoothing, weights)(LOGITS, batch())
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, weights, label_smoothing=smoothing))


def test_smoothed_loss_of_a_mixed_batch_is_that_of_its_probability_targets() -> None:
    targets = 0.7 * F.one_hot(LABELS, 4).double() + 0.3 * F.one_hot(LABELS.flip(0), 4).double()
    ours = build_loss(TrainConfig(), 0.1, None)(LOGITS, batch(mixed=True))
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, targets, label_smoothing=0.1))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_without_focus_is_cross_entropy(weights: torch.Tensor | None) -> None:
    ours = build_loss(TrainConfig(loss="focal", focal_gamma=0), 0, weights)(LOGITS, batch())
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, weights))


def test_focal_loss_of_two_classes_is_torchvisions_sigmoid_focal_loss() -> None:
    from torchvision.ops import sigmoid_focal_loss

    single = LOGITS[:, 0]
    two = torch.stack([torch.zeros_like(single), single], dim=1)
    labels = LABELS % 2
    ours = build_loss(TrainConfig(loss="focal", focal_gamma=2), 0, None)(two, Batch(torch.zeros(12), labels))
    torch.testing.assert_close(ours, sigmoid_focal_loss(single, labels.double(), alpha=-1, gamma=2, reduction="mean"))


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_gradients_in_float32_are_those_of_the_formula(gamma: float, weights: torch.Tensor | None) -> None:
    """Even where the right probability rounds to 1 in float32, so that (1 - p) ** (gamma - 1) is infinite.

    The oracle differentiates -(1 - p)^gamma log p by hand in float64: with q = 1 - p from the other classes alone,
    d/dz_k = -q^gamma ([k = y] - p_k) (1 - gamma p log(p) / q), whose limit at q = 0 is 0 for gamma > 0.
    """
    leads = torch.tensor([-300.0, -20.0, 0.0, 5.0, 15.0, 18.0, 30.0, 80.0, 300.0], dtype=torch.float64)
    labels = torch.arange(len(leads)) % 4
    logits = torch.randn(len(leads), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits[torch.arange(len(leads)), labels] = logits.max(1).values + leads
    right = F.one_hot(labels, 4).double()
    p_k = logits.softmax(1)
    q = (p_k * (1 - right)).sum(1)
    p = (p_k * right).sum(1)
    log_p = torch.where(q < 0.5, torch.log1p(-q), F.log_softmax(logits, 1)[right.bool()])
    ratio = torch.where(q > 0, log_p / q.clamp_min(1e-300), -1.0)
    error = torch.where(right.bool(), q[:, None], -p_k)  # [k = y] - p_k without cancellation
    expected = -(q**gamma)[:, None] * error * (1 - gamma * p * ratio)[:, None]
    share = torch.ones_like(leads) if weights is None else weights[labels]
    expected *= (share / share.sum())[:, None]

    ours = logits.float().requires_grad_()
    config = TrainConfig(loss="focal", focal_gamma=gamma)
    batch = Batch(torch.zeros(len(leads)), labels)
    loss = build_loss(config, 0, None if weights is None else weights.float())(ours, batch)
    loss.backward()
    assert loss.item() == pytest.approx(-(share * q**gamma * log_p).sum().item() / share.sum().item(), rel=1e-5)
    torch.testing.assert_close(ours.grad, expected.float(), rtol=1e-4, atol=1e-7)


def test_weights_may_be_given_by_the_names_of_classes() -> None:
    config = validate(flag_layer({"train.class_weights": "{dog: 2, 7: 0.5}"})).train
    weights = class_weights(config.class_weights, np.array([0]), ("7", "cat", "dog"))
    assert weights is not None
    assert weights.tolist() == [0.5, 1, 2]
    assert class_weights("none", np.array([0]), ("a",)) is None
    with pytest.raises(UserError, match=r"class 'dig' does not exist\. Did you mean 'dog'\? Choices: cat, dog"):
        class_weights({"dig": 2.0}, np.array([0]), ("cat", "dog"))
    for wrong in ("balance", "{}", "{cat: 0}", "{cat: two}", "{cat: true}"):
        with pytest.raises(UserError, match=r"train.class_weights: must be none, balanced or numbers above 0 by class"):
            validate(flag_layer({"train.class_weights": wrong}))


def test_balanced_weights_are_scikit_learns_and_zero_for_an_absent_class() -> None:
    labels = np.repeat([0, 1, 3], [5, 3, 8])
    weights = balanced_weights(labels, 4).numpy()
    np.testing.assert_allclose(weights[2], 0)
    present = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(weights[[0, 1, 3]] * 4 / 3, present, rtol=1e-6)
