"""Builds the parts of a new or resumed run from its config: data, device, model, loss, optimiser. Trains nothing."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convsmith import files, records, rundir
from convsmith.config import RunConfig, differences, read_run_config, unused
from convsmith.contracts import OWN, Batch, InputSpec
from convsmith.data.config import AugmentConfig, DataConfig
from convsmith.data.dataset import Dataset, Subset, open_dataset
from convsmith.data.preprocess import ToInput
from convsmith.data.sampler import steps_per_epoch
from convsmith.data.sources import SOURCES, Source, cache_folder
from convsmith.errors import UserError
from convsmith.events import TrainingStarted
from convsmith.nets.blocks import unsafe_channels_last
from convsmith.nets.build import build
from convsmith.nets.convnet import ConvNet
from convsmith.nets.init import whiten
from convsmith.nets.shapes import Estimate, LayerRow, estimate, totals, trace
from convsmith.optim.config import OPTIMIZERS, OptimConfig
from convsmith.optim.optimizers import DECAY, Group, build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.prediction.model_file import FORMATS, ModelCard
from convsmith.rundir import RunDir
from convsmith.runtime import environment, keep_freed_memory, seed_everything, select_device, set_threads
from convsmith.tracking import csv
from convsmith.training import checkpoint
from convsmith.training.layout import seconds_per_step
from convsmith.training.loss import balanced_weights, build_loss
from convsmith.training.own import OptimizerFactory, own_optimizer, own_settings, refuse_unfit
from convsmith.training.resolve import Facts, resolve
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe
from convsmith.transfer import weights
from convsmith.transfer.features import PASS_BATCH, FrozenFeatures
from convsmith.transfer.unfreezing import Finetuning, plan

WHITENED_IMAGES = 500
CLEAN_IMAGES = 1_000  # the largest number of train images that are scored without augmentation
SMALL_STEP = 100_000_000  # MACs per batch, which take a few milliseconds on one core
CHOICE_SECONDS, ESTIMATE_SECONDS = 2.0, 0.2  # for choosing a layout by measurement; for measuring a step only
MEASURED_PIXELS = 2**20  # pixels per measured batch at most: 20 photographs of 224 x 224 show which layout is faster
CROP_HEADROOM = 1.15  # working size / image size for random resized crops


@dataclass(frozen=True)
class Parts:
    """Objects that Python users may pass in instead of a name in the config."""

    source: Source | None = None
    module: nn.Module | None = None
    optimizer: OptimizerFactory | None = None


NO_PARTS = Parts()


@dataclass
class Experiment:
    """The parts of one run; `config` is resolved, so that nothing in it is left to be chosen."""

    run: RunDir
    config: RunConfig
    dataset: Dataset
    device: torch.device
    state: TrainState
    recipe: Recipe
    card: ModelCard
    layers: list[LayerRow]
    seconds_per_epoch: float | None = None  # expected time of an epoch on images; None if it was not measured
    notes: tuple[str, ...] = ()  # sentences that the user should read before the first step
    features: FrozenFeatures | None = None  # set while only the head is trained, on these features

    @cached_property
    def clean_sample(self) -> Subset:
        """Train images that are scored without augmentation, in eval mode; the same ones in every run."""
        return self.dataset.train.sample(CLEAN_IMAGES)

    @property
    def image_epochs(self) -> int:
        """The number of epochs that train on images; the others train on features that were computed once."""
        return image_epochs(self.config, self.state.finetuning)

    @property
    def to_input(self) -> ToInput:
        return self.card.to_input(self.device)

    @property
    def steps(self) -> int:
        return steps_per_epoch(len(self.dataset.train), self.config.train.batch_size)

    @property
    def needs(self) -> Estimate:
        """The expected memory. For the user's own optimiser, two values per parameter are assumed."""
        if not self.image_epochs:  # one pass through the frozen backbone, then the head is trained on its features
            return estimate(self.layers, batch=PASS_BATCH, state_per_parameter=0, backward=False)
        kept = 2 if self.config.optim.is_own else OPTIMIZERS[self.config.optim.name].state_per_parameter
        return estimate(
            self.layers, batch=self.config.train.batch_size, state_per_parameter=kept + bool(self.config.train.ema)
        )

    def save(self, best: bool = False) -> None:
        """Write a checkpoint as the last one, and if it is the `best`, also as that."""
        metadata = self.state.metadata() | {"config": self.config.model_dump(mode="json")}
        if self.config.optim.is_own:  # the config does not describe it
            metadata["own_optimizer"] = own_settings(self.state.optimizer)
        checkpoint.write(self.run.checkpoints, self.state.tensors(), metadata, best)


