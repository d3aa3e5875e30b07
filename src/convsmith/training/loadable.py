"""Whether a checkpoint fits the state that is to load it, of which nothing is changed. Reads no files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convsmith.errors import UserError, first_line
from convsmith.nets.tensors import below, kind_of, refuse_misfits, shape_of

if TYPE_CHECKING:
    from convsmith.training.state import TrainState

Tensors = Mapping[str, Tensor]


def refuse_unfit(state: TrainState, tensors: Tensors, metadata: Mapping[str, Any]) -> None:
    """Raise UserError unless `state.load` can load all of a checkpoint; `metadata` are of the schema Checkpoint."""
    refuse_misfits(state.model, below(tensors, "model."), "the checkpoint")
    if state.average:
        refuse_misfits(state.average.model, below(tensors, "average."), "the checkpoint's average")
    for what, reasons in (
        ("facts", _of_facts(state, metadata)),
        ("optimiser's state", _of_optimizer(state, below(tensors, "optimizer."))),
        ("running metrics", _of_metrics(state, below(tensors, "counts."))),
        ("random numbers", _of_generators(state, below(tensors, "rng."))),
    ):
        if (reason := next(reasons, None)) is not None:
            raise UserError(
                f"the checkpoint's {what} do not fit this run ({reason}): set config.yaml back if it has changed, or "
                "start a new run"
            )


def _of_facts(state: TrainState, metadata: Mapping[str, Any]) -> Iterator[str]:
    groups, phases = len(state.optimizer.param_groups), len(state.finetuning.phases) if state.finetuning else 1
    if len(metadata["rates"]) != groups:
        yield f"{len(metadata['rates'])} learning rates for {groups} groups of parameters"
    if metadata["phase"] >= phases:
        yield f"phase {metadata['phase'] + 1} of {phases}"


def _of_optimizer(state: TrainState, tensors: Tensors) -> Iterator[str]:
    """What does not fit of the state, which holds all that is kept of a parameter, or nothing if that was frozen."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name, _ in state.model.named_parameters()}
    for name, value in tensors.items():
        owner, _, key = name.rpartition(":")
        if owner not in found:
            yield f"there is no parameter '{owner}'"
        elif kind_of(value) not in ("floating", "integer"):
            yield f"{key} of {owner} is {kind_of(value)}"
        else:
            found[owner][key] = value
    for owner, expected in _after_a_step(state).items():
        for key, like in expected.items() if found[owner] else ():
            if (value := found[owner].get(key)) is None:  # type: ignore[assignment]
                yield f"{key} of {owner} is missing"
            elif (value.shape, kind_of(value)) != (like.shape, kind_of(like)):
                yield f"{key} of {owner} is {kind_of(value)} {shape_of(value)}, not {kind_of(like)} {shape_of(like)}"


def _after_a_step(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """What the optimiser keeps of each parameter, by key, after a step on gradients of zero, which a copy takes.

    Of optimisers by others nothing is known: they may keep more after some steps.
    """
    if type(state.optimizer).__module__.partition(".")[0] not in ("torch", "convsmith"):
        return {}
    optimizer = copy.deepcopy(state.optimizer)
    kept = {}
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    for group, copied in zip(state.optimizer.param_groups, optimizer.param_groups, strict=True):
        for parameter, other in zip(group["params"], copied["params"], strict=True):
            other.grad = torch.zeros_like(other)
            kept[names[id(parameter)]] = optimizer.state[other]  # which a step fills
    optimizer.step()
    return {name: {key: value for key, value in values.items() if value is not None} for name, values in kept.items()}


def _of_metrics(state: TrainState, tensors: Tensors) -> Iterator[str]:
    expected = state.metrics.tensors()
    if tensors.keys() != expected.keys():
        yield f"they are {', '.join(sorted(tensors))}, not {', '.join(sorted(expected))}"
        return
    for name, like in expected.items():
        if tensors[name].shape != like.shape or kind_of(tensors[name]) != kind_of(like):
            yield f"{name} is {kind_of(tensors[name])} {shape_of(tensors[name])}"
            return
    loss, correct, seen, bad_step = (tensors[name].item() for name in expected)
    if not 0 <= correct <= seen or bad_step != -1 or not abs(loss) < float("inf"):
        yield f"{correct} of {seen} images are right, with a loss of {loss}"


def _of_generators(state: TrainState, tensors: Tensors) -> Iterator[str]:
    devices = {"augment": state.device, "cpu": torch.device("cpu"), state.device.type: state.device}
    for name, device in devices.items():
        if name not in tensors:
            if name in ("augment", "cpu"):
                yield f"those of '{name}' are missing"
            continue
        try:
            torch.Generator(device).set_state(tensors[name])
        except (RuntimeError, TypeError) as error:
            yield f"those of '{name}' are not of {device.type}: {first_line(error)}"
