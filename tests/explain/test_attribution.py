"""Occlusion and the scores of heat maps against loops, and on nets whose answer is known."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from convsmith.explain.attribution import (
    FEWEST,
    SCORES,
    area_under_curve,
    blurred,
    class_probability,
    compare_with_random,
    deletion,
    insertion,
    occlusion,
    occlusion_window,
    random_orders,
)

SIZE = 12


class Quarter(nn.Module):
    """Says class 1 the surer the brighter the upper left quarter is, whatever else there is."""

    def forward(self, images):
        bright = images[:, 0, : SIZE // 2, : SIZE // 2].mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(bright), 6 * bright - 3], dim=1)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()


IMAGES = torch.ones(2, 1, SIZE, SIZE)
LABELS = torch.tensor([1, 1])
TRUTH = torch.zeros(2, SIZE, SIZE)
TRUTH[:, : SIZE // 2, : SIZE // 2] = 1


@pytest.mark.parametrize(("window", "stride"), [(3, 3), (4, 2), (5, 3), (12, 1)])
@torch.no_grad()
def test_occlusion_is_the_mean_drop_over_the_squares_that_cover_a_pixel(window, stride):
    model, images, labels = small_net(), torch.randn(2, 1, SIZE, SIZE), torch.tensor([0, 2])
    found = occlusion(model, images, labels, window, stride)
    for image, label, values in zip(images, labels, found, strict=True):
        whole = model(image[None]).softmax(1)[0, label]
        drops = [[[] for _ in range(SIZE)] for _ in range(SIZE)]
        for top in range(0, SIZE, stride):
            for left in range(0, SIZE, stride):
                if top - stride + window >= SIZE or left - stride + window >= SIZE:
                    continue  # the square before reached the edge
                covered = image.clone()
                covered[:, top : top + window, left : left + window] = 0
                drop = float(whole - model(covered[None]).softmax(1)[0, label])
                for row in range(top, min(top + window, SIZE)):
                    for column in range(left, min(left + window, SIZE)):
                        drops[row][column].append(drop)
        expected = torch.tensor([[sum(cell) / len(cell) for cell in row] for row in drops])
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)


def test_occlusion_equals_captums():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = pytest.importorskip("captum.attr", reason="needs captum (pip install --no-deps captum)")
    model, images, labels = small_net(), torch.randn(2, 1, SIZE, SIZE), torch.tensor([0, 2])
    by_captum = captum.Occlusion(lambda batch: model(batch).softmax(1))
    expected = by_captum.attribute(images, (1, 4, 4), strides=(1, 2, 2), target=labels, baselines=0)
    found = occlusion(model, images, labels, 4, 2)
    torch.testing.assert_close(found, expected[:, 0].float(), atol=1e-5, rtol=1e-4)


def test_occlusion_finds_the_quarter_that_counts():
    found = occlusion(Quarter(), IMAGES, LABELS, *occlusion_window(SIZE))
    assert found[0][TRUTH[0] == 1].min() > 0
    assert found[0][SIZE // 2 + 3 :, SIZE // 2 + 3 :].abs().max() == 0


@pytest.mark.parametrize("size", [4, 8, 28, 32, 64, 224])
def test_the_squares_of_any_size_are_about_as_many(size):
    window, stride = occlusion_window(size)
    assert window / size == pytest.approx(1 / 4, abs=0.01)
    assert stride <= window
    assert -(-(size - window) // stride) + 1 in (4, 7)


def test_curves_begin_and_end_with_the_whole_and_the_empty_image():
    model, images, labels = small_net(), torch.randn(2, 1, SIZE, SIZE), torch.tensor([0, 2])
    heat = torch.rand(2, SIZE, SIZE)
    gone = deletion(model, images, labels, heat, steps=5)
    come = insertion(model, images, labels, heat, steps=5)
    assert gone.shape == come.shape == (2, 6)
    whole, none = (class_probability(model, value, labels) for value in (images, torch.zeros_like(images)))
    torch.testing.assert_close(gone[:, 0], whole)
    torch.testing.assert_close(gone[:, -1], none)
    torch.testing.assert_close(come[:, 0], class_probability(model, blurred(images), labels))
    torch.testing.assert_close(come[:, -1], whole)


def test_the_hottest_pixels_go_first():
    images, heat = torch.randn(1, 1, SIZE, SIZE), torch.randn(1, SIZE, SIZE)
    seen = []

    class Watch(nn.Module):
        def forward(self, batch):
            seen.append(batch.clone())
            return torch.zeros(len(batch), 2)

    deletion(Watch(), images, torch.tensor([0]), heat, steps=4)
    for step, batch in enumerate(seen):
        threshold = heat.flatten().sort(descending=True).values[: SIZE * SIZE * step // 4]
        expected = images.clone()
        if len(threshold):
            expected[:, 0][heat >= threshold.min()] = 0
        torch.testing.assert_close(batch, expected)


def areas(curves):
    return area_under_curve(curves.numpy())


def test_a_true_map_scores_better_than_random_ones_and_its_opposite_worse():
    model, generator = Quarter(), torch.Generator().manual_seed(0)
    random_gone = areas(random_orders(deletion, model, IMAGES, LABELS, (4, 4), generator))
    random_come = areas(random_orders(insertion, model, 2 * TRUTH[:, None], LABELS, (4, 4), generator))
    assert (areas(deletion(model, IMAGES, LABELS, TRUTH)) < random_gone).all()
    assert (areas(deletion(model, IMAGES, LABELS, 1 - TRUTH)) > random_gone).all()
    assert (areas(insertion(model, 2 * TRUTH[:, None], LABELS, TRUTH)) > random_come).all()


def test_each_image_has_random_maps_of_its_own():
    """Images that shared their random maps would not be independent, which the interval over them supposes."""
    curves = random_orders(deletion, small_net(), IMAGES, LABELS, (4, 4), torch.Generator().manual_seed(0))
    assert not torch.equal(curves[0], curves[1])


def test_the_area_under_a_curve_is_that_of_known_curves():
    curves = np.array([[1.0, 1, 1, 1, 1], [1, 0.75, 0.5, 0.25, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_allclose(area_under_curve(curves), [1.0, 0.5, 0.0])


@pytest.mark.parametrize("score", SCORES)
def test_maps_without_an_effect_are_called_better_or_worse_in_one_of_twenty(score):
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(2000):
        random = rng.uniform(0.2, 0.8, 8)
        found = compare_with_random(score, list(zip(random + rng.normal(0, 0.1, 8), random, strict=True)))
        verdicts.append(found.verdict)
    claimed = [verdict for verdict in verdicts if verdict != "no difference shown"]
    assert 0.03 < len(claimed) / len(verdicts) < 0.07
    assert set(claimed) == {"better", "worse"}


@pytest.mark.parametrize(("score", "shift", "verdict"), [("deletion", -0.2, "better"), ("deletion", 0.2, "worse")])
@pytest.mark.parametrize("count", [FEWEST, 24])
def test_a_strong_effect_is_shown(score, shift, verdict, count):
    rng = np.random.default_rng(1)
    random = rng.uniform(0.3, 0.7, count)
    ours = random + shift + rng.normal(0, 0.02, count)
    found = compare_with_random(score, list(zip(ours, random, strict=True)))
    assert found.verdict == verdict
    paired = stats.ttest_rel(ours, random)
    np.testing.assert_allclose(found.ci95, paired.confidence_interval(0.95))
    assert found.difference == pytest.approx(shift, abs=0.03)
    opposite = compare_with_random("insertion", list(zip(ours, random, strict=True)))
    assert {opposite.verdict, verdict} == {"better", "worse"}


def test_nothing_is_claimed_of_a_difference_that_is_not_seen():
    """0.870 against 0.870: the interval excludes zero, but no digit that is shown does."""
    found = compare_with_random("insertion", [(0.87 + 1e-5 * at, 0.87) for at in range(1, 9)])
    assert found.ci95[0] > 0
    assert found.verdict == "no difference shown"


def test_equal_differences_are_an_interval_without_width():
    found = compare_with_random("insertion", [(0.75, 0.5)] * 6)
    assert found.ci95 == (0.25, 0.25)
    assert found.verdict == "better"
    assert compare_with_random("insertion", [(0.5, 0.5)] * 6).verdict == "no difference shown"


def test_few_images_are_not_judged():
    found = compare_with_random("deletion", [(0.1, 0.9)] * (FEWEST - 1))
    assert found.ci95 is None
    assert found.verdict == "too few images"


def test_equal_pixels_are_in_no_order_of_rows():
    """A map that is zero nearly everywhere must not delete the image from its top."""
    model, flat = Quarter(), torch.zeros(1, SIZE, SIZE)
    curve = deletion(model, IMAGES[:1], LABELS[:1], flat, steps=8)
    from_the_top = deletion(model, IMAGES[:1], LABELS[:1], -torch.arange(SIZE**2).view(1, SIZE, SIZE).float(), steps=8)
    assert curve[0, 4] > from_the_top[0, 4] + 0.2


def test_photographs_come_in_smaller_batches_with_the_same_result():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=4), nn.Flatten(), nn.LazyLinear(2)).eval()
    images = torch.randn(40, 1, 200, 200)
    sizes = []
    expected = model(images).softmax(1)[:, 1]
    handle = model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    found = class_probability(model, images, torch.ones(40, dtype=torch.int64))
    handle.remove()
    assert sizes == [26, 14]
    torch.testing.assert_close(found, expected)