@dataclass(frozen=True)
class Prepared:
    """Data, device and initial weights of a run, with its resolved config."""

    config: RunConfig
    dataset: Dataset
    device: torch.device
    model: nn.Module
    finetuning: Finetuning | None
    seconds_per_epoch: float | None  # expected time of an epoch; None if it was not measured
    notes: tuple[str, ...] = ()


def prepare(
    config: RunConfig,
    parts: Parts = NO_PARTS,
    progress: Callable[[int, int], None] | None = None,
    splits: Mapping[str, Iterable[str]] | None = None,
    measured: bool = False,
) -> Prepared:
    """Open the data, build the network, load its weights, choose the memory layout; writes no run directory.

    `progress(done, total)` is called while images are decoded for the first time. `splits` (ids by split)
    replaces the splits that the config describes. A `measured` config contains its layout already.
    """
    given = weights.locate(config, parts.module is not None)
    dataset, device = _open(config, parts, progress, given.spec if given else None)
    if splits is not None:
        dataset = dataset.with_splits(splits)
    facts = _facts(config, dataset, device, parts, given)
    resolved = resolve(config, facts)
    model = _model(resolved, dataset, parts)
    if resolved.model.whiten and isinstance(model, ConvNet) and not given:
        whiten(model.first_convolution, _first_images(dataset, WHITENED_IMAGES, torch.device("cpu")))
    notes = (*(weights.load(given, model, dataset) if given else weights.adapted(model)), *dataset.notes)
    finetuning = plan(model, resolved.transfer, resolved.train.epochs)
    if parts.optimizer is not None:
        facts = replace(facts, own_optimizer=_own(parts.optimizer, model, finetuning))
        notes = (*notes, *_unused_keys(config.optim))
    notes = (*notes, *unused(resolve(config, facts)))
    _refuse_single_images(model, finetuning, resolved.train.batch_size, dataset)
    seconds = None
    if not measured:
        if (
            config.train.threads is None
            and device.type == "cpu"
            and _is_small(model, dataset, resolved.train.batch_size)
        ):
            facts = replace(facts, threads=set_threads(1))
        layout, seconds = _measure(resolve(config, facts), dataset, model, device, finetuning)
        facts = replace(facts, layout=layout)
    resolved = resolve(config, facts)
    assert resolved.train.layout != "auto", "a measured config names its layout"
    return Prepared(resolved, dataset, device, model, finetuning, seconds, notes)


def _facts(
    config: RunConfig, dataset: Dataset, device: torch.device, parts: Parts, given: weights.Weights | None = None
) -> Facts:
    """The facts that resolve the config before the layout is measured; sets torch's threads."""
    return Facts(
        data=dataset.config,
        train_images=len(dataset.train),
        device=device.type,
        threads=set_threads(config.train.threads),
        model=given.model if given else None,
        weights=given.path if given else None,
        own_module=None if parts.module is None else type(parts.module).__name__,
    )


def _groups(model: nn.Module, finetuning: Finetuning | None) -> list[Group]:
    return finetuning.groups(model) if finetuning else parameter_groups(model)


def _own(factory: OptimizerFactory, model: nn.Module, finetuning: Finetuning | None) -> str:
    """The class name of the user's own optimiser, which the factory must be able to build."""
    return type(own_optimizer(factory, _groups(model, finetuning))).__name__


