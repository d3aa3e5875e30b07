"""Gathers what a config is resolved from: opens the data, builds the network, measures a step. Resolves nothing."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from convsmith import files
from convsmith.config import RunConfig
from convsmith.contracts import Batch, InputSpec, hw, size_text
from convsmith.data.config import AugmentConfig, DataConfig, Preprocessing
from convsmith.data.dataset import Dataset, open_dataset
from convsmith.data.preprocess import ToInput
from convsmith.data.sources import cache_folder, with_absolute_paths
from convsmith.errors import UserError, first_line
from convsmith.nets.blocks import unsafe_channels_last
from convsmith.nets.build import build
from convsmith.nets.shapes import LayerRow, totals, trace
from convsmith.precision import BFLOAT16, FLOAT32, has_bfloat16, refuse_unfit_device
from convsmith.runtime import keep_freed_memory, seed_everything, select_device, set_threads
from convsmith.training import speeds
from convsmith.training.config import AUTO, TrainConfig
from convsmith.training.layout import Variant, fastest, seconds_per_step, variants
from convsmith.training.loss import build_loss, class_weights
from convsmith.training.own import Parts, refuse_unfit
from convsmith.training.resolve import Facts
from convsmith.training.step import Recipe
from convsmith.transfer import weights
from convsmith.transfer.division import divide
from convsmith.transfer.unfreezing import Finetuning

WHITENED_IMAGES = 500
SMALL_STEP = 100_000_000  # MACs per batch, which take a few milliseconds on one core
CHOICE_SECONDS, ESTIMATE_SECONDS = 2.0, 0.2  # for choosing a way by measurement; for measuring a step only
MEASURED_PIXELS = 2**21  # of one step of all ways together at most: 20 photographs of 224 x 224 in two ways show enough
CROP_HEADROOM = 1.15  # working size / image size for random resized crops


def gather_facts(
    config: RunConfig, dataset: Dataset, device: torch.device, parts: Parts, given: weights.Weights | None = None
) -> Facts:
    """The facts that resolve the config before a step is measured; sets torch's threads."""
    return Facts(
        data=dataset.config,
        train_images=len(dataset.train),
        val_images=len(dataset.val),
        device=device.type,
        threads=set_threads(config.train.threads),
        model=given.model if given else None,
        weights=given.path if given else None,
        own_module=None if parts.module is None else type(parts.module).__name__,
    )


def without_val(config: RunConfig, dataset: Dataset) -> tuple[str, ...]:
    """A sentence for a training without val images. Raises UserError if a setting cannot do without them."""
    if len(dataset.val):
        return ()
    if config.schedule.name == "plateau":
        raise UserError(
            "schedule.name plateau watches the loss on val images, of which data.val_fraction 0 leaves none: choose "
            "another schedule"
        )
    patience = "" if config.train.patience is None else f" (train.patience {config.train.patience} has no effect)"
    return (
        f"there are no val images: no early stopping{patience}, no best epoch and no scores; the model is that of the "
        "last epoch",
    )


def is_small(layers: Sequence[LayerRow], batch_size: int) -> bool:
    """Whether a step is so little work that threads would spend more time waiting for each other than working.

    Beside another busy process, such a step takes 20 times as long on two threads as on one.
    """
    return totals(layers).macs * batch_size < SMALL_STEP


def to_last_phase(model: nn.Module, finetuning: Finetuning | None) -> None:
    """Unfreeze all that a run will ever train, which needs the most time and memory of a step."""
    if finetuning:
        finetuning.apply(model, len(finetuning.phases) - 1)


