"""The figures of `convsmith explain RUN --figure NAME`, which show how a net works. `figures` does the drawing.

Each has a caption whose statements about the picture are computed from the numbers that are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.contracts import Classifier, hw, size_of, size_text
from convsmith.data.decode import DecodeError
from convsmith.errors import UserError, choose
from convsmith.events import Counted, Listener, nobody
from convsmith.explain.activations import evenly, gradient_rms, layers, record
from convsmith.explain.context import ExplainContext
from convsmith.explain.examples import most_informative
from convsmith.explain.gradcam import feature_maps, stages_of
from convsmith.explain.landscape import POINTS, along, around, by_batch_statistics, loss_of
from convsmith.explain.options import FIGURES
from convsmith.explain.trajectory import trajectory_of
from convsmith.figures import layers as pictures
from convsmith.figures.curves import gradient_figure
from convsmith.figures.layers import COLUMNS, channel_moments, strongest
from convsmith.figures.matrices import confusion_figure
from convsmith.figures.surfaces import landscape_figure
from convsmith.nets.blocks import ACTIVATIONS, TMaxAvgPool2d
from convsmith.nets.build import build
from convsmith.nets.config import MODELS, ModelConfig
from convsmith.prediction.metrics import confusion_matrix, probabilities
from convsmith.runtime import seed_everything
from convsmith.terminal import listed, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 6  # layers or stages in one picture
IMAGES = 256  # validation images of 64 x 64 pixels that numbers are computed from; fewer if they are larger
LANDSCAPE_IMAGES = 128  # the same, for each of a few hundred losses

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class FigureOptions:
    """The options of a figure: an image of the user's own (in any form that a predictor takes), and a stage."""

    image: Any = None
    stage: str | None = None
    listener: Listener = nobody


@dataclass(frozen=True, eq=False)
class NetworkFigure:
    """A figure of a net, a caption, and the numbers in it as rows (empty where there is no table)."""

    figure: Figure
    caption: str
    table: Table


def draw(context: ExplainContext, name: str, options: FigureOptions) -> NetworkFigure:
    """The figure called `name`; UserError for an unknown name, and for an option that the figure does not use."""
    if name not in FIGURES:
        raise choose("figure", name, FIGURES)
    for what, given, flag in (("paths", options.image, "PATH"), ("stage", options.stage, "--stage")):
        if given is not None and what not in FIGURES[name]:
            others = [other for other, used in FIGURES.items() if what in used]
            raise UserError(f"figure '{name}' takes no {flag}: leave it out. Figures that do: {', '.join(others)}")
    return DRAWN_BY[name](context, options)


