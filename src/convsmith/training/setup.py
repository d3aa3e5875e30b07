"""Builds the parts of a new or resumed run: model, loss, optimiser, state. Gathers no facts and trains nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convsmith import files, records, rundir
from convsmith.config import RunConfig, differences, read_run_config, unused
from convsmith.contracts import OWN, own_name
from convsmith.data.dataset import Dataset, Subset
from convsmith.data.preprocess import ToInput
from convsmith.data.sampler import steps_per_epoch
from convsmith.errors import UserError
from convsmith.events import TrainingStarted
from convsmith.launch import place
from convsmith.memory import explain_memory_errors
from convsmith.nets.convnet import ConvNet
from convsmith.nets.init import whiten
from convsmith.nets.shapes import Estimate, LayerRow, totals, trace
from convsmith.optim.config import OptimConfig
from convsmith.optim.optimizers import DECAY, Group, build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.precision import BFLOAT16, FLOAT32, has_bfloat16
from convsmith.prediction.evaluate import refuse_lost
from convsmith.prediction.model_file import FORMATS, ModelCard, save_model
from convsmith.rundir import RunDir
from convsmith.runtime import environment, set_threads
from convsmith.terminal import plural
from convsmith.tracking import csv
from convsmith.tracking.wandb import watched
from convsmith.training import checkpoint, compiled, footprint
from convsmith.training.config import AUTO, OFF
from convsmith.training.feed import WORDS, Feed, way_of
from convsmith.training.gather import (
    WHITENED_IMAGES,
    build_network,
    first_images,
    gather_facts,
    image_epochs,
    is_small,
    measure_step,
    open_data,
    recipe_of,
    refuse_rigid,
    refuse_single_images,
    to_last_phase,
    without_val,
)
from convsmith.training.kept import without_stages
from convsmith.training.own import NO_PARTS, OptimizerFactory, Parts, own_optimizer, own_settings
from convsmith.training.ranks import ALONE, Ranks
from convsmith.training.resolve import resolve
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe
from convsmith.transfer import weights
from convsmith.transfer.config import NO_WEIGHTS
from convsmith.transfer.features import FrozenFeatures
from convsmith.transfer.unfreezing import Finetuning, plan

CLEAN_IMAGES = 1_000  # the largest number of train images that are scored without augmentation


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
    feed: Feed
    seconds_per_epoch: float | None = None  # expected mean time of the epochs on images; None: not measured
    notes: tuple[str, ...] = ()  # sentences that the user should read before the first step
    features: FrozenFeatures | None = None  # on which is trained at present; None: on images
    ranks: Ranks = ALONE
    _parts: dict[Subset, Subset] = field(default_factory=dict)

    @cached_property
    def clean_sample(self) -> Subset:
        """Train images that are scored without augmentation, in eval mode; the same ones in every run."""
        return self.dataset.train.sample(CLEAN_IMAGES)

    def part_of(self, subset: Subset) -> Subset:
        """This rank's share of the images; the same object each time, of which a copy may lie on the device."""
        if self.ranks.alone:
            return subset
        return self._parts.setdefault(subset, subset.at(self.ranks.share(np.arange(len(subset)))))

    @property
    def image_epochs(self) -> int:
        """The number of epochs that train on images; the others train on features that were computed once."""
        return image_epochs(self.config, self.state.finetuning)

    @property
    def to_input(self) -> ToInput:
        return self.card.to_input(self.device)

    @property
    def steps(self) -> int:
        return steps_per_epoch(len(self.dataset.train), self.config.train.batch)

    @property
    def needs(self) -> Estimate:
        """The expected memory."""
        return footprint.needs(self.config, self.layers, self.state.finetuning)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint as the last one, and if it is the `best`, also as that; the first rank does."""
        if not self.ranks.first:
            return
        metadata = self.state.metadata() | {"config": self.config.model_dump(mode="json"), "ranks": self.ranks.size}
        if self.config.optim.is_own:  # the config does not describe it
            metadata["own_optimizer"] = own_settings(self.state.optimizer)
        checkpoint.write(self.run.checkpoints, self.state.tensors(), metadata, best)

    def save_model(self) -> None:
        """Write the weights of the present epoch as the run's model; the first rank does."""
        if self.ranks.first:
            save_model(self.run.model, self.state.evaluated, self.card, self.config.train.temperature)


@dataclass(frozen=True)
class Prepared:
    """Data, device and initial weights of a run, with its resolved config."""

    config: RunConfig
    dataset: Dataset
    device: torch.device
    model: nn.Module
    layers: list[LayerRow]
    finetuning: Finetuning | None
    seconds_per_epoch: float | None  # expected mean time of the epochs; None if it was not measured
    notes: tuple[str, ...] = ()


