from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convsmith.errors import UserError
from convsmith.nets.tensors import load_strictly
from convsmith.training.state import EarlyStopping, RunningMetrics, WeightAverage


def watch(stopping: EarlyStopping, rows: list[dict[str, float]]) -> list[bool]:
    """Whether it was exhausted after each row."""
    exhausted = []
    for row in rows:
        stopping = stopping.after(row)
        exhausted.append(stopping.exhausted)
    return exhausted


def rows_of(monitor: str, values: list[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"epoch": n, "val_loss": loss, monitor: value} for n, (value, loss) in enumerate(values, start=1)]


@given(
    st.lists(st.tuples(st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=30),
    st.sampled_from(["val_accuracy", "val_f1", "val_loss"]),
)
def test_the_best_epoch_has_the_best_value_and_of_equals_the_lowest_loss(
    values: list[tuple[float, float]], monitor: str
) -> None:
    rows = rows_of(monitor, values)
    stopping = EarlyStopping(monitor, None, 0.0)
    for row in rows:
        stopping = stopping.after(row)
    sign = 1 if monitor == "val_loss" else -1
    wanted = sorted(rows, key=lambda row: (sign * row[monitor], row["val_loss"], row["epoch"]))[0]
    assert stopping.best_epoch == wanted["epoch"]
    assert stopping.best == wanted[monitor]
    assert not stopping.exhausted


def test_patience_counts_epochs_that_are_not_better_by_min_delta() -> None:
    stopping = EarlyStopping("val_accuracy", patience=2, min_delta=0.05)
    rows = rows_of("val_accuracy", [(value, 1.0) for value in (0.5, 0.6, 0.64, 0.66, 0.67, 0.68)])
    # 0.66 beats the reference 0.6 by more than 0.05
    assert watch(stopping, rows) == [False, False, False, False, False, True]


def test_an_epoch_that_ties_with_a_lower_loss_is_better_and_resets_the_patience() -> None:
    stopping = EarlyStopping("val_accuracy", patience=2, min_delta=0.0)
    rows = rows_of("val_accuracy", [(0.5, 2.0), (0.5, 2.0), (0.5, 1.5), (0.5, 1.6), (0.5, 1.5)])
    assert watch(stopping, rows) == [False, False, False, False, True]


def test_the_facts_of_a_checkpoint_of_the_first_edition_go_on_with_its_best_epoch() -> None:
    facts = {"monitor": "val_accuracy", "patience": None, "min_delta": 0.0}
    facts |= {"best": 0.9, "best_epoch": 3, "reference": 0.9, "bad_epochs": 1}
    stopping = EarlyStopping(**facts)
    assert stopping.after({"epoch": 5, "val_accuracy": 0.9, "val_loss": 0.0}).best_epoch == 3
    assert stopping.after({"epoch": 5, "val_accuracy": 0.91, "val_loss": 9.0}).best_epoch == 5


def test_average_after_its_start_is_torchs_ema() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    ours = WeightAverage(model, 0.7)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    theirs.n_averaged.fill_(1)  # the average starts as a copy
    for update in range(100, 105):  # late enough that the warm-up's decay is above 0.7
        model(torch.randn(4, 1, 5, 5))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(model, update)
        theirs.update_parameters(model)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.model.state_dict()[name], value, msg=name)
    assert ours.model.state_dict()["1.num_batches_tracked"] == 5


def test_running_metrics_hold_means_and_the_first_step_that_is_not_finite() -> None:
    counts = RunningMetrics(torch.device("cpu"))
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    counts.add(torch.tensor(0.5), logits, torch.tensor([0, 0, 0]), step=0)
    counts.add(torch.tensor(0.25), logits[:1], torch.tensor([0]), step=1)
    loss, accuracy, seen, bad_step = counts.read()
    assert (loss, accuracy, seen, bad_step) == (pytest.approx(1.75 / 4), 0.75, 4, -1)
    counts.add(torch.tensor(float("inf")), logits, torch.tensor([0, 0, 0]), step=2)
    counts.add(torch.tensor(float("nan")), logits, torch.tensor([0, 0, 0]), step=3)
    assert counts.read()[3] == 2


def test_loading_lists_both_key_sets_and_loads_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = model[1].bias.clone()
    tensors = dict(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1), nn.Linear(1, 1)).state_dict())
    del tensors["0.bias"]
    with pytest.raises(UserError) as error:
        load_strictly(model, tensors, "this file")
    message = str(error.value)
    assert "this file is of another architecture" in message
    assert "missing: 0.bias" in message
    assert "unexpected: 2.bias, 2.weight" in message
    assert "0.weight ((3, 4) for (3, 2))" in message
    assert torch.equal(model[1].bias, before)
