"""Restores a stopped run from its newest intact checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from convsmith import files, records
from convsmith.config import RunConfig, differences, read_run_config
from convsmith.contracts import OWN, own_name
from convsmith.errors import UserError
from convsmith.launch import place
from convsmith.memory import explain_memory_errors
from convsmith.optim.config import OptimConfig
from convsmith.optim.optimizers import DECAY, build_optimizer
from convsmith.precision import BFLOAT16, has_bfloat16
from convsmith.prediction.evaluate import refuse_lost
from convsmith.rundir import RunDir
from convsmith.terminal import plural
from convsmith.tracking import csv
from convsmith.training import checkpoint
from convsmith.training.config import AUTO, OFF
from convsmith.training.experiment import Experiment
from convsmith.training.gather import build_network, gather_facts, open_data
from convsmith.training.own import NO_PARTS, Parts, own_settings
from convsmith.training.resolve import resolve
from convsmith.training.setup import assemble, layers_of, own_class
from convsmith.transfer.unfreezing import plan


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
        own = OWN + own_class(parts.optimizer, model, finetuning)
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