def prepare(
    config: RunConfig,
    parts: Parts = NO_PARTS,
    progress: Callable[[int, int], None] | None = None,
    splits: Mapping[str, Iterable[str]] | None = None,
    measured: bool = False,
    data_hash: str | None = None,
) -> Prepared:
    """Open the data, build the network, load its weights, choose how to compute a step; writes no run directory.

    `progress(done, total)` is called while images are decoded for the first time. `splits` (ids by split)
    replaces the splits that the config describes. A `measured` config contains its layout and its
    precision. With `data_hash` UserError is raised unless the data are those of this hash.
    """
    with explain_memory_errors("while the data were opened", footprint.fix(config)):
        given = weights.locate(config, parts.module is not None)
        if given is None and config.transfer.weights != NO_WEIGHTS:  # the library has none
            config = config.with_values(transfer={"weights": NO_WEIGHTS})
        dataset, device = open_data(config, parts, progress, given.spec if given else weights.own_size(config))
        if data_hash is not None:
            recorded = dataset.of_hash(data_hash)
            if recorded is None:
                raise UserError(
                    f"the data '{config.data.title}' has changed since the study was started: start a new study"
                )
            dataset = recorded
        if splits is not None:
            dataset = dataset.with_splits(splits)
        alone = without_val(config, dataset)
        facts = gather_facts(config, dataset, device, parts, given)
        resolved = resolve(config, facts)
    with explain_memory_errors("while the training was prepared", footprint.fix(resolved)):
        model = build_network(resolved, dataset, parts)
        if resolved.model.whiten and isinstance(model, ConvNet) and not given:
            whiten(model.first_convolution, first_images(dataset, WHITENED_IMAGES, torch.device("cpu")))
        notes = (*(weights.load(given, model, dataset) if given else weights.adapted(model)), *dataset.notes, *alone)
        finetuning = plan(model, resolved.transfer, resolved.train.epochs)
        if resolved.transfer.cache_stages:
            leaves_out, reasons = without_stages(resolved, dataset, model, finetuning)
            config = config.with_values(transfer={"cache_stages": False}) if leaves_out else config
            notes += reasons
        if parts.optimizer is not None:
            facts = replace(facts, own_optimizer=_own(parts.optimizer, model, finetuning))
            notes = (*notes, *_unused_keys(config.optim))
        notes = (*notes, *unused(resolve(config, facts)))
        layers = layers_of(model, dataset)
        if config.train.batch_size == AUTO:
            to_last_phase(model, finetuning)
            size, why = footprint.fitting_batch(resolve(config, facts), layers, finetuning, dataset, model, device)
            facts, notes = replace(facts, batch_size=size), (*notes, why)
        resolved = resolve(config, facts)
        notes += footprint.against_available(resolved, layers, finetuning, len(dataset.train), device)
        if resolved.train.temperature != 1 and not isinstance(getattr(model, "head", None), nn.Linear):
            raise UserError("train.temperature divides the weights of a linear head, which your own module has not")
        refuse_single_images(model, finetuning, resolved.train.batch, dataset)
        refuse_rigid(model, resolved.train, dataset.preprocessing())
        seconds = None
        if not measured:
            small = is_small(layers, resolved.train.batch)
            if config.train.threads is None and device.type == "cpu" and small:
                facts = replace(facts, threads=set_threads(1))
            # Small steps are not products above all, and what the user's own operators make of bfloat16 is unknown.
            if config.train.precision == AUTO and (small or parts.module is not None):
                facts = replace(facts, precision=FLOAT32)
            way, seconds, slow = measure_step(resolve(config, facts), dataset, model, device, finetuning)
            facts, notes = replace(facts, layout=way.layout, precision=way.precision), (*notes, *slow)
            mode, said = compiled.choose(resolve(config, facts), dataset, model, device, finetuning, seconds)
            facts, notes = replace(facts, compile=mode), (*notes, *said)
            seconds *= resolved.train.share_of_pixels(dataset.preprocessing().image_size)
        else:  # what was measured before there were these keys was neither compiled nor in another precision
            facts = replace(facts, compile=OFF if config.train.compile == AUTO else None)
            facts = replace(facts, precision=FLOAT32 if config.train.precision == AUTO else None)
        resolved = resolve(config, facts)
        assert AUTO not in (resolved.train.layout, resolved.train.precision), "a measured config names both"
        return Prepared(resolved, dataset, device, model, layers, finetuning, seconds, notes)


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


