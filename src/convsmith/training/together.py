"""One training in several processes: how the others open what the first one has started or resumed. Trains nothing.

The first rank starts or resumes the run as a process alone does. The others are told its resolved config, its splits
and its state, and open the same data; they read and write nothing of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from convsmith.config import RunConfig, differences, validate
from convsmith.contracts import own_name
from convsmith.data.dataset import Dataset
from convsmith.data.sampler import steps_per_epoch
from convsmith.errors import EndedElsewhere, UserError
from convsmith.rundir import RunDir
from convsmith.runtime import environment
from convsmith.training import setup
from convsmith.training.experiment import Experiment
from convsmith.training.gather import build_network, open_data, refuse_single_images
from convsmith.training.own import Parts
from convsmith.training.ranks import Ranks
from convsmith.training.state import RunningMetrics
from convsmith.transfer.unfreezing import Finetuning, plan


def refuse_different(ranks: Ranks, config: RunConfig | None, parts: Parts) -> None:
    """Raise UserError on the first rank, and EndedElsewhere on the others, unless all were started alike.

    `config` is what the user has set; None where the run has it.
    """
    if ranks.alone:
        return
    here = environment()
    own = [own_name(part) for part in (parts.source, parts.module, parts.optimizer) if part is not None]
    given: dict[str, Any] = {
        "versions": {"python": here["python"], **here["versions"]},
        "call": {"own parts": ", ".join(own), "what": "resume" if config is None else "train"},
        **(config.model_dump(mode="json") if config else {}),
    }
    every = ranks.every_value(given)
    for rank, theirs in enumerate(every):
        if changed := differences([every[0], theirs]):
            if not ranks.first:
                raise EndedElsewhere
            listed = "; ".join(f"{key} is {first} on rank 0 and {other}" for key, (first, other) in changed)
            raise UserError(f"the processes of a training must be started alike, but {listed} on rank {rank}")


def refuse_small(
    ranks: Ranks, config: RunConfig, dataset: Dataset, model: nn.Module, finetuning: Finetuning | None
) -> None:
    """Raise UserError if a batch cannot be divided among the ranks, or the device serves one process alone."""
    if ranks.alone:
        return
    if config.train.device == "mps":
        raise UserError("train.device mps trains in one process: start it without torchrun, or add --device cpu")
    local = ranks.place.local_size
    if config.train.device == "cuda" and local > (there := torch.cuda.device_count()):
        raise UserError(f"{local} processes need as many CUDA devices, but this machine has {there}: start {there}")
    images = len(dataset.train)
    smallest = images // steps_per_epoch(images, config.train.batch)
    if smallest < ranks.size:
        raise UserError(
            f"batches of {smallest} images cannot be divided among {ranks.size} processes: raise train.batch_size "
            f"(now {config.train.batch}; there are {images:,} train images), or start fewer"
        )
    if smallest // ranks.size > 1 or config.train.sync_batch_norm:
        return
    try:
        refuse_single_images(model, finetuning, 1, dataset)
    except UserError:
        raise UserError(
            f"of batches of {smallest} images each of {ranks.size} processes gets one, on which batch norm cannot be "
            f"trained: raise train.batch_size to {2 * ranks.size} or more, or set train.sync_batch_norm"
        ) from None


def lead(ranks: Ranks, config: RunConfig, dataset: Dataset) -> None:
    """On the first rank: tell the others what to open, and raise UserError if one of them cannot."""
    if not ranks.alone:
        ranks.told(lambda: {"config": config.model_dump(mode="json"), "splits": dataset.splits_record()})
        with ranks.together(), ranks.one_by_one():
            pass  # the data are open here


def nothing_to_do(ranks: Ranks, run: RunDir) -> None:
    """On the first rank, instead of `lead`: tell the others that the run is finished."""
    ranks.told(lambda: {"run": str(run.path)})


def share(ranks: Ranks, experiment: Experiment) -> Experiment:
    """On the first rank: give the others the state of the training, after `lead`."""
    if not ranks.alone:
        state = experiment.state
        ranks.told(lambda: {"run": str(experiment.run.path), "metadata": state.metadata()})
        dense = {name: value.detach().cpu().contiguous() for name, value in state.tensors().items()}
        ranks.told_bytes(torch.frombuffer(bytearray(save(dense)), dtype=torch.uint8))
    return _among(ranks, experiment)


def follow(ranks: Ranks, parts: Parts) -> Experiment | RunDir:
    """On the other ranks: open what the first one leads and shares; where that is finished, its directory."""
    told: Mapping[str, Any] = ranks.told(dict)
    if "config" not in told:
        return RunDir(Path(told["run"]), quiet=True)
    with ranks.together(), ranks.one_by_one():
        config = validate(told["config"])
        dataset, device = open_data(config, parts, trained=True)
        try:
            dataset = dataset.as_recorded(told["splits"], config.data.title)
        except UserError:
            raise UserError(f"the data '{config.data.title}' are not those of rank 0") from None
        model = build_network(config, dataset, parts)
    finetuning = plan(model, config.transfer, config.train.epochs)
    told = ranks.told(dict)
    run = RunDir(Path(told["run"]), quiet=True)
    layers = setup.layers_of(model, dataset)
    experiment = setup.assemble(run, config, dataset, device, model, layers, finetuning, parts)
    tensors = load(ranks.told_bytes(None).numpy().tobytes())
    experiment.state.load(tensors, told["metadata"])
    experiment.state.metrics = RunningMetrics(device)  # the first rank's are those of all
    return _among(ranks, experiment)


def _among(ranks: Ranks, experiment: Experiment) -> Experiment:
    config = experiment.config.train
    recipe = replace(experiment.recipe, ranks=ranks, sync_batch_norm=config.sync_batch_norm)
    return replace(experiment, ranks=ranks, recipe=recipe, notes=(*experiment.notes, *_notes(ranks)))


def _notes(ranks: Ranks) -> tuple[str, ...]:
    return () if ranks.alone else (f"{ranks.size} ranks train together, each on its share of every batch",)
