"""Builds the parts of a new run: data, model, loss, optimiser, state. Gathers no facts and trains nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from convsmith import files, records, rundir
from convsmith.config import RunConfig, unused
from convsmith.data.dataset import Dataset
from convsmith.data.sampler import steps_per_epoch
from convsmith.errors import UserError
from convsmith.memory import explain_memory_errors
from convsmith.nets.convnet import ConvNet
from convsmith.nets.init import whiten
from convsmith.nets.shapes import LayerRow, trace
from convsmith.optim.config import OptimConfig
from convsmith.optim.optimizers import Group, build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.precision import FLOAT32
from convsmith.prediction.model_file import FORMATS, ModelCard
from convsmith.rundir import RunDir
from convsmith.runtime import environment, set_threads
from convsmith.training import compiled, footprint
from convsmith.training.config import AUTO, OFF
from convsmith.training.experiment import CLEAN_IMAGES, Experiment
from convsmith.training.feed import Feed, way_of
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
from convsmith.training.own import NO_PARTS, OptimizerFactory, Parts, own_optimizer
from convsmith.training.resolve import resolve
from convsmith.training.state import new_state
from convsmith.transfer import weights
from convsmith.transfer.config import NO_WEIGHTS
from convsmith.transfer.unfreezing import Finetuning, plan


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
            facts = replace(facts, own_optimizer=own_class(parts.optimizer, model, finetuning))
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
            if number := image_epochs(config, finetuning):
                seconds *= resolved.train.full_sized(number, dataset.preprocessing().image_size) / number
        else:  # what was measured before there were these keys was neither compiled nor in another precision
            facts = replace(facts, compile=OFF if config.train.compile == AUTO else None)
            facts = replace(facts, precision=FLOAT32 if config.train.precision == AUTO else None)
        resolved = resolve(config, facts)
        assert AUTO not in (resolved.train.layout, resolved.train.precision), "a measured config names both"
        return Prepared(resolved, dataset, device, model, layers, finetuning, seconds, notes)


def _groups(model: nn.Module, finetuning: Finetuning | None) -> list[Group]:
    return finetuning.groups(model) if finetuning else parameter_groups(model)


def own_class(factory: OptimizerFactory, model: nn.Module, finetuning: Finetuning | None) -> str:
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


def default_name(config: RunConfig) -> str:
    """The name of an unnamed run, without its number: the data, then the transfer recipe or else the model."""
    return rundir.default_name(config.data.short_name, config.transfer.method or config.model.name)
