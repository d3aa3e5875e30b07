"""The loss landscape on losses whose shape is known, and the promises of its directions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from convsmith.explain.landscape import (
    LARGEST,
    POINTS,
    along,
    around,
    by_batch_statistics,
    loss_of,
    random_direction,
    weights_of,
)
from convsmith.figures.surfaces import landscape_figure


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2)
    )


def test_directions_have_the_norm_of_each_filter_and_leave_biases_and_norms_alone():
    weights = weights_of(net())
    direction = random_direction(weights, torch.Generator().manual_seed(3))
    for name, value in weights.items():
        if value.ndim < 2:
            assert not direction[name].any()
        else:
            torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), value.flatten(1).norm(dim=1))
    again = random_direction(weights, torch.Generator().manual_seed(3))
    assert all(torch.equal(direction[name], again[name]) for name in weights)


def test_scaling_the_weights_of_a_filter_scales_the_direction_alike():
    """Why the paper normalises: a net of ReLUs computes the same with one layer doubled and the next one halved."""
    weights = weights_of(net())
    doubled = {name: 2 * value for name, value in weights.items()}
    one, two = (random_direction(w, torch.Generator().manual_seed(1)) for w in (weights, doubled))
    for name, value in one.items():
        torch.testing.assert_close(two[name], 2 * value)


def test_the_loss_is_that_of_the_model_with_the_statistics_of_the_batch():
    model, images, labels = net(), torch.randn(20, 1, 6, 6), torch.randint(2, (20,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = loss_of(model, images, labels)
    model[3].p = 0.0
    expected = nn.functional.cross_entropy(model.train()(images), labels).item()
    model.load_state_dict(before)
    assert loss(weights_of(model)) == pytest.approx(expected, rel=1e-6)
    assert loss(weights_of(model)) == loss(weights_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batch_statistics_do_without_dropout():
    twin = by_batch_statistics(net())
    assert twin[1].training
    assert not twin[3].training


def test_the_middle_of_the_surface_is_the_model():
    model = net()
    loss = loss_of(model, torch.randn(20, 1, 6, 6), torch.randint(2, (20,)))
    ticks = []
    surface = around(weights_of(model), loss, tick=lambda: ticks.append(1))
    assert surface.loss.shape == (POINTS, POINTS)
    assert len(ticks) == POINTS**2
    assert surface.xs[POINTS // 2] == surface.ys[POINTS // 2] == 0
    assert surface.loss[POINTS // 2, POINTS // 2] == pytest.approx(loss(weights_of(model)))


def point(*values):
    return {"w": torch.tensor([values], dtype=torch.float32)}


def bowl(weights):
    return float((weights["w"] ** 2).sum())


def test_the_plane_of_the_path_holds_its_points_at_their_distances_and_losses():
    points = {
        "start": point(3, 4, 0),
        "epoch 1": point(3, 0, 0),
        "the model": point(0, 0, 0),
        "epoch 3": point(-1, 1, 0),
    }
    surface = along(points, "the model", bowl)
    places = {stop.name: (stop.x, stop.y) for stop in surface.path}
    assert list(places) == list(points)
    assert places["the model"] == pytest.approx((0, 0), abs=1e-5)
    assert places["start"][0] < places["epoch 3"][0]
    for one, first in points.items():
        for other, second in points.items():
            true = float((first["w"] - second["w"]).norm())
            assert math.dist(places[one], places[other]) == pytest.approx(true, abs=1e-4)
    # The bowl is round, so its value is the squared distance to the solution, anywhere in the plane.
    grid_x, grid_y = np.meshgrid(surface.xs, surface.ys)
    np.testing.assert_allclose(surface.loss, grid_x**2 + grid_y**2, atol=1e-3)
    for name, (x, y) in places.items():
        assert surface.xs[0] < x < surface.xs[-1], name
        assert surface.ys[0] < y < surface.ys[-1], name
    assert [stop.name for stop in surface.path if stop.solution] == ["the model"]


def test_a_segment_gets_a_second_direction_at_right_angles():
    solution = point(0, 0, 0.5)
    points = {"start": point(2, 0, 0), "the model": solution}
    surface = along(points, "the model", lambda weights: float((weights["w"] - solution["w"]).square().sum()) + 1)
    assert [stop.y for stop in surface.path] == pytest.approx([0, 0], abs=1e-5)
    assert surface.path[0].x == pytest.approx(-math.sqrt(4.25))
    grid_x, grid_y = np.meshgrid(surface.xs, surface.ys)
    np.testing.assert_allclose(surface.loss, grid_x**2 + grid_y**2 + 1, atol=1e-3)


def test_points_that_are_the_same_are_no_trouble():
    points = {"start": point(1, 1, 1), "the model": point(1, 1, 1)}
    assert np.isfinite(along(points, "the model", bowl).loss).all()


def test_what_is_no_number_is_drawn_as_the_largest():
    def steep(weights):
        total = bowl(weights)
        return math.nan if total > 30 else math.inf if total > 20 else total

    surface = along({"start": point(3, 4, 0), "the model": point(0.1, 0, 0)}, "the model", steep)
    assert np.isfinite(surface.loss).all()
    assert surface.loss.max() == pytest.approx(LARGEST * surface.loss.min(), rel=1e-3)
    figure = landscape_figure([surface], "a test")
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert set(texts) == {"start", "the model"}