def start(
    prepared: Prepared,
    runs_dir: Path,
    name: str | None = None,
    parts: Parts = NO_PARTS,
    asked: RunConfig | None = None,
) -> Experiment:
    """Create a new run with its config, environment, splits and first checkpoint, before the first step.

    `asked` is the config before anything was chosen, by which `interrupted.find` knows the run.
    """
    config, dataset = prepared.config, prepared.dataset
    rundir.refuse_taken(runs_dir, name)
    explained = explain_memory_errors("before the first step", footprint.fix(config))
    with explained, rundir.draft(runs_dir) as run:
        model, layers, finetuning = prepared.model, prepared.layers, prepared.finetuning
        experiment = assemble(run, config, dataset, prepared.device, model, layers, finetuning, parts)
        experiment.seconds_per_epoch, experiment.notes = prepared.seconds_per_epoch, prepared.notes
        record = environment() | config.train.model_dump(include={"device", "threads", "precision", "deterministic"})
        record["asked"] = asked.model_dump(mode="json") if asked else {}
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
    """Restore a stopped run, which the caller has locked, from its newest intact checkpoint."""
    with explain_memory_errors(f"while run '{run.path}' was loaded"):
        return _resumed(run, parts)


def _resumed(run: RunDir, parts: Parts) -> Experiment:
    config = read_run_config(run.config)
    if config.optim.is_own and parts.optimizer is None:
        raise UserError(
            f"the optimiser of run '{run.path}' ({config.optim.name.removeprefix(OWN)}) is your own: pass it "
            "in, convsmith.resume(run, optimizer=...)"
        )
    if parts.module is not None and config.model.name != (own := own_name(parts.module)):
        fix = "pass in the one that it was started with" if config.model.is_own else "leave model out"
        raise UserError(f"the network of run '{run.path}' is {config.model.name}, not {own}: {fix}")
    if parts.source is None:
        refuse_lost(config.data, run, f"put them back, or name their new place as data.source in '{run.config}'")
    dataset, device = open_data(config, parts, trained=True)
    dataset = dataset.as_recorded(records.read(run.splits, records.Splits), str(run.path))
    facts = gather_facts(config, dataset, device, parts)
    if config.train.compile == AUTO:  # a run from before there was the key
        facts = replace(facts, compile=OFF)
    config = resolve(config, facts)
    tensors, metadata, remark = checkpoint.read_newest(run.checkpoints)
    is_first_edition = metadata["format_version"] == 1
    changed = _changed(metadata.get("config", {}), config)
    model = build_network(config, dataset, parts)
    finetuning = plan(model, config.transfer, config.train.epochs)
    if parts.optimizer is not None:
        own = OWN + _own(parts.optimizer, model, finetuning)
        if is_first_edition and not config.optim.is_own:  # that edition did not mark it
            config = config.model_copy(update={"optim": OptimConfig(name=own)})
            files.write_text(run.config, config.to_yaml())
        if own != config.optim.name:
            fix = "pass in the one that it was started with" if config.optim.is_own else "leave optimizer out"
            raise UserError(f"the optimiser of run '{run.path}' is {config.optim.name}, not {own}: {fix}")
    experiment = assemble(run, config, dataset, device, model, layers_of(model, dataset), finetuning, parts)
    if is_first_edition and parts.optimizer is None and not _fits(experiment, tensors, metadata, changed):
        raise UserError(
            f"run '{run.path}' was not trained with {config.optim.name}, which its config.yaml names, but with "
            "your own optimiser: pass it in, convsmith.resume(run, optimizer=...)"
        )
    steps = metadata["epoch"] * experiment.steps + metadata["position"]
    if not is_first_edition and not changed and metadata["step"] != steps:  # which divided some epochs otherwise
        raise UserError(
            f"the checkpoint of run '{run.path}' says {metadata['step']} steps, but it is at step {steps} of this "
            "data: start a new run"
        )
    experiment.state.load(tensors, metadata)
    notes = [remark] if remark else []
    if (before := metadata.get("ranks", 1)) != (now := place().size):
        notes.append(
            f"trained by {plural(before, 'rank')} so far, and goes on with {now}: with the same batches, but other "
            "random numbers and sums"
        )
    if altered := _altered(metadata.get("own_optimizer"), experiment.state.optimizer):
        notes.append(f"the optimiser has changed since the start ({altered}): the rest of the run follows it")
    if config.train.precision == BFLOAT16 and not has_bfloat16(device):
        notes.append(
            f"train.precision bfloat16: this {device.type} device has no instructions for it: the run goes on in it, "
            "more slowly than in float32"
        )
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
    if not metadata["step"]:
        return True
    weight = nn.Parameter(torch.ones(1))
    like = build_optimizer([{"name": DECAY, "params": [weight]}], config.optim, config.regularize, torch.device("cpu"))
    weight.grad = torch.ones(1)
    like.step()
    kept = {name.rpartition(":")[2] for name in tensors if name.startswith("optimizer.")}
    if kept != {key for key, value in like.state[weight].items() if value is not None}:
        return False
    # The rates can be compared only if nothing else has changed since, including the batches of an epoch.
    if changed or config.schedule.name == "plateau" or config.train.batch == 2:
        return True
    factor = state.schedule.factor(metadata["step"] - 1)
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
        f"{section}.{key} {value} -> {now.get(section, {}).get(key)}"
        for section, values in before.items()
        if section != "track"
        for key, value in values.items()
        if now.get(section, {}).get(key) != value and (section, key) not in (("train", "device"), ("data", "cache"))
    )