def _unused_keys(optim: OptimConfig) -> list[str]:
    """Sentences on settings of the section that have no effect with the user's own optimiser."""
    if optim.is_own:
        return []
    default = OptimConfig()
    set_keys = [key for key in OptimConfig.model_fields if getattr(optim, key) != getattr(default, key)]
    return [f"optim.{key} has no effect, since the optimiser is your own" for key in set_keys]


def _is_small(model: nn.Module, dataset: Dataset, batch_size: int) -> bool:
    """Whether a step is so little work that threads would spend more time waiting for each other than working.

    Beside another busy process, such a step takes 20 times as long on two threads as on one.
    """
    seen = dataset.preprocessing()
    work = totals(trace(model, seen.channels, seen.image_size)).macs * batch_size
    return work < SMALL_STEP


def _refuse_single_images(model: nn.Module, finetuning: Finetuning | None, batch_size: int, dataset: Dataset) -> None:
    """Raise UserError if batches must consist of one image, on which the network's batch norm cannot be trained."""
    images = len(dataset.train)
    if images > 1 and batch_size > 1:  # then `batch_positions` never yields a batch of one image
        return
    network = copy.deepcopy(model).train()
    if finetuning:
        finetuning.apply(network, len(finetuning.phases) - 1)
        finetuning.frozen_to_eval(network)
    example = next(network.parameters())
    one = _first_images(dataset, 1, example.device).to(example.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network(one)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        fix = "set train.batch_size to 2 or more" if images > 1 else "there is only one train image: give more"
        raise UserError(f"batch norm cannot be trained on batches of one image: {fix}") from None


def image_epochs(config: RunConfig, finetuning: Finetuning | None) -> int:
    """The number of epochs of a run that train on images rather than on features."""
    if finetuning is None or not weights.caches_features(config):
        return config.train.epochs
    first = finetuning.image_epoch
    return 0 if first is None else config.train.epochs - first


def start(prepared: Prepared, runs_dir: Path, name: str | None = None, parts: Parts = NO_PARTS) -> Experiment:
    """Create a new run with its config, environment, splits and first checkpoint, before the first step."""
    config, dataset = prepared.config, prepared.dataset
    rundir.refuse_taken(runs_dir, name)
    with rundir.draft(runs_dir) as run:
        experiment = _assemble(run, config, dataset, prepared.device, prepared.model, prepared.finetuning, parts)
        experiment.seconds_per_epoch, experiment.notes = prepared.seconds_per_epoch, prepared.notes
        record = environment() | {"device": config.train.device, "threads": config.train.threads}
        records.write(run.environment, records.Environment, record)
        records.write(run.splits, records.Splits, dataset.splits_record())
        if dataset.failures:
            skipped = {"files": [failure._asdict() for failure in dataset.failures]}
            records.write(run.skipped, records.Skipped, skipped)
        files.write_text(run.config, config.to_yaml())
        run.log(f"started: {len(dataset.train)} train images, {len(dataset.val)} val images")
        for note in prepared.notes:
            run.log(note)
        experiment.save()
        experiment.run = rundir.publish(run, name, default_name(config))
    return experiment


def resume(run: RunDir, parts: Parts = NO_PARTS) -> Experiment:
    """Restore a stopped run from its newest intact checkpoint."""
    config = read_run_config(run.config)
    if config.optim.is_own and parts.optimizer is None:
        raise UserError(
            f"the optimiser of run '{run.path}' ({config.optim.name.removeprefix(OWN)}) is your own: pass it "
            "in, convsmith.resume(run, optimizer=...)"
        )
    if parts.module is not None and config.model.name != (own := OWN + type(parts.module).__name__):
        fix = "pass in the one that it was started with" if config.model.is_own else "leave model out"
        raise UserError(f"the network of run '{run.path}' is {config.model.name}, not {own}: {fix}")
    dataset, device = _open(config, parts)
    dataset = dataset.as_recorded(records.read(run.splits, records.Splits), str(run.path))
    config = resolve(config, _facts(config, dataset, device, parts))
    tensors, metadata, remark = checkpoint.read_newest(run.checkpoints)
    is_first_edition = metadata["format_version"] == 1
    changed = _changed(metadata.get("config", {}), config)
    model = _model(config, dataset, parts)
    finetuning = plan(model, config.transfer, config.train.epochs)
    if parts.optimizer is not None:
        own = OWN + _own(parts.optimizer, model, finetuning)
        if is_first_edition and not config.optim.is_own:  # that edition did not mark it
            config = config.model_copy(update={"optim": OptimConfig(name=own)})
            files.write_text(run.config, config.to_yaml())
        if own != config.optim.name:
            fix = "pass in the one that it was started with" if config.optim.is_own else "leave optimizer out"
            raise UserError(f"the optimiser of run '{run.path}' is {config.optim.name}, not {own}: {fix}")
    experiment = _assemble(run, config, dataset, device, model, finetuning, parts)
    experiment.state.load(tensors, metadata)
    if is_first_edition and parts.optimizer is None and not _fits(experiment, tensors, metadata, changed):
        raise UserError(
            f"run '{run.path}' was not trained with {config.optim.name}, which its config.yaml names, but with "
            "your own optimiser: pass it in, convsmith.resume(run, optimizer=...)"
        )
    notes = [remark] if remark else []
    if altered := _altered(metadata.get("own_optimizer"), experiment.state.optimizer):
        notes.append(f"the optimiser has changed since the start ({altered}): the rest of the run follows it")
    if changed:
        notes.append(f"config.yaml has changed since the start ({changed}): the rest of the run follows it")
    if (rows := csv.cut_back(run.metrics, experiment.state.epoch)) < experiment.state.epoch:
        notes.append(f"metrics.csv has lost rows: {rows} of {experiment.state.epoch} epochs are left")
    experiment.notes = tuple(notes)
    run.log(": ".join([f"resumed at step {experiment.state.step}", *notes]))
    return experiment


def _fits(
    experiment: Experiment, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], changed: str
) -> bool:
    """Whether the state and the learning rates in a checkpoint of the first edition fit the optimiser that its config
    names. That edition named adam for all of the users' own optimisers.
    """
    config, state = experiment.config, experiment.state
    if not state.step:
        return True
    weight = nn.Parameter(torch.ones(1))
    like = build_optimizer([{"name": DECAY, "params": [weight]}], config.optim, config.regularize, torch.device("cpu"))
    weight.grad = torch.ones(1)
    like.step()
    kept = {name.rpartition(":")[2] for name in tensors if name.startswith("optimizer.")}
    if kept != {key for key, value in like.state[weight].items() if value is not None}:
        return False
    # The rates can be compared only if nothing else has changed since, including the batches of an epoch.
    if changed or config.schedule.name == "plateau" or config.train.batch_size == 2:
        return True
    factor = state.schedule.factor(state.step - 1)
    expected = [group["base_lr"] * factor for group in state.optimizer.param_groups]
    return bool(np.allclose(metadata["rates"], expected, rtol=1e-6, atol=0))


