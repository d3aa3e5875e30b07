"""`convsmith explain RUN --figure NAME`: the pictures of how a net works, from the user's own model and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convsmith.contracts import Classifier
from convsmith.errors import UserError, choose
from convsmith.explain.activations import evenly, layers, record, strongest
from convsmith.explain.context import Subject
from convsmith.explain.gradcam import feature_maps, stages_of
from convsmith.explain.gradients import gradient_rms
from convsmith.explain.images import telling
from convsmith.explain.landscape import POINTS, along, around, by_batch_statistics, landscape_figure, loss_of
from convsmith.explain.trajectory import path_of
from convsmith.figures import layers as pictures
from convsmith.figures.curves import gradient_figure
from convsmith.figures.matrices import confusion_figure
from convsmith.nets.blocks import ACTIVATIONS, TMaxAvgPool2d
from convsmith.nets.build import build
from convsmith.nets.config import MODELS, ModelConfig
from convsmith.prediction.metrics import confusion_matrix, probabilities
from convsmith.runtime import seed_everything

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 6  # layers or stages in one picture
IMAGES = 256  # validation images of 64 x 64 pixels that numbers are taken from; fewer of larger ones
LANDSCAPE_IMAGES = 128  # the same, for each of some hundred losses


@dataclass(frozen=True)
class Asked:
    """What a picture is to show: an image of the user's own, a stage; and how it tells of its progress."""

    image: Path | None
    stage: str | None
    progress: Callable[[int, int], None]
    say: Callable[[str], None]


@dataclass(frozen=True)
class Picture:
    """How to draw it, how to read it, and which of `image` and `stage` it heeds."""

    draw: Callable[[Subject, Asked], Figure]
    caption: str
    heeds: frozenset[str] = frozenset()


def kernels(subject: Subject, asked: Asked) -> Figure:
    found = _inside(subject.model, asked.stage, layers(subject.model, nn.Conv2d))
    weights = {name: module.weight for name, module in found.items() if isinstance(module, nn.Conv2d)}
    weights = {name: weight for name, weight in weights.items() if max(weight.shape[2:]) > 1}
    if not weights:
        where = f"stage '{asked.stage}' of this model" if asked.stage else "this model"
        raise UserError(f"{where} has no kernels larger than 1 x 1 to look at: choose another stage or model")
    return pictures.kernels_figure({name: weights[name] for name in evenly(weights, ROWS)})


def stage_maps(subject: Subject, asked: Asked) -> Figure:
    pixels = _image(subject, asked)
    found = {name: maps[0] for name, maps in feature_maps(subject.model, subject.inputs(pixels[None])).items()}
    if not found:
        raise UserError("no stage of this model returns feature maps: choose a convolutional model")
    if asked.stage is not None:
        _known_stage(subject.model, asked.stage)
        if asked.stage not in found:
            raise UserError(f"stage '{asked.stage}' has no feature maps. Stages that have: {', '.join(found)}")
        found = {asked.stage: found[asked.stage]}
    return pictures.feature_maps_figure(pixels, {name: found[name] for name in evenly(found, ROWS)})


def pooling(subject: Subject, asked: Asked) -> Figure:
    pixels = _image(subject, asked)
    image = subject.inputs(pixels[None])
    pools = layers(subject.model, nn.MaxPool2d, nn.AvgPool2d, TMaxAvgPool2d)
    inputs = {name: before[0] for name, (before, _) in record(subject.model, image, pools).items()}
    what = "input of {}"
    if not inputs:  # a net that shrinks by strides alone
        first = list(layers(subject.model, nn.Conv2d))[:1]
        inputs = {name: after[0] for name, (_, after) in record(subject.model, image, first).items()}
        what = "output of {}"
    if not inputs:
        raise UserError("this model has no convolutions, hence no maps to pool: choose a convolutional model")
    name, maps = next(iter(inputs.items()))
    return pictures.pooling_figure(pixels, maps[strongest(maps, 1)[0]], what.format(name))