def layers_of(model: nn.Module, dataset: Dataset) -> list[LayerRow]:
    seen = dataset.preprocessing()
    return trace(model, seen.channels, seen.image_size)


def assemble(
    run: RunDir,
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    model: nn.Module,
    layers: list[LayerRow],
    finetuning: Finetuning | None,
    parts: Parts,
) -> Experiment:
    """Build model, loss, optimiser and schedule from a resolved config, before the first step."""
    model = model.to(device=device, memory_format=FORMATS[config.train.layout])  # type: ignore[call-overload]
    groups = _groups(model, finetuning)
    if parts.optimizer:
        optimizer = own_optimizer(parts.optimizer, groups)
    else:
        optimizer = build_optimizer(groups, config.optim, config.regularize, device)
    steps = steps_per_epoch(len(dataset.train), config.train.batch)
    schedule = Schedule(config.schedule, steps, config.train.epochs)
    state = new_state(model, keep_base_rates(optimizer), schedule, config.train, device, finetuning)
    if config.train.compile != OFF:
        state.compiled = compiled.Compiled(model, config.train.compile)
    return Experiment(
        run=run,
        config=config,
        dataset=dataset,
        device=device,
        state=state,
        recipe=recipe_of(config, dataset, device),
        card=ModelCard(
            architecture=None if parts.module is not None else config.model,
            classes=dataset.classes,
            preprocessing=dataset.preprocessing(),
            layout=config.train.layout,
        ),
        layers=layers,
        feed=_feed(config, dataset, device, layers, finetuning),
    )


def _feed(
    config: RunConfig, dataset: Dataset, device: torch.device, layers: list[LayerRow], finetuning: Finetuning | None
) -> Feed:
    """How images reach the device, by what it has left beside the training's own needs."""
    free = footprint.available(device)
    left = None if free is None else free - footprint.needs(config, layers, finetuning).memory
    images = len(dataset.train) + len(dataset.val) + min(CLEAN_IMAGES, len(dataset.train))
    size = math.inf if config.data.stream else images * math.prod(dataset.train.shape)
    return Feed(device, way_of(device, size, left))


def opening(experiment: Experiment) -> TrainingStarted:
    """The event that describes a training before its next step."""
    config, dataset, data = experiment.config, experiment.dataset, experiment.dataset.config
    assert data.image_size is not None
    assert data.working_size is not None
    assert data.channels is not None
    assert config.train.threads is not None
    return TrainingStarted(
        directory=experiment.run.path,
        source=data.title,
        train=len(dataset.train),
        val=len(dataset.val),
        test=dataset.test_size,
        unused=dataset.unused,
        classes=dataset.classes,
        image_size=data.image_size,
        working_size=data.working_size,
        channels=data.channels,
        resize=data.resize,
        model=config.model.name,
        is_own=data.is_own or config.model.is_own,
        parameters=sum(parameter.numel() for parameter in experiment.state.model.parameters()),
        macs=totals(experiment.layers).macs,
        device=config.train.device,
        threads=config.train.threads,
        layout=config.train.layout,
        precision=config.train.precision,
        feed=WORDS[experiment.feed.way],
        memory=experiment.needs.memory,
        seconds_per_epoch=experiment.seconds_per_epoch,
        epochs=config.train.epochs,
        image_epochs=experiment.image_epochs,
        steps=experiment.steps,
        step=experiment.state.step,
        notes=experiment.notes,
        watch=watched(config.track, experiment.run.path),
        keep=config.train.keep,
    )


def default_name(config: RunConfig) -> str:
    """The name of an unnamed run, without its number: the data, then the transfer recipe or else the model."""
    return rundir.default_name(config.data.short_name, config.transfer.method or config.model.name)