def _altered(before: Sequence[Mapping[str, Any]] | None, optimizer: torch.optim.Optimizer) -> str:
    """The settings in which the user's own optimiser differs from those in a checkpoint, as text."""
    if before is None:  # a built-in optimiser, or a checkpoint without such a record
        return ""
    changed = differences([{"groups": list(before)}, {"groups": own_settings(optimizer)}])
    return ", ".join(f"{key} {then} -> {now}" for key, (then, now) in changed)


def _changed(before: Mapping[str, Mapping[str, Any]], config: RunConfig) -> str:
    """The settings in which `config` differs from an earlier one, as text, except device, cache and tracking."""
    now = config.model_dump(mode="json")
    return ", ".join(
        f"{section}.{key} {value} -> {now[section].get(key)}"
        for section, values in before.items()
        if section != "track"
        for key, value in values.items()
        if now[section].get(key) != value and (section, key) not in (("train", "device"), ("data", "cache"))
    )


def _open(
    config: RunConfig,
    parts: Parts,
    progress: Callable[[int, int], None] | None = None,
    spec: InputSpec | None = None,
) -> tuple[Dataset, torch.device]:
    """Open the data and select the device that the config names."""
    if config.optim.is_own and parts.optimizer is None:
        raise UserError(
            f"optim.name {config.optim.name} stands for your own optimiser: pass it in, "
            "convsmith.train(..., optimizer=...)"
        )
    device = select_device(config.train.device)
    if device.type == "cpu":
        keep_freed_memory()
    data = config.data
    if parts.source is None and Path(data.source).exists() and data.source not in SOURCES:
        # The path must be absolute, so that the run finds its data from any folder.
        data = data.model_copy(update={"source": str(Path(data.source).resolve())})
    headroom = CROP_HEADROOM if config.augment.random_resized_crop else 1.0
    dataset = open_dataset(data, progress, parts.source, headroom, spec)
    _refuse_blank(config.augment, dataset.config)
    return dataset, device