def activations(subject: Subject, asked: Asked) -> Figure:
    functions = {name: entry.build() for name, entry in ACTIVATIONS.items()}
    kinds = {type(function): name for name, function in functions.items()}
    found = layers(subject.model, *kinds)
    used = {kinds[type(module)] for module in found.values() if type(module) in kinds}
    inputs = record(subject.model, subject.sample(_images(subject, IMAGES))[0], evenly(found, 4)) if found else {}
    return pictures.activations_figure(functions, used, {name: before for name, (before, _) in inputs.items()})


def batch_norm(subject: Subject, asked: Asked) -> Figure:
    found = _inside(subject.model, asked.stage, layers(subject.model, nn.BatchNorm2d))
    if not found:
        where = f"stage '{asked.stage}' of this model" if asked.stage else "this model"
        raise UserError(f"{where} has no batch norm: choose another --stage, or train with --model.norm batch")
    name, norm = next(iter(found.items()))
    assert isinstance(norm, nn.BatchNorm2d)
    before = record(subject.model, subject.sample(_images(subject, IMAGES))[0], [name])[name][0]
    # By hand: timm's batch norms apply their activation too.
    after = nn.functional.batch_norm(
        before, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
    )
    return pictures.batch_norm_figure(name, before, after)


def gradients(subject: Subject, asked: Asked) -> Figure:
    images, labels = subject.sample(_images(subject, IMAGES))
    nets = {"this model, trained": subject.model}
    card = subject.predictor.card
    if card.architecture is not None and card.architecture.name in MODELS:
        for activation in ("relu", "sigmoid"):
            architecture = _everywhere(card.architecture, "activation", activation)
            nets[f"new, {activation}"] = _new(subject, architecture)
            if card.architecture.norm != "none":
                nets[f"new, {activation}, no norm"] = _new(subject, _everywhere(architecture, "norm", "none"))
    found = {
        name: gradient_rms(by_batch_statistics(model).requires_grad_(), images, labels) for name, model in nets.items()
    }
    title = f"Gradients of the weights by layer, {len(images)} validation images"
    figure = gradient_figure({name: list(values.values()) for name, values in found.items()}, title)
    names = list(found["this model, trained"])
    marked = evenly(names, 12)
    figure.axes[0].set_xticks([names.index(name) + 1 for name in marked], marked, rotation=30, ha="right", fontsize=8)
    figure.axes[0].set_xlabel("layer, from the image on")
    return figure


def confusion(subject: Subject, asked: Asked) -> Figure:
    predicted = subject.val_logits.argmax(axis=1)
    counts = confusion_matrix(subject.val.labels, predicted, len(subject.classes))
    return confusion_figure(counts, subject.classes)


def landscape(subject: Subject, asked: Asked) -> Figure:
    images, labels = subject.sample(_images(subject, LANDSCAPE_IMAGES))
    loss = loss_of(subject.model, images, labels)
    trail = path_of(subject, asked.say)
    points = trail.points
    total = len(images) * POINTS**2 * (2 if len(points) > 1 else 1)
    done = 0

    def tick() -> None:
        nonlocal done
        done += len(images)
        asked.progress(done, total)

    surfaces = [around(points[trail.solution], loss, tick=tick)]
    if len(points) > 1:
        surfaces.append(along(points, trail.solution, loss, tick=tick))
    what = f"{len(images)} validation images, batch norm by their own statistics"
    if len(points) > 1:
        what += f"\npath: {len(points)} points, {trail.source}"
    else:
        what += "\nno path: no other weights of this run are known"
    return landscape_figure(surfaces, what)


