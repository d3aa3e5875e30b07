"""Occlusion and the scores of heat maps against loops, and on nets whose answer is known."""

import warnings

import pytest
import torch
from torch import nn

from convsmith.explain.attribution import (
    area,
    blurred,
    class_probability,
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


def test_a_true_map_scores_better_than_chance_and_its_opposite_worse():
    model = Quarter()
    chance_gone = area(random_orders(deletion, model, IMAGES, LABELS, 4))
    chance_come = area(random_orders(insertion, model, 2 * TRUTH[:, None], LABELS, 4))
    assert (area(deletion(model, IMAGES, LABELS, TRUTH)) < chance_gone).all()
    assert (area(deletion(model, IMAGES, LABELS, 1 - TRUTH)) > chance_gone).all()
    assert (area(insertion(model, 2 * TRUTH[:, None], LABELS, TRUTH)) > chance_come).all()


def test_area_is_that_of_known_curves():
    curves = torch.tensor([[1.0, 1, 1, 1, 1], [1, 0.75, 0.5, 0.25, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(area(curves), torch.tensor([1.0, 0.5, 0.0]))


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