def kernels(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    found = _inside(context.model, options.stage, layers(context.model, nn.Conv2d))
    weights = {name: module.weight for name, module in found.items() if isinstance(module, nn.Conv2d)}
    weights = {name: weight for name, weight in weights.items() if max(weight.shape[2:]) > 1}
    if not weights:
        where = f"stage '{options.stage}' of this model" if options.stage else "this model"
        raise UserError(f"{where} has no kernels larger than 1 x 1: choose another stage or model")
    shown = {name: weights[name] for name in evenly(weights, ROWS)}
    caption = (
        f"These are the weights of {plural(len(shown), 'convolution')}, for each of them at most the {COLUMNS} "
        "pictures with the largest norm. A picture is a whole kernel if it takes three channels, and otherwise the "
        "slice of a kernel for one channel. Each row has its own scale, so colours cannot be compared between rows. "
        "Kernels of the first layer that look like edges, blobs or colours respond to these in the image; kernels of "
        "deeper layers can rarely be read by eye."
    )
    return NetworkFigure(pictures.kernels_figure(shown), caption, [])


def stage_maps(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    image, pixels = _image(context, options)
    found = {name: maps[0] for name, maps in feature_maps(context.model, image[None]).items()}
    if not found:
        raise UserError("no stage of this model returns feature maps: choose a convolutional model")
    if options.stage is not None:
        _known_stage(context.model, options.stage)
        if options.stage not in found:
            raise UserError(f"stage '{options.stage}' has no feature maps. Stages that have: {', '.join(found)}")
        found = {options.stage: found[options.stage]}
    shown = {name: found[name] for name in evenly(found, ROWS)}
    table: Table = [{"stage": name, "maps": len(maps), "size": _size(maps)} for name, maps in shown.items()]
    sizes = ", ".join(f"{size_text(size_of(*maps.shape[-2:]))} in {name}" for name, maps in shown.items())
    caption = (
        f"These are the feature maps of one image, for each stage at most the {COLUMNS} maps that vary most over their "
        f"positions. The maps have these sizes: {sizes}. Each row has its own scale."
    )
    return NetworkFigure(pictures.feature_maps_figure(pixels, shown), caption, table)


def pooling(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    image, pixels = _image(context, options)
    pools = layers(context.model, nn.MaxPool2d, nn.AvgPool2d, TMaxAvgPool2d)
    inputs = {name: before[0] for name, (before, _) in record(context.model, image[None], pools).items()}
    what = "input of {}"
    if not inputs:  # a net that reduces its maps only by strides
        first = list(layers(context.model, nn.Conv2d))[:1]
        inputs = {name: after[0] for name, (_, after) in record(context.model, image[None], first).items()}
        what = "output of {}"
    if not inputs:
        raise UserError("this model has no convolutions and so no maps to pool: choose a convolutional model")
    name, maps = next(iter(inputs.items()))
    caption = (
        "Max pooling keeps the largest value of each window, average pooling takes the mean of its values. The last "
        "column is the difference between the two: how far the largest value of a window is above its mean."
    )
    return NetworkFigure(pictures.pooling_figure(pixels, maps[strongest(maps, 1)[0]], what.format(name)), caption, [])


def activations(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    functions = {name: entry.build() for name, entry in ACTIVATIONS.items()}
    kinds = {type(function): name for name, function in functions.items()}
    found = layers(context.model, *kinds)
    used = {kinds[type(module)] for module in found.values() if type(module) in kinds}
    inputs = record(context.model, context.sample(_images(context, IMAGES))[0], evenly(found, 4)) if found else {}
    before = {name: values for name, (values, _) in inputs.items()}
    below_zero = {name: float((values < 0).double().mean()) for name, values in before.items()}
    table: Table = [{"layer": name, "share_below_zero": share} for name, share in below_zero.items()]
    caption = "These are the activation functions that a model may have, and their gradients."
    if table:
        shares = ", ".join(f"{row['share_below_zero']:.0%} in {row['layer']}" for row in table)
        caption += (
            f" The panel below shows the inputs of this model's activations. The share of inputs below 0 is {shares}."
        )
    caption += (
        " No gradient passes where a function is flat: below 0 for ReLU, far from 0 on both sides for sigmoid and tanh."
    )
    return NetworkFigure(pictures.activations_figure(functions, used, before, below_zero), caption, table)


def batch_norm(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    found = _inside(context.model, options.stage, layers(context.model, nn.BatchNorm2d))
    if not found:
        where = f"stage '{options.stage}' of this model" if options.stage else "this model"
        raise UserError(f"{where} has no batch norm: choose another --stage, or train with --model.norm batch")
    name, norm = next(iter(found.items()))
    assert isinstance(norm, nn.BatchNorm2d)
    before = record(context.model, context.sample(_images(context, IMAGES))[0], [name])[name][0]
    # Computed by hand, since the batch norms of timm apply their activation as well.
    own = norm.running_mean is None  # it uses the statistics of each batch, even in evaluation
    after = nn.functional.batch_norm(
        before, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=own, eps=norm.eps
    )
    means, deviations = channel_moments(before)
    means_after, deviations_after = channel_moments(after)
    columns = (means, deviations, means_after, deviations_after)
    table: Table = [
        dict(zip(("channel", "mean_before", "deviation_before", "mean_after", "deviation_after"), row, strict=True))
        for row in zip(range(len(means)), *(values.tolist() for values in columns), strict=True)
    ]
    caption = (
        "The figure shows the values of each channel of a layer before and after batch norm. Each channel is "
        f"normalised by {'its own mean and variance' if own else 'the running mean and variance from training'}, then "
        "scaled and shifted as the layer has learned. The highest and "
        f"the lowest mean of a channel are {np.ptp(means):.2g} apart before and {np.ptp(means_after):.2g} after; the "
        f"standard deviations of the channels lie between {_span(deviations)} before and {_span(deviations_after)} "
        "after."
    )
    if norm.running_mean is not None:
        gaps = np.abs(means - norm.running_mean.double().cpu().numpy()) / np.maximum(deviations, 1e-12)
        caption += (
            " The running means differ from the means of these images by at most "
            f"{gaps.max():.2g} standard deviations of their channel."
        )
    return NetworkFigure(pictures.batch_norm_figure(name, before, after), caption, table)


def gradients(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    images, labels = context.sample(_images(context, IMAGES))
    nets = {TRAINED: context.model}
    card = context.predictor.card
    if card.architecture is not None and card.architecture.name in MODELS:
        for activation in ("relu", "sigmoid"):
            architecture = _everywhere(card.architecture, "activation", activation)
            nets[f"new, {activation}"] = _new(context, architecture)
            if card.architecture.norm != "none":
                nets[f"new, {activation}, no norm"] = _new(context, _everywhere(architecture, "norm", "none"))
    found = {
        name: gradient_rms(by_batch_statistics(model).requires_grad_(), images, labels) for name, model in nets.items()
    }
    title = f"Gradients of the weights by layer, {len(images)} validation images"
    figure = gradient_figure({name: list(values.values()) for name, values in found.items()}, title)
    names = list(found[TRAINED])
    marked = evenly(names, 12)
    figure.axes[0].set_xticks([names.index(name) + 1 for name in marked], marked, rotation=30, ha="right", fontsize=8)
    figure.axes[0].set_xlabel("layer, from the image on")
    table = [{"net": net, "layer": layer, "rms": value} for net, rows in found.items() for layer, value in rows.items()]
    return NetworkFigure(figure, gradients_caption(found), table)


def gradients_caption(found: Mapping[str, Mapping[str, float]]) -> str:
    """The caption for the gradients of some nets, by layer from the image on: the ratio of the first to the last layer.

    The trained net is compared with each new one that has the same layers, layer by layer.
    """
    ratios = []
    for name, values in found.items():
        rms = list(values.values())
        if rms and rms[-1] > 0:
            ratios.append(f"{rms[0] / rms[-1]:.2g} in '{name}'")
    caption = "The figure shows the root mean square of the gradient of the loss with respect to each layer's weights."
    if ratios:
        caption += (
            f" The gradient of the first layer divided by that of the last one is {listed(ratios)}. Where this ratio "
            "is far below 1, gradients vanish and the first layers learn slowly."
        )
    trained = found[TRAINED]
    smaller = [
        f"that of '{name}' in {sum(trained[layer] < value for layer, value in values.items())} of {len(values)} layers"
        for name, values in found.items()
        if name != TRAINED and values.keys() == trained.keys()
    ]
    if smaller:
        caption += f" The trained model's gradient is smaller than {listed(smaller)}."
    return caption


def confusion(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    labels, predicted = context.val.labels, context.val_logits.argmax(axis=1)
    counts = confusion_matrix(labels, predicted, len(context.classes))
    caption = (
        "Validation images by true class (row) and predicted class (column). The diagonal holds the "
        f"{int((labels == predicted).sum()):,} of {len(labels):,} images that are predicted correctly."
    )
    return NetworkFigure(confusion_figure(counts, context.classes), caption, [])


def landscape(context: ExplainContext, options: FigureOptions) -> NetworkFigure:
    images, labels = context.sample(_images(context, LANDSCAPE_IMAGES))
    loss = loss_of(context.model, images, labels)
    trajectory = trajectory_of(context, options.listener)
    points = trajectory.points
    total = len(images) * POINTS**2 * (2 if len(points) > 1 else 1)
    done = 0

    def tick() -> None:
        nonlocal done
        done += len(images)
        options.listener(Counted("computing the loss of", done, total))

    surfaces = [around(points[trajectory.solution], loss, tick=tick)]
    if len(points) > 1:
        surfaces.append(along(points, trajectory.solution, loss, tick=tick))
    losses = {name: loss(weights) for name, weights in points.items()}
    table: Table = [
        {
            "point": place.name,
            "x": place.x,
            "y": place.y,
            "loss": losses[trajectory.solution if place.solution else place.name],
        }
        for place in surfaces[-1].path
    ]
    what = f"{len(images)} validation images, batch norm by their own statistics"
    around_it = surfaces[0].loss
    caption = (
        f"The loss on {len(images)} validation images is {losses[trajectory.solution]:.3g} nats at the model, and "
        f"{around_it.min():.3g} to {around_it.max():.3g} nats on a plane through it along two random directions, in "
        "which each filter has the norm of the model's filter (Li et al. 2018). Other directions may look different. "
    )
    if len(points) > 1:
        what += f"\npath: {len(points)} points, {trajectory.source}"
        caption += (
            "The right panel shows the plane of the optimiser's path, by PCA of the weights along it: "
            f"{len(points)} points, {trajectory.source}."
        )
    else:
        what += "\nno path: no other weights of this run are known"
        caption += "No path is drawn, since no other weights of this run are known."
    return NetworkFigure(landscape_figure(surfaces, what), caption, table)


TRAINED = "this model, trained"
DRAWN_BY: dict[str, Callable[[ExplainContext, FigureOptions], NetworkFigure]] = {
    "activations": activations,
    "batch-norm": batch_norm,
    "confusion": confusion,
    "feature-maps": stage_maps,
    "gradients": gradients,
    "kernels": kernels,
    "landscape": landscape,
    "pooling": pooling,
}
assert DRAWN_BY.keys() == FIGURES.keys()


def _image(context: ExplainContext, options: FigureOptions) -> tuple[Tensor, NDArray[np.uint8]]:
    """The image of the options, or else the most confident correct prediction among the validation images.

    It is returned as the net takes it, float [C, H, W], and as pixels uint8 [H, W, C].
    """
    if options.image is not None:
        (pixels,) = context.predictor.decoded([options.image])
        if isinstance(pixels, DecodeError):
            raise UserError(f"cannot read '{options.image}': {pixels}")
    else:
        wrong, right = most_informative(probabilities(context.val_logits), context.val.labels, None)
        pixels = context.val.inputs([*right, *wrong][:1])
    image = context.inputs(pixels)
    return image[0], context.seen(image)[0]


def _span(values: NDArray[np.float64]) -> str:
    return f"{values.min():.2g} and {values.max():.2g}"


def _images(context: ExplainContext, most: int) -> int:
    return max(16, most * 64**2 // max(math.prod(hw(context.image_size)), 64**2))


def _size(maps: Tensor) -> int | str:
    """The side of square maps [..., h, w], else height x width."""
    size = size_of(*maps.shape[-2:])
    return size if isinstance(size, int) else size_text(size)


def _known_stage(model: nn.Module, name: str) -> nn.Module:
    """The whole stage, not just its last module."""
    stages = model.stages if isinstance(model, Classifier) else stages_of(model)
    if name not in stages:
        raise choose("stage", name, stages)
    return stages[name]


def _inside(model: nn.Module, stage: str | None, found: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of the modules that are in the stage; all if there is no stage."""
    if stage is None:
        return found
    members = set(_known_stage(model, stage).modules())
    return {name: module for name, module in found.items() if module in members}


def _everywhere(config: ModelConfig, key: str, value: str) -> ModelConfig:
    """The architecture with this setting in all blocks."""
    blocks = config.blocks and tuple(block.model_copy(update={key: None}) for block in config.blocks)
    return config.model_copy(update={key: value, "blocks": blocks})


def _new(context: ExplainContext, architecture: ModelConfig) -> nn.Module:
    preprocessing = context.predictor.card.preprocessing
    seed_everything(0)
    net = build(architecture, preprocessing.channels, preprocessing.image_size, len(context.classes))
    return net.to(context.predictor.device)