FIGURES: dict[str, Picture] = {
    "activations": Picture(
        activations,
        "The activation functions that a model may have, and their gradients; below, what the model's own ones get. "
        "Where inputs lie in a flat part no gradient passes: below 0 for ReLU, far from 0 on both sides for sigmoid "
        "and tanh.",
    ),
    "batch-norm": Picture(
        batch_norm,
        "The values of each channel of a layer before and after batch norm. Before, channels differ in mean and "
        "spread; after, all are about the scale that the layer has learned, so the next one need not follow their "
        "drift. Of a net that trained for few steps its statistics still lag behind, and so does what comes out.",
        frozenset({"stage"}),
    ),
    "confusion": Picture(
        confusion,
        "Validation images by true class (row) and predicted class (column); the diagonal is right.",
    ),
    "feature-maps": Picture(
        stage_maps,
        "What the stages make of one image. Early maps keep its outline and answer to edges and colours; later ones "
        "are coarser and answer to parts.",
        frozenset({"image", "stage"}),
    ),
    "gradients": Picture(
        gradients,
        "How large the gradient of the loss is at the weights of each layer. Where the line falls towards the image, "
        "the first layers hardly learn: vanishing gradients, as with sigmoid. A trained model's gradients are smaller "
        "all over, since its loss is.",
    ),
    "kernels": Picture(
        kernels,
        "The weights of the convolutions. Smooth first kernels (edges, blobs, colours) have learned something; noise "
        "has not.",
        frozenset({"stage"}),
    ),
    "landscape": Picture(
        landscape,
        "The loss around the model: wide bowls forgive small changes of the weights. Left, two random directions, each "
        "filter's scaled to its norm (Li et al. 2018); right, where it was computed, the plane of the optimiser's path "
        "by PCA of the weights that it came past, an epoch a point where a short training could be repeated.",
    ),
    "pooling": Picture(
        pooling,
        "Max pooling keeps the strongest value of each window, average pooling blends it with its neighbours. The "
        "last column shows how much the two differ: most at edges and single strong points.",
        frozenset({"image"}),
    ),
}


def draw(subject: Subject, name: str, asked: Asked) -> Figure:
    """UserError for a name that is none, and for what the figure would not heed."""
    if name not in FIGURES:
        raise choose("figure", name, FIGURES)
    for what, given, flag in (("image", asked.image, "PATH"), ("stage", asked.stage, "--stage")):
        if given is not None and what not in FIGURES[name].heeds:
            others = [other for other, picture in FIGURES.items() if what in picture.heeds]
            raise UserError(f"figure '{name}' takes no {flag}: leave it out. Figures that do: {', '.join(others)}")
    return FIGURES[name].draw(subject, asked)


def _image(subject: Subject, asked: Asked) -> NDArray[np.uint8]:
    """The image asked for, or else the surest hit among the validation images: uint8 [S, S, C]."""
    if asked.image is not None:
        pixels = subject.predictor.pixels(asked.image).array
    else:
        worst, best = telling(probabilities(subject.val_logits), subject.val.labels, None)
        pixels = subject.val.gather([*best, *worst][:1])
    image: NDArray[np.uint8] = subject.seen(pixels)[0]
    return image


def _images(subject: Subject, most: int) -> int:
    size = subject.predictor.card.preprocessing.image_size
    return max(16, most * 64**2 // max(size, 64) ** 2)


def _known_stage(model: nn.Module, name: str) -> nn.Module:
    """All of a stage, not just its last module."""
    stages = model.stages if isinstance(model, Classifier) else stages_of(model)
    if name not in stages:
        raise choose("stage", name, stages)
    return stages[name]


def _inside(model: nn.Module, stage: str | None, found: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of the modules that are in the stage; all without one."""
    if stage is None:
        return found
    members = set(_known_stage(model, stage).modules())
    return {name: module for name, module in found.items() if module in members}


def _everywhere(config: ModelConfig, key: str, value: str) -> ModelConfig:
    """The architecture with a setting that no block overrides."""
    blocks = config.blocks and tuple(block.model_copy(update={key: None}) for block in config.blocks)
    return config.model_copy(update={key: value, "blocks": blocks})


def _new(subject: Subject, architecture: ModelConfig) -> nn.Module:
    preprocessing = subject.predictor.card.preprocessing
    seed_everything(0)
    net = build(architecture, preprocessing.channels, preprocessing.image_size, len(subject.classes))
    return net.to(subject.predictor.device)
