"""Figures of images and layers: kernels, maps, pooling, activations, norms, heat maps. No net runs here.

Signed values run from orange through white to purple, others through viridis: both work with any colour vision and in
gray.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.contracts import gray_or_rgb
from convsmith.figures.style import BLUE, GREY, VERMILLION, label_axes, line_style, new_figure
from convsmith.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGNED, HEIGHT = "PuOr", "viridis"
COLUMNS = 8  # kernels or maps of a layer
POINTS = 20_000  # values of a layer that go into a histogram


def strongest(maps: Tensor, count: int) -> list[int]:
    """The channels of `maps` [K, h, w] that vary most over their positions, the most varied first; at most `count`.

    Where maps have a single position, so that nothing varies, these are the channels with the largest values.
    """
    flat = maps.flatten(1)
    strength = flat.std(dim=1) if flat.shape[1] > 1 else flat[:, 0]
    return [int(index) for index in strength.argsort(descending=True, stable=True)[:count]]


def channel_moments(values: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel of `values` [N, K, h, w]: float64 [K] each."""
    channels = _channels(values)
    return channels.mean(axis=1), channels.std(axis=1)


def kernels_figure(weights: Mapping[str, Tensor]) -> Figure:
    """The kernels of some convolutions, one row each: `weights` float [K, C, k, k] by the layer's name, in order.

    Kernels on three channels are shown in colour around mid gray, all others one channel at a time. For each layer, the
    `COLUMNS` pictures with the largest norm are shown.
    """
    figure, grid = _rows(len(weights), "Kernels, the strongest of each layer")
    for row, (name, weight) in enumerate(weights.items()):
        coloured = weight.shape[1] == 3
        # In later layers, each slice for one input channel is a picture.
        slices = weight.detach().cpu() if coloured else weight.detach().cpu().flatten(0, 1)[:, None]
        order = slices.flatten(1).norm(dim=1).argsort(descending=True, stable=True)[:COLUMNS]
        chosen = slices[order].permute(0, 2, 3, 1).numpy()
        limit = float(np.abs(chosen).max()) or 1.0
        for axes, kernel in zip(grid[row][: len(chosen)], chosen, strict=True):
            if coloured:
                axes.imshow(0.5 + 0.5 * kernel / limit, interpolation="nearest")
            else:
                axes.imshow(kernel[..., 0], cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
        kind = "in colour, gray is 0" if coloured else "orange below 0, purple above"
        size = " x ".join(map(str, weight.shape[1:]))
        _row_title(grid[row][0], f"{name}: {weight.shape[0]} kernels of {size}; {kind}, to ±{limit:.2g}")
    return figure


def feature_maps_figure(pixels: NDArray[np.uint8], maps: Mapping[str, Tensor]) -> Figure:
    """Feature maps of one image uint8 [H, W, C]: `maps` float [K, h, w] by stage, in order.

    For each stage, the `COLUMNS` maps that vary most are shown.
    """
    figure, grid = _rows(1 + len(maps), "Feature maps of one image, the most varied of each stage")
    _picture(grid[0][0], pixels)
    _row_title(grid[0][0], f"the image: {pixels.shape[0]} x {pixels.shape[1]}")
    for row, (name, values) in enumerate(maps.items(), start=1):
        chosen = values.detach().cpu()[strongest(values, COLUMNS)].numpy()
        low, high = float(chosen.min()), float(chosen.max())
        for axes, channel in zip(grid[row][: len(chosen)], chosen, strict=True):
            axes.imshow(channel, cmap=HEIGHT, vmin=low, vmax=high, interpolation="nearest")
        size = " x ".join(map(str, values.shape[1:]))
        _row_title(grid[row][0], f"{name}: {len(values)} maps of {size}; dark {low:.2g} to bright {high:.2g}")
    return figure


def pooling_figure(pixels: NDArray[np.uint8], values: Tensor, name: str, window: int = 2) -> Figure:
    """Max and average pooling, and their difference, of an image uint8 [H, W, C] and of a map [h, w] called `name`."""
    gray = torch.from_numpy(pixels.astype(np.float32)).mean(dim=2)
    figure = new_figure(10.5, 5.6)
    figure.suptitle(f"Pooling: {window} x {window} windows, stride {window}", fontsize=12)
    grid = figure.subplots(2, 4)
    for row, (what, before, colours) in enumerate([("image", gray, "gray"), (name, values.detach().cpu(), HEIGHT)]):
        largest = nn.functional.max_pool2d(before[None], window)[0]
        mean = nn.functional.avg_pool2d(before[None], window)[0]
        low, high = float(before.min()), float(before.max())
        for axes, title, shown in [
            (grid[row][0], f"{what}, {_size(before)}", before),
            (grid[row][1], f"maximum, {_size(largest)}", largest),
            (grid[row][2], f"average, {_size(mean)}", mean),
        ]:
            image = axes.imshow(shown.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            _bare(axes, title)
        figure.colorbar(image, ax=grid[row][2], shrink=0.8, label="gray level" if row == 0 else "activation")
        gap = grid[row][3].imshow((largest - mean).numpy(), cmap="Purples", vmin=0, interpolation="nearest")
        _bare(grid[row][3], "maximum - average")
        figure.colorbar(gap, ax=grid[row][3], shrink=0.8, label="difference")
    return figure


def activations_figure(
    functions: Mapping[str, nn.Module],
    used: Collection[str],
    inputs: Mapping[str, Tensor],
    below_zero: Mapping[str, float],
) -> Figure:
    """Activation functions, their gradients, and the `inputs` that those of the net receive, by layer.

    The functions named in `used` are drawn with heavier lines. `below_zero` is the share of a layer's inputs.
    """
    figure = new_figure(11, 4 if not inputs else 7)
    grid = figure.add_gridspec(2 if inputs else 1, 2)
    values, gradients = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for number, (name, function) in enumerate(functions.items()):
        x = torch.linspace(-4, 4, 401, requires_grad=True)
        y = function(x * 1.0)  # a product, so that an in-place function does not overwrite the leaf
        (slope,) = torch.autograd.grad(y.sum(), x)
        label, width = (f"{name} (this model)", 3.2) if name in used else (name, 1.4)
        for axes, curve in ((values, y), (gradients, slope)):
            axes.plot(x.detach(), curve.detach(), linewidth=width, label=label, **line_style(number))
    values.set_ylim(-1.6, 4)
    gradients.set_ylim(-0.3, 1.3)
    label_axes(values, "Activation functions", "input", "output")
    label_axes(gradients, "Their gradients", "input", "slope")
    values.legend(fontsize=8, loc="upper left")
    if inputs:
        axes = figure.add_subplot(grid[1, :])
        for number, (name, tensor) in enumerate(inputs.items()):
            flat = _sample(tensor)
            low, high = np.percentile(flat, [1, 99])
            density, edges = np.histogram(flat, bins=80, range=(low, max(high, low + 1e-3)), density=True)
            middle = (edges[1:] + edges[:-1]) / 2
            axes.plot(middle, density, label=f"{name}: {below_zero[name]:.0%} below 0", **line_style(number))
        axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
        axes.legend(fontsize=8)
        label_axes(axes, "The inputs of this model's activations, on validation images", "input", "density")
    return figure


def batch_norm_figure(name: str, before: Tensor, after: Tensor) -> Figure:
    """Values float [N, K, h, w] of each channel going into the batch norm `name` and coming out of it."""
    figure = new_figure(11, 4.4)
    figure.suptitle(f"Batch norm {name}, on {len(before)} validation images", fontsize=12)
    shares = [5, 25, 50, 75, 95]
    order: NDArray[Any] | None = None
    for axes, what, tensor, colour in zip(
        figure.subplots(1, 2),
        ("before", "after (normalised, then scaled and shifted as learned)"),
        (before, after),
        (BLUE, VERMILLION),
        strict=True,
    ):
        bands = np.percentile(_channels(tensor), shares, axis=1)
        order = bands[2].argsort() if order is None else order
        bands = bands[:, order]
        at = np.arange(len(order) + 1) - 0.5
        steps = np.concatenate([bands, bands[:, -1:]], axis=1)
        fill = {"step": "post", "color": colour, "linewidth": 0}
        axes.fill_between(at, steps[0], steps[4], alpha=0.25, label="5 to 95 % of the values", **fill)
        axes.fill_between(at, steps[1], steps[3], alpha=0.55, label="25 to 75 %", **fill)
        axes.step(at, steps[2], where="post", color="black", linewidth=1.2, label="median")
        axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
        spans = [f"{values.min():.2g} to {values.max():.2g}" for values in channel_moments(tensor)]
        label_axes(axes, f"{what}\nmeans {spans[0]}, deviations {spans[1]}", "channel, in the order before", "value")
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8)
    return figure


def explanation_figure(
    pixels: NDArray[np.uint8],
    title: str,
    heat: NDArray[np.uint8],
    stage: str,
    covered: NDArray[np.uint8],
    drop: float,
    curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    areas: Mapping[str, tuple[float, float]],
) -> Figure:
    """One image uint8 [H, W, C], its Grad-CAM and its occlusion as RGB, and the curves that score the Grad-CAM.

    `drop` is the largest drop in probability under a covering square. `curves`, each [steps + 1], are those of the map
    and of random maps by the name of the score; `areas` are the areas under them.
    """
    figure = new_figure(12.5, 3.5)
    figure.suptitle(visible(title), fontsize=11, parse_math=False)
    first, second, third, last = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.35])
    _picture(first, pixels)
    _bare(first, "as the net sees it")
    second.imshow(heat, interpolation="nearest")
    _bare(second, f"Grad-CAM at {stage}")
    third.imshow(covered, interpolation="nearest")
    cost = f"by up to {drop:.2f}" if drop >= 0.005 else "by less than 0.01" if drop > 0 else "nowhere"
    _bare(third, f"occlusion: probability drops {cost}")
    for (name, (found, random)), colour, marker in zip(curves.items(), (BLUE, VERMILLION), "o^", strict=True):
        at = np.linspace(0, 100, len(found))
        last.plot(at, found, color=colour, marker=marker, markersize=3, label=f"{name} {areas[name][0]:.2f}")
        last.plot(at, random, color=colour, linestyle=":", label=f"random maps {areas[name][1]:.2f}")
    last.set(ylim=(-0.03, 1.03), xlim=(0, 100))
    label_axes(last, "Does the map show what matters?", "pixels changed, hottest first (%)", "probability of the class")
    last.title.set_fontsize(10)
    last.legend(fontsize=7)
    return figure


