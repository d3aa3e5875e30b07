"""The pictures fit on their page and show the numbers that they say."""

import numpy as np
import pytest
import torch
from torch import nn

from convsmith.explain.activations import evenly, layers, record
from convsmith.figures.layers import (
    activations_figure,
    batch_norm_figure,
    explanation_figure,
    feature_maps_figure,
    kernels_figure,
    pooling_figure,
    strongest,
)
from convsmith.figures.style import save

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (8, 8, 1), dtype=np.uint8)
CURVE = np.linspace(1, 0, 17)


def explanation(title="a: true $x$, predicted y", drop=0.4, pixels=COLOUR):
    heat = np.repeat(COLOUR[:, :, :1], 3, axis=2)
    curves = {"deletion": (CURVE, CURVE), "insertion": (1 - CURVE, np.full(17, 0.25))}
    areas = {"deletion": (0.5, 0.5), "insertion": (0.5, 0.25)}
    return explanation_figure(pixels, title, heat, "blocks.1", heat, drop, curves, areas)


DRAWN = {
    "kernels": lambda: kernels_figure({"stem": torch.randn(16, 3, 5, 5), "blocks.1.conv": torch.randn(4, 1, 3, 3)}),
    "kernels, one": lambda: kernels_figure({"a layer with a name that is rather long": torch.zeros(1, 1, 3, 3)}),
    "maps": lambda: feature_maps_figure(COLOUR, {"stem": torch.rand(12, 16, 16), "last": torch.rand(3, 1, 1)}),
    "pooling": lambda: pooling_figure(GRAY, torch.randn(8, 8), "input of pool"),
    "activations": lambda: activations_figure({"relu": nn.ReLU(inplace=True), "tanh": nn.Tanh()}, {"relu"}, {}, {}),
    "inputs": lambda: activations_figure(
        {"relu": nn.ReLU()}, {"relu"}, {"a": torch.randn(9, 5), "b": torch.zeros(7)}, {"a": 0.5, "b": 0.0}
    ),
    "batch norm": lambda: batch_norm_figure("norm", torch.randn(8, 5, 4, 4), torch.randn(8, 5, 4, 4)),
    "explanation": explanation,
    "explanation, gray": lambda: explanation("日本 " + 70 * "long ", 0.0, GRAY),
}


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_fit_on_their_page(name, tmp_path):
    figure = DRAWN[name]()
    save(figure, tmp_path / "figure.png")
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].min(axis=2)
    assert pixels.std() > 5, "an empty page"
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if "long" not in name and name != "explanation, gray":
        assert (edges > 250).all(), "cut off at an edge"


def words(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def test_kernels_on_three_channels_are_in_colour_with_zero_in_gray():
    weight = torch.zeros(9, 3, 1, 2)
    weight[4, 0, 0, 0], weight[4, 2, 0, 1] = 2.0, -2.0
    figure = kernels_figure({"stem": weight})
    shown = figure.axes[0].images[0].get_array()  # the strongest comes first
    np.testing.assert_allclose(shown, [[[1, 0.5, 0.5], [0.5, 0.5, 0]]])
    assert "stem: 9 kernels of 3 x 1 x 2; in colour, gray is 0, to ±2" in words(figure)


def test_kernels_deeper_in_are_one_channel_at_a_time():
    weight = torch.arange(1.0, 3 * 2 * 9 + 1).view(3, 2, 3, 3)
    axes = kernels_figure({"conv": weight}).axes
    np.testing.assert_allclose(axes[0].images[0].get_array(), weight[2, 1])
    assert sum(bool(one.images) for one in axes) == 6


def test_pooling_shows_maximum_average_and_their_difference():
    values = torch.arange(16.0).view(4, 4)
    figure = pooling_figure(GRAY, values, "a map")
    shown = [axes.images[0].get_array() for axes in figure.axes[4:8]]
    np.testing.assert_allclose(shown[1], [[5, 7], [13, 15]])
    np.testing.assert_allclose(shown[2], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(shown[3], np.full((2, 2), 2.5))
    assert {"a map, 4 x 4", "maximum, 2 x 2", "maximum - average"} <= set(words(figure))


def test_activations_come_with_their_true_gradients():
    figure = activations_figure({"sigmoid": nn.Sigmoid()}, set(), {}, {})
    x, slope = figure.axes[1].lines[0].get_data()
    expected = 1 / (1 + np.exp(-x)) * (1 - 1 / (1 + np.exp(-x)))
    np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_the_models_own_activation_and_the_share_of_inputs_below_zero_are_named():
    inputs = {"layer": torch.tensor([-1.0, -2.0, -3.0, 4.0])}
    shown = words(activations_figure({"relu": nn.ReLU(), "tanh": nn.Tanh()}, {"relu"}, inputs, {"layer": 0.75}))
    assert {"relu (this model)", "tanh", "layer: 75% below 0"} <= set(shown)


def test_every_activation_and_every_layer_has_a_line_of_its_own():
    functions = {f"function {number}": nn.LeakyReLU(number / 10) for number in range(9)}
    inputs = {f"layer {number}": torch.randn(50) for number in range(8)}
    values, gradients, below = activations_figure(functions, {"function 0"}, inputs, dict.fromkeys(inputs, 0.5)).axes
    looks = [(line.get_color(), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in values.lines]
    assert len(looks) == len(set(looks)) == len(gradients.lines) == 9
    labels = [line.get_label() for line in below.lines]
    assert [label.partition(":")[0] for label in labels if label[0] != "_"] == list(inputs)


def test_batch_norm_says_means_and_deviations():
    before = torch.stack([torch.full((2, 4, 4), 3.0), torch.full((2, 4, 4), -1.0)], dim=1)
    shown = words(batch_norm_figure("norm", before, before / 2))
    assert "before\nmeans -1 to 3, deviations 0 to 0" in shown
    assert any("means -0.5 to 1.5" in text for text in shown)


def test_an_explanation_says_the_areas_under_its_curves():
    shown = words(explanation())
    assert {"deletion 0.50", "random maps 0.50", "insertion 0.50", "random maps 0.25"} <= set(shown)
    assert "occlusion: probability drops by up to 0.40" in shown
    assert "occlusion: probability drops nowhere" in words(explanation(drop=0.0))


def test_record_has_inputs_and_outputs_as_they_were_even_before_layers_that_work_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Dropout(0.9))
    images = torch.randn(5, 3)
    found = record(model.train(), images, layers(model, nn.Linear, nn.ReLU))
    assert list(found) == ["0", "1"]
    linear = nn.functional.linear(images, model[0].weight, model[0].bias)
    torch.testing.assert_close(found["0"], (images, linear))
    torch.testing.assert_close(found["1"], (linear, linear.relu()))
    assert model.training


def test_the_strongest_maps_vary_most():
    maps = torch.stack([torch.zeros(2, 2), torch.eye(2), 3 * torch.eye(2)])
    assert strongest(maps, 2) == [2, 1]
    assert strongest(torch.tensor([1.0, 5, 3]).view(3, 1, 1), 2) == [1, 2]


def test_layers_are_chosen_evenly_with_the_first_and_the_last():
    names = [f"layer {number}" for number in range(11)]
    assert evenly(names, 3) == ["layer 0", "layer 5", "layer 10"]
    assert evenly(names, 20) == names