def _refuse_blank(augment: AugmentConfig, data: DataConfig) -> None:
    """Raise UserError for an augmentation that would leave nothing of an image."""
    assert data.image_size is not None
    assert data.working_size is not None
    for name, pixels, side in (
        ("cutout", augment.cutout, data.image_size),
        ("shift", augment.shift_pixels(data.working_size), data.working_size),
    ):
        if pixels >= side:
            raise UserError(f"augment.{name} {pixels} leaves nothing of an image of {side} x {side} pixels: lower it")


def _model(config: RunConfig, dataset: Dataset, parts: Parts) -> nn.Module:
    """The network with its initial weights, which depend only on `train.seed`."""
    seed_everything(config.train.seed)
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


def _assemble(
    run: RunDir,
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    model: nn.Module,
    finetuning: Finetuning | None,
    parts: Parts,
) -> Experiment:
    """Build model, loss, optimiser and schedule from a resolved config, before the first step."""
    preprocessing = dataset.preprocessing()
    layers = trace(model, preprocessing.channels, preprocessing.image_size)
    model = model.to(device=device, memory_format=FORMATS[config.train.layout])  # type: ignore[call-overload]
    groups = _groups(model, finetuning)
    if parts.optimizer:
        optimizer = own_optimizer(parts.optimizer, groups)
    else:
        optimizer = build_optimizer(groups, config.optim, config.regularize, device)
    steps = steps_per_epoch(len(dataset.train), config.train.batch_size)
    schedule = Schedule(config.schedule, steps, config.train.epochs)
    return Experiment(
        run=run,
        config=config,
        dataset=dataset,
        device=device,
        state=new_state(model, keep_base_rates(optimizer), schedule, config.train, device, finetuning),
        recipe=_recipe(config, dataset, device),
        card=ModelCard(
            architecture=None if parts.module is not None else config.model,
            classes=dataset.classes,
            preprocessing=preprocessing,
            layout=config.train.layout,
        ),
        layers=layers,
    )


def _first_images(dataset: Dataset, count: int, device: torch.device) -> torch.Tensor:
    """The first train images as network inputs, without augmentation: float [N, C, H, W]."""
    pixels = torch.from_numpy(dataset.train.gather(np.arange(min(count, len(dataset.train)))))
    return ToInput(dataset.preprocessing(), device)(pixels.to(device))


def _recipe(config: RunConfig, dataset: Dataset, device: torch.device) -> Recipe:
    weights = None
    if config.train.class_weights == "balanced":
        weights = balanced_weights(dataset.train.labels, len(dataset.classes)).to(device)
    return Recipe(build_loss(config.train, config.regularize.label_smoothing, weights), config.regularize)