def _rows(count: int, title: str) -> tuple[Figure, list[list[Axes]]]:
    """A page of `count` rows of `COLUMNS` empty axes, each row with room for its title."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = new_figure(1.15 * COLUMNS, 1.42 * count + 0.5)
    figure.suptitle(title, fontsize=12)
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.12, hspace=0.06))
    grid = [list(row) for row in figure.subplots(count, COLUMNS, squeeze=False)]
    for axes in (axes for row in grid for axes in row):
        axes.set_axis_off()
    return figure, grid


def _row_title(axes: Axes, text: str) -> None:
    """A title over the whole row, which does not widen the first column, as a title of its axes would."""
    line = axes.text(0, 1.06, visible(text), transform=axes.transAxes, fontsize=9, va="bottom", parse_math=False)
    line.set_in_layout(False)


def _picture(axes: Axes, pixels: NDArray[np.uint8]) -> None:
    axes.imshow(gray_or_rgb(pixels), "gray", vmin=0, vmax=255, interpolation="nearest")


def _bare(axes: Axes, title: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(visible(title), fontsize=9, parse_math=False)


def _channels(values: Tensor) -> NDArray[np.float64]:
    """[N, K, h, w] -> [K, N h w]."""
    channels: NDArray[np.float64] = values.detach().cpu().transpose(0, 1).flatten(1).double().numpy()
    return channels


def _size(values: Tensor) -> str:
    return f"{values.shape[0]} x {values.shape[1]}"


def _sample(values: Tensor) -> NDArray[Any]:
    """At most `POINTS` of the values, evenly spaced."""
    flat = values.detach().flatten()
    return flat[:: max(1, len(flat) // POINTS)].double().cpu().numpy()
