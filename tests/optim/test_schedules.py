"""Schedules against torch.optim.lr_scheduler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from convsmith.optim.config import SCHEDULES, ScheduleConfig
from convsmith.optim.schedules import SHAPES, Plateau, Schedule

EPOCHS, STEPS = 12, 7


def torch_rates(build, per_step: bool) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if per_step:
                scheduler.step()
        if not per_step:
            scheduler.step()
    return rates


ORACLES = {
    "constant": (ScheduleConfig(), lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0), True),
    "step": (
        ScheduleConfig(name="step", step_epochs=3, gamma=0.5),
        lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
        False,
    ),
    "exponential": (
        ScheduleConfig(name="exponential", gamma=0.9),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        False,
    ),
    "cosine": (
        ScheduleConfig(name="cosine", final=0.05),
        lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.05),
        True,
    ),
    "one-cycle": (
        ScheduleConfig(name="one-cycle", start=0.04, final=0.001, peak=0.25),
        lambda o: lr_scheduler.OneCycleLR(
            o, 1.0, EPOCHS * STEPS, pct_start=21.75 / 84, div_factor=25, final_div_factor=40, cycle_momentum=False
        ),
        True,
    ),
    "one-cycle linear": (
        ScheduleConfig(name="one-cycle", start=0.1, final=0.01, peak=0.25, anneal="linear"),
        lambda o: lr_scheduler.OneCycleLR(
            o,
            1.0,
            EPOCHS * STEPS,
            pct_start=21.75 / 84,
            div_factor=10,
            final_div_factor=10,
            cycle_momentum=False,
            anneal_strategy="linear",
        ),
        True,
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("name", ORACLES)
def test_schedule_equals_torch(name: str) -> None:
    config, oracle, per_step = ORACLES[name]
    schedule = Schedule(config, STEPS, EPOCHS)
    ours = [schedule.factor(step) for step in range(EPOCHS * STEPS)]
    assert ours == pytest.approx(torch_rates(oracle, per_step), rel=1e-6, abs=1e-9)


def test_each_schedule_of_the_registry_has_an_oracle() -> None:
    assert {name.split()[0] for name in ORACLES} | {"plateau"} == set(SCHEDULES) == set(SHAPES)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.integers(0, 4))
def test_plateau_equals_torch(losses: list[float], patience: int) -> None:
    config = ScheduleConfig(name="plateau", patience=patience, factor=0.5, threshold=0.01)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=0.01, eps=0)
    ours = Plateau(config)
    for loss in losses:
        theirs.step(loss)
        ours.watch(loss)
        assert ours.factor == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_rises_in_a_line_and_then_follows_the_schedule_from_its_start(name) -> None:
    plain = Schedule(ScheduleConfig(name=name), STEPS, EPOCHS - 2)
    warm = Schedule(ScheduleConfig(name=name, warmup_epochs=2), STEPS, EPOCHS)
    first = plain.factor(0)
    assert [warm.factor(step) for step in range(14)] == pytest.approx([first * (step + 1) / 14 for step in range(14)])
    after = [warm.factor(step) for step in range(14, EPOCHS * STEPS)]
    assert after == pytest.approx([plain.factor(step) for step in range((EPOCHS - 2) * STEPS)])


def test_plateau_goes_on_from_its_state() -> None:
    config = ScheduleConfig(name="plateau", patience=1, factor=0.5)
    losses = [1.0, 0.9, 0.95, 0.94, 0.93, 0.8, 0.81, 0.82, 0.83]
    whole, first = Schedule(config, 1, 9), Schedule(config, 1, 9)
    for loss in losses:
        whole.epoch_ended(loss)
    for loss in losses[:4]:
        first.epoch_ended(loss)
    second = Schedule(config, 1, 9)
    second.load_state(first.state())
    for loss in losses[4:]:
        second.epoch_ended(loss)
    assert second.state() == whole.state()
    assert second.factor(9) < 1
