"""One optimiser step, from a batch to new weights. Knows tensors and state, no config of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from convsmith.contracts import Batch
from convsmith.optim.config import RegularizeConfig
from convsmith.optim.penalties import after_step, before_step
from convsmith.precision import FLOAT32, computing_in
from convsmith.training.loss import Loss
from convsmith.training.ranks import ALONE, Ranks
from convsmith.training.state import TrainState
from convsmith.training.synchronised import SynchronisedBatchNorm


@dataclass(frozen=True)
class Recipe:
    """What a step needs besides the state; it is constant during a run."""

    loss: Loss
    regularize: RegularizeConfig
    precision: str = FLOAT32
    ranks: Ranks = ALONE
    sync_batch_norm: bool = False


def step(state: TrainState, batch: Batch, recipe: Recipe) -> None:
    """Forward, loss, backward, penalties, clipping, update: takes `state` from step t to t + 1."""
    factor = state.schedule.factor(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor

    # A head alone, on features [B, F] that are kept, is so little work that it stays in float32.
    precision = FLOAT32 if batch.images.ndim == 2 else recipe.precision
    with computing_in(precision, state.device), _batch_statistics(recipe):
        logits = state.logits(batch).float()
    loss = recipe.loss(logits, batch)
    if batch.share:  # then the sum over all ranks is the mean loss of the whole batch
        loss = loss * batch.share.weight

    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    recipe.ranks.sum_gradients(state.model)
    state.scaler.unscale_(state.optimizer)
    before_step(state.optimizer, recipe.regularize)
    if recipe.regularize.clip_norm:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.regularize.clip_norm)

    state.scaler.step(state.optimizer)
    state.scaler.update()
    after_step(state.optimizer, recipe.regularize)
    if state.average:
        state.average.update(state.model, state.step)

    images = batch.share.images if batch.share else None
    state.metrics.add(loss.detach(), logits.detach(), batch.labels, state.step, images)
    state.step += 1
    state.position += 1


def _batch_statistics(recipe: Recipe) -> AbstractContextManager[object]:
    """The context that decides over which images batch norm normalises."""
    return SynchronisedBatchNorm(recipe.ranks) if recipe.sync_batch_norm and not recipe.ranks.alone else nullcontext()
