"""One optimiser step, from a batch to new weights. Knows tensors and state, no config of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from convsmith.contracts import Batch
from convsmith.optim.config import RegularizeConfig
from convsmith.optim.penalties import after_step, before_step
from convsmith.training.loss import Loss
from convsmith.training.state import TrainState


@dataclass(frozen=True)
class Recipe:
    """What a step needs besides the state; it is constant during a run."""

    loss: Loss
    regularize: RegularizeConfig


def step(state: TrainState, batch: Batch, recipe: Recipe) -> None:
    """Forward, loss, backward, penalties, clipping, update: takes `state` from step t to t + 1."""
    factor = state.schedule.factor(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor

    logits = state.logits(batch)
    loss = recipe.loss(logits, batch)

    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    before_step(state.optimizer, recipe.regularize)
    if recipe.regularize.clip_norm:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.regularize.clip_norm)

    state.optimizer.step()
    after_step(state.optimizer, recipe.regularize)
    if state.average:
        state.average.update(state.model, state.step)

    state.metrics.add(loss.detach(), logits.detach(), batch.labels, state.step)
    state.step += 1
    state.position += 1