def refuse_single_images(model: nn.Module, finetuning: Finetuning | None, batch_size: int, dataset: Dataset) -> None:
    """Raise UserError if batches must consist of one image, on which the network's batch norm cannot be trained."""
    images = len(dataset.train)
    if images > 1 and batch_size > 1:  # then `batch_positions` never yields a batch of one image
        return
    network = copy.deepcopy(model).train()
    to_last_phase(network, finetuning)
    if finetuning:
        finetuning.frozen_to_eval(network)
    example = next(network.parameters())
    one = first_images(dataset, 1, example.device).to(example.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network(one)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        fix = "set --train.batch_size to 2 or more" if images > 1 else "there is only one train image: give more"
        raise UserError(f"batch norm cannot be trained on batches of one image: {fix}") from None


def refuse_rigid(model: nn.Module, train: TrainConfig, seen: Preprocessing) -> None:
    """Raise UserError where `train.sizes` are not smaller than the images, or the network cannot take them."""
    longest = max(hw(seen.image_size))
    if too_large := [side for side, _ in train.sizes if side > longest]:
        raise UserError(
            f"train.sizes are of smaller images than data.image_size ({size_text(seen.image_size)} pixels), which "
            f"{too_large[0]} is not: leave it out, or raise --data.image_size"
        )
    smaller = {train.size_in(epoch, seen.image_size) for epoch in range(train.epochs)} if train.sizes else set()
    for size in smaller - {seen.image_size}:
        try:
            trace(model, seen.channels, size)
        except Exception as error:  # whatever a network raises
            raise UserError(
                f"train.sizes: the network fails on images of {size_text(size)} pixels ({first_line(error)}): set "
                "--model.global_pool to average or max, use larger sizes or none"
            ) from error


def image_epochs(config: RunConfig, finetuning: Finetuning | None) -> int:
    """The number of epochs of a run that train on images rather than on features."""
    if finetuning is None or not weights.caches_features(config):
        return config.train.epochs
    first = finetuning.image_epoch
    return 0 if first is None else config.train.epochs - first


def open_data(
    config: RunConfig,
    parts: Parts,
    progress: Callable[[int, int], None] | None = None,
    spec: InputSpec | None = None,
    trained: bool = False,
) -> tuple[Dataset, torch.device]:
    """Open the data and select the device that the config names; `trained` is as for `open_dataset`."""
    if config.optim.is_own and parts.optimizer is None:
        raise UserError(
            f"optim.name {config.optim.name} stands for your own optimiser: pass it in, "
            "convsmith.train(..., optimizer=...)"
        )
    device = select_device(config.train.device)
    refuse_unfit_device(config.train.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    data = config.data
    if parts.source is None:
        data = with_absolute_paths(data)  # so that the run finds its data from any folder
    headroom = CROP_HEADROOM if config.augment.random_resized_crop else 1.0
    dataset = open_dataset(data, progress, parts.source, headroom, spec, trained=trained)
    _refuse_blank(config.augment, dataset.config)
    return dataset, device


def _refuse_blank(augment: AugmentConfig, data: DataConfig) -> None:
    """Raise UserError for an augmentation that would leave nothing of an image."""
    assert data.image_size is not None
    assert data.working_size is not None
    limits = [("cutout", augment.cutout, max(hw(data.image_size)), data.image_size)]
    limits += [("shift", augment.shift_pixels(side), side, data.working_size) for side in hw(data.working_size)]
    for name, pixels, side, size in limits:
        if pixels >= side:
            raise UserError(f"augment.{name} {pixels} leaves nothing of an image of {size_text(size)} pixels: lower it")


def build_network(config: RunConfig, dataset: Dataset, parts: Parts) -> nn.Module:
    """The network with its initial weights, which depend only on `train.seed`."""
    seed_everything(config.train.seed, config.train.deterministic)
    card = dataset.preprocessing()
    if parts.module is not None:
        refuse_unfit(parts.module, card.channels, card.image_size, len(dataset.classes))
        return parts.module
    if config.model.is_own:
        raise UserError(
            f"model.name {config.model.name} stands for your own network: pass it in, "
            "convsmith.train(..., model=...) or convsmith.resume(run, model=...)"
        )
    return build(config.model, card.channels, card.image_size, len(dataset.classes))


def first_images(dataset: Dataset, count: int, device: torch.device) -> torch.Tensor:
    """The first train images as network inputs, without augmentation: float [N, C, H, W]."""
    pixels = torch.from_numpy(dataset.train.gather(np.arange(min(count, len(dataset.train)))))
    return ToInput(dataset.preprocessing(), device)(pixels.to(device))


def recipe_of(config: RunConfig, dataset: Dataset, device: torch.device) -> Recipe:
    weights = class_weights(config.train.class_weights, dataset.train.labels, dataset.classes)
    on_device = None if weights is None else weights.to(device)
    criterion = build_loss(config.train, config.regularize.label_smoothing, on_device)
    return Recipe(criterion, config.regularize, config.train.precision)


def measure_step(
    config: RunConfig, dataset: Dataset, model: nn.Module, device: torch.device, finetuning: Finetuning | None
) -> tuple[Variant, float, tuple[str, ...]]:
    """The fastest way to compute a step, an upper estimate of the seconds for an epoch of such steps, and notes.

    A step takes images, or where `transfer.cache_stages` is on, outputs of the stages that stay frozen.

    A way that was once chosen on this machine for the same network, sizes and threads is chosen again unless another
    one is clearly faster, so that repeating a command gives the same numbers although times vary, and a choice that was
    made while the machine had other work does not last.
    """
    asked = config.train.precision
    layouts = [config.train.layout] if config.train.layout != AUTO else ["contiguous", "channels_last"]
    if device.type == "cpu" and (unsafe := unsafe_channels_last(model)):
        # Do not even measure it: because of oneDNN issue 6035, gradients would be wrong or the process would crash.
        if config.train.layout == "channels_last":
            raise UserError(
                f"--train.layout channels_last is unsafe on the CPU for {unsafe[0]}: use contiguous or auto"
            )
        layouts = ["contiguous"]
    ways = variants(layouts, asked, device)
    question = [config.model.model_dump(mode="json"), repr(model), config.train.batch, config.train.threads, ways]
    question += [device.type, torch.__version__, config.data.image_size, config.data.channels]
    to_last_phase(model, finetuning)  # parameters that stay frozen need no backward pass
    if finetuning:
        question.append(config.transfer.model_dump(mode="json", include={"freeze", "unfreeze"}))
    division = None
    if config.transfer.cache_stages and finetuning:
        division = divide(model, finetuning, first_images(dataset, 2, torch.device("cpu")))
        question.append(division)
    remembered = cache_folder(config.data) / "steps" / f"{hashlib.sha256(repr(question).encode()).hexdigest()[:24]}.txt"
    before = None
    if len(ways) > 1 and remembered.exists():
        known = remembered.read_text(encoding="utf-8").split()
        before = next((way for way in ways if list(way) == known), None)
    # What has no instructions of its own is as a rule slower than float32: how much slower is measured beside it.
    doubtful = asked == BFLOAT16 and not has_bfloat16(device)
    measured = [*ways, Variant(ways[-1].layout, FLOAT32)] if doubtful else ways
    most = MEASURED_PIXELS // max(2, len(measured)) // math.prod(hw(dataset.preprocessing().image_size))
    images = first_images(dataset, min(config.train.batch, max(2, most)), device)
    labels = torch.from_numpy(dataset.train.labels[: len(images)]).to(device)
    network, inputs = model.to(device), images
    if division:
        network, inputs = division.rest(model), division.maps(model, images)
    recipe = recipe_of(config, dataset, device)
    # Measuring for long pays only if there is a choice of ways and some epochs train on images.
    pays = len(ways) > 1 and image_epochs(config, finetuning) > 0
    budgets = [CHOICE_SECONDS if pays and not before else ESTIMATE_SECONDS, CHOICE_SECONDS]
    for budget in budgets:
        times = seconds_per_step(network, Batch(inputs, labels), recipe.loss, measured, device, budget)
        chosen = fastest({way: times[way] for way in ways}, before)
        if chosen == before or not before:
            break  # what takes the place of an earlier choice is measured for longer first
    if len(ways) > 1:
        with suppress(OSError):  # if the cache cannot be written, the next start measures again
            files.write_text(remembered, " ".join(chosen))
    if config.model.is_library and division is None:
        speeds.remember(cache_folder(config.data), config.model.name, len(images) / times[chosen])
    notes = (_without_instructions(times[chosen] / times[measured[-1]], device),) if doubtful else ()
    return chosen, times[chosen] / len(images) * len(dataset.train), notes


def _without_instructions(ratio: float, device: torch.device) -> str:
    return (
        f"train.precision bfloat16: this {device.type} device has no instructions for it: a step takes {ratio:.1f} "
        "times as long as in float32, as measured"
    )
