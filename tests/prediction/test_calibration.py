import numpy as np
import pytest
import torch

from convsmith.prediction.calibration import (
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    log_softmax,
    reliability,
)


@pytest.mark.parametrize("seed", range(3))
def test_ece_is_that_of_torchmetrics(seed):
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(seed)
    chances = rng.dirichlet([0.5] * 4, size=300)
    labels = rng.integers(0, 4, 300)
    expected = multiclass_calibration_error(
        torch.from_numpy(chances), torch.from_numpy(labels), num_classes=4, n_bins=15, norm="l1"
    )
    found = expected_calibration_error(chances.max(1), chances.argmax(1) == labels)
    assert found == pytest.approx(expected.item(), abs=1e-6)


def test_a_bin_holds_its_upper_edge_and_not_its_lower():
    found = reliability([0.0, 0.5, 0.500001, 1.0], [0, 1, 0, 1], bins=2)
    assert found.count.tolist() == [2, 2]
    assert found.accuracy.tolist() == [0.5, 0.5]


def test_an_empty_bin_has_no_mean_and_no_weight():
    found = reliability([0.9, 0.9], [1, 0], bins=10)
    assert np.isnan(found.accuracy[0])
    assert found.error == pytest.approx(0.4)


def test_sure_and_right_has_no_error():
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0


def test_sure_and_wrong_has_all_of_it():
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1


def test_log_softmax_is_that_of_torch():
    logits = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32) * 50
    expected = torch.from_numpy(logits).double().log_softmax(1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-13, atol=1e-13)


@pytest.fixture(scope="module")
def overconfident():
    """Logits three times what the labels, drawn from the softmax of the true ones, bear out."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 4)) * 1.5
    labels = np.array([rng.choice(4, p=chances) for chances in np.exp(log_softmax(true))])
    return 3 * true, labels


def test_temperature_undoes_overconfidence(overconfident):
    logits, labels = overconfident
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3, rel=0.08)

    def error(scale):
        chances = np.exp(log_softmax(logits / scale))
        return expected_calibration_error(chances.max(1), chances.argmax(1) == labels)

    assert error(temperature) < 0.03 < 0.15 < error(1)


def test_temperature_is_where_torch_finds_the_slope_of_the_loss_to_be_zero(overconfident):
    logits, labels = (torch.from_numpy(part) for part in overconfident)
    temperature = torch.tensor(fit_temperature(*overconfident), dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits / temperature, labels).backward()
    assert abs(temperature.grad.item()) < 1e-6


def test_temperature_of_a_net_that_is_always_right_stays_within_bounds():
    temperature = fit_temperature(np.eye(3) * 5, np.arange(3))
    assert TEMPERATURES[0] <= temperature < 0.2
