"""A checkpoint whose checksum is right may still hold anything; it is loaded whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from convsmith.contracts import Batch
from convsmith.errors import UserError
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.optim.config import OPTIMIZERS, OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.training.config import TrainConfig
from convsmith.training.loss import build_loss
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe, step

CPU = torch.device("cpu")
SMALL = ModelConfig(name="convnet", blocks=[{"channels": 2}], hidden=())


def fresh(optimizer: str = "adam", ema: float = 0.9) -> TrainState:
    torch.manual_seed(1)
    model = build(SMALL, 1, 4, 3)
    optim = build_optimizer(parameter_groups(model), OptimConfig(name=optimizer), RegularizeConfig(), CPU)
    train = TrainConfig(ema=ema)
    return new_state(model, keep_base_rates(optim), Schedule(ScheduleConfig(), 5, 2), train, CPU)


def trained(state: TrainState) -> TrainState:
    recipe = Recipe(build_loss(TrainConfig(), 0.0, None), RegularizeConfig())
    step(state, Batch(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])), recipe)
    return state


def content(state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {name: value.clone() for name, value in state.tensors().items()}, copy.deepcopy(state.metadata())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_a_state_holds_fits_another_one(optimizer: str) -> None:
    for before in (fresh(optimizer), trained(fresh(optimizer))):
        tensors, metadata = content(before)
        state = fresh(optimizer)
        state.load(tensors, metadata)
        after, facts = content(state)
        assert facts == metadata
        assert after.keys() == tensors.keys()
        assert all(torch.equal(after[name], tensors[name]) for name in tensors)


def without(name: str) -> Callable[[Any, Any], Any]:
    return lambda tensors, facts: tensors.pop(name)


def put(name: str, value: torch.Tensor) -> Callable[[Any, Any], Any]:
    return lambda tensors, facts: tensors.update({name: value})


def said(**facts: Any) -> Callable[[Any, Any], Any]:
    return lambda tensors, metadata: metadata.update(facts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (said(rates=[0.1]), "1 learning rates for 2 groups"),
        (said(phase=1), "phase 2 of 1"),
        (without("rng.augment"), "those of 'augment' are missing"),
        (without("rng.cpu"), "those of 'cpu' are missing"),
        (put("rng.augment", torch.zeros(16, dtype=torch.uint8)), "those of 'augment' are not of cpu"),
        (put("rng.augment", torch.zeros(5056)), "those of 'augment' are not of cpu"),
        (put("rng.cpu", torch.zeros(5056, dtype=torch.uint8)), "those of 'cpu' are not of cpu"),
        (without("counts.seen"), "they are bad_step, correct, loss, not bad_step, correct, loss, seen"),
        (put("counts.more", torch.zeros(())), "they are bad_step, correct, loss, more, seen"),
        (put("counts.seen", torch.zeros(3)), r"seen is floating \(3,\)"),
        (put("counts.seen", torch.tensor(2)), "4 of 2 images|of 2 images"),
        (put("counts.loss", torch.tensor(float("nan"), dtype=torch.float64)), "with a loss of nan"),
        (put("counts.correct", torch.tensor(-1)), "-1 of 4 images"),
        (put("optimizer.none:step", torch.tensor(1.0)), "there is no parameter 'none'"),
        (put("optimizer.odd", torch.tensor(1.0)), "there is no parameter ''"),
        (put("optimizer.head.bias:exp_avg", torch.zeros(4)), r"exp_avg of head.bias is floating \(4,\), not floating"),
        (put("optimizer.head.bias:exp_avg", torch.zeros(3, dtype=torch.int64)), "exp_avg of head.bias is integer"),
        (put("optimizer.head.bias:exp_avg", torch.zeros(3, dtype=torch.bool)), "exp_avg of head.bias is bool"),
        (put("optimizer.head.bias:step", torch.tensor([1.0])), r"step of head.bias is floating \(1,\)"),
        (without("optimizer.head.bias:exp_avg_sq"), "exp_avg_sq of head.bias is missing"),
        (without("model.head.bias"), "missing: head.bias"),
        (put("model.head.bias", torch.zeros(3, dtype=torch.int32)), "of another type; head.bias"),
        (without("average.head.bias"), "the checkpoint's average is of another architecture; missing: head.bias"),
        (put("average.head.bias", torch.zeros(3, dtype=torch.bool)), "the checkpoint's average has tensors of another"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change: Callable[[Any, Any], Any], says: str) -> None:
    tensors, metadata = content(trained(fresh()))
    change(tensors, metadata)
    state = fresh()
    before, facts = content(state)
    with pytest.raises(UserError, match=says):
        state.load(tensors, metadata)
    after, now = content(state)
    assert now == facts
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_state_of_another_optimiser_is_refused() -> None:
    tensors, metadata = content(trained(fresh("sgd")))
    with pytest.raises(UserError, match=r"set config\.yaml back if it has changed, or start a new run"):
        fresh("adam").load(tensors, metadata)


class Slow(torch.optim.Optimizer):
    """One of the user's own, which keeps more after its second step."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.1})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = torch.zeros(len(self.state[parameter]) + 1)


def test_an_own_optimiser_may_keep_what_it_likes_but_numbers_alone() -> None:
    def own() -> TrainState:
        state = fresh()
        optimizer = keep_base_rates(Slow(parameter_groups(state.model)))
        return new_state(state.model, optimizer, state.schedule, TrainConfig(), CPU)

    before = own()
    before.optimizer.step()
    tensors, metadata = content(before)
    tensors["optimizer.head.bias:history"] = torch.zeros(7)
    own().load(tensors, metadata)
    tensors["optimizer.head.bias:history"] = torch.zeros(7, dtype=torch.complex64)
    with pytest.raises(UserError, match=r"history of head\.bias is complex64"):
        own().load(tensors, metadata)