def _measure(
    config: RunConfig, dataset: Dataset, model: nn.Module, device: torch.device, finetuning: Finetuning | None
) -> tuple[str, float]:
    """The faster memory layout, and an upper estimate of the seconds for an epoch on images with it.

    A layout that was once chosen on this machine for the same network, sizes and threads is chosen again, so that
    repeating a command gives the same numbers although times vary.
    """
    layouts = [config.train.layout] if config.train.layout != "auto" else ["contiguous", "channels_last"]
    if device.type == "cpu" and (unsafe := unsafe_channels_last(model)):
        # Do not even measure it: because of oneDNN issue 6035, gradients would be wrong or the process would crash.
        if config.train.layout == "channels_last":
            raise UserError(f"train.layout=channels_last is unsafe on the CPU for {unsafe[0]}: use contiguous or auto")
        layouts = ["contiguous"]
    question = [config.model.model_dump(mode="json"), repr(model), config.train.batch_size, config.train.threads]
    question += [device.type, torch.__version__, config.data.image_size, config.data.channels]
    if finetuning:
        finetuning.apply(model, len(finetuning.phases) - 1)  # parameters that stay frozen need no backward pass
        question.append(config.transfer.model_dump(mode="json", include={"freeze", "unfreeze"}))
    remembered = (
        cache_folder(config.data) / "layouts" / f"{hashlib.sha256(repr(question).encode()).hexdigest()[:24]}.txt"
    )
    if len(layouts) > 1 and remembered.exists():
        layouts = [known for known in layouts if known == remembered.read_text(encoding="utf-8")] or layouts
    count = min(config.train.batch_size, max(2, MEASURED_PIXELS // dataset.preprocessing().image_size ** 2))
    images = _first_images(dataset, count, device)
    labels = torch.from_numpy(dataset.train.labels[: len(images)]).to(device)
    recipe = _recipe(config, dataset, device)
    # Measuring for long pays only if there is a choice of layouts and some epochs train on images.
    pays = len(layouts) > 1 and image_epochs(config, finetuning) > 0
    budget = CHOICE_SECONDS if pays else ESTIMATE_SECONDS
    times = seconds_per_step(model.to(device), Batch(images, labels), recipe.loss, layouts, device, budget)
    layout = min(times, key=lambda name: times[name])
    if len(layouts) > 1:
        with suppress(OSError):  # if the cache cannot be written, the next start measures again
            files.write_text(remembered, layout)
    return layout, times[layout] / len(images) * len(dataset.train)


def opening(experiment: Experiment) -> TrainingStarted:
    """The event that describes a training before its next step."""
    config, dataset, data = experiment.config, experiment.dataset, experiment.dataset.config
    assert data.image_size is not None
    assert data.working_size is not None
    assert data.channels is not None
    assert config.train.threads is not None
    return TrainingStarted(
        directory=experiment.run.path,
        source=data.source,
        train=len(dataset.train),
        val=len(dataset.val),
        test=dataset.test_size,
        skipped=len(dataset.failures),
        classes=len(dataset.classes),
        image_size=data.image_size,
        working_size=data.working_size,
        channels=data.channels,
        resize=data.resize,
        model=config.model.name,
        parameters=sum(parameter.numel() for parameter in experiment.state.model.parameters()),
        macs=totals(experiment.layers).macs,
        device=config.train.device,
        threads=config.train.threads,
        layout=config.train.layout,
        memory=experiment.needs.memory,
        seconds_per_epoch=experiment.seconds_per_epoch,
        epochs=config.train.epochs,
        image_epochs=experiment.image_epochs,
        steps=experiment.steps,
        step=experiment.state.step,
        notes=experiment.notes,
    )


def default_name(config: RunConfig) -> str:
    """The name of an unnamed run, without its number: data and model."""
    parts = (Path(config.data.source).name or "data", config.model.name)
    return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts)
