"""What is frozen stays as it is, bit for bit; what is thawed starts afresh; every parameter has its rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convsmith.contracts import Batch
from convsmith.errors import UserError
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.optim.config import OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import build_optimizer, keep_base_rates
from convsmith.optim.penalties import decayed
from convsmith.optim.schedules import Schedule
from convsmith.training.config import TrainConfig
from convsmith.training.loss import build_loss
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe, step
from convsmith.transfer.config import TransferConfig
from convsmith.transfer.unfreezing import plan

STAGES = ["stem", "stage1", "stage2", "stage3"]
REGULARIZE = RegularizeConfig(l2=0.01, l2_mode="decoupled", l1=0.001, l1_mode="proximal", clip_norm=1.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build(ModelConfig(name="small-resnet", width=2, depth=1), 1, 8, 3)


def state_of(transfer: TransferConfig, epochs: int = 10, optim: str = "adam", ema: float = 0.0) -> TrainState:
    model, device = network(), torch.device("cpu")
    finetuning = plan(model, transfer, epochs)
    assert finetuning is not None
    config = OptimConfig(name=optim, lr=0.1)  # type: ignore[arg-type]
    optimizer = keep_base_rates(build_optimizer(finetuning.groups(model), config, REGULARIZE, device))
    schedule = Schedule(ScheduleConfig(), 1, epochs)
    return new_state(model, optimizer, schedule, TrainConfig(ema=ema), device, finetuning)


def train(state: TrainState, steps: int = 1) -> None:
    recipe = Recipe(build_loss(TrainConfig(), 0.0, None), REGULARIZE)
    state.training_mode()
    for number in range(steps):
        torch.manual_seed(number)
        step(state, Batch(torch.randn(4, 1, 8, 8) + 1, torch.tensor([0, 1, 2, 0])), recipe)


def bits(state: TrainState) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.model.state_dict().items()}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_what_is_frozen_has_no_gradient_no_state_and_does_not_change(optim: str) -> None:
    state = state_of(TransferConfig(freeze=("stem", "stage1", "stage3")), optim=optim)
    before = bits(state)
    train(state, 3)
    moved = {name.split(".")[0] for name in changed(before, bits(state))}
    assert moved == {"stage2", "head"}, "statistics of frozen batch norm are part of this"
    for name, parameter in state.model.named_parameters():
        frozen = name.split(".")[0] in ("stem", "stage1", "stage3")
        assert (parameter.grad is None) == frozen
        assert (parameter not in state.optimizer.state or not state.optimizer.state[parameter]) or not frozen


def test_without_freezing_batch_norm_statistics_do_move() -> None:
    state = state_of(TransferConfig(backbone_lr=0.5))
    before = bits(state)
    train(state)
    assert "stem.norm.running_mean" in changed(before, bits(state))


def test_a_pattern_of_names_freezes_the_norms_alone() -> None:
    state = state_of(TransferConfig(freeze=("*norm*",)))
    before = bits(state)
    train(state)
    moved = changed(before, bits(state))
    assert moved
    assert not [name for name in moved if "norm" in name]


def test_gradual_unfreezing_goes_from_the_head_to_the_stem() -> None:
    state = state_of(TransferConfig(freeze=("all-but-head",), unfreeze={"after": 2}))  # type: ignore[arg-type]
    seen = []
    for _ in range(7):
        train(state)
        names = {name.split(".")[0] for name, p in state.model.named_parameters() if p.requires_grad}
        seen.append([stage for stage in [*STAGES, "head"] if stage in names])
        state.close_epoch(0.0)
        state.enter_phase()
    assert seen == [
        ["head"],
        ["head"],
        ["stage3", "head"],
        ["stage2", "stage3", "head"],
        ["stage1", "stage2", "stage3", "head"],
        [*STAGES, "head"],
        [*STAGES, "head"],
    ]


def test_a_thawed_parameter_starts_with_a_fresh_state() -> None:
    state = state_of(TransferConfig(freeze=("all-but-head",), unfreeze={"after": 1, "most": 1}))  # type: ignore[arg-type]
    train(state, 5)
    state.close_epoch(0.0)
    assert state.enter_phase() is not None
    train(state, 2)
    steps = {
        name: int(state.optimizer.state[p]["step"])
        for name, p in state.model.named_parameters()
        if state.optimizer.state.get(p)
    }
    assert steps["head.weight"] == 7
    assert {count for name, count in steps.items() if not name.startswith("head")} == {2}


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4])
def test_a_checkpoint_of_any_phase_goes_on_bit_for_bit(done: int) -> None:
    transfer = TransferConfig(freeze=("all-but-head",), unfreeze={"after": 1}, lr_decay=0.5)  # type: ignore[arg-type]

    def epoch(state: TrainState) -> None:
        train(state, 2)
        state.close_epoch(0.0)
        state.enter_phase()

    whole, stopped = state_of(transfer, ema=0.9), state_of(transfer, ema=0.9)
    for number in range(6):
        if number == done:
            tensors = {name: value.clone() for name, value in stopped.tensors().items()}
            facts = stopped.metadata()
            stopped = state_of(transfer, ema=0.9)
            stopped.load(tensors, facts)
            assert stopped.phase == min(done, 4)
        epoch(whole)
        epoch(stopped)
    left, right = whole.tensors(), stopped.tensors()
    assert left.keys() == right.keys()
    assert [name for name in left if left[name].numpy().tobytes() != right[name].numpy().tobytes()] == []
    assert whole.metadata() == stopped.metadata()


def test_each_stage_has_its_share_of_the_rate_and_each_parameter_one_group() -> None:
    state = state_of(TransferConfig(lr_decay=0.5, backbone_lr=0.1))
    rates = {group["stage"]: group["lr"] for group in state.optimizer.param_groups}
    expected = {"head": 0.1, "stage3": 0.005, "stage2": 0.0025, "stage1": 0.00125, "stem": 0.000625}
    assert rates == pytest.approx(expected)
    grouped = [id(p) for group in state.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in state.model.parameters())


def test_penalties_touch_only_what_trains() -> None:
    state = state_of(TransferConfig(freeze=("all-but-head",), unfreeze={"after": 1}))  # type: ignore[arg-type]
    penalised = [id(weight) for _, weight in decayed(state.optimizer)]
    assert penalised == [id(state.model.head.weight)]


def test_an_average_of_frozen_weights_is_the_weights() -> None:
    state = state_of(TransferConfig(freeze=("all-but-head",)), ema=0.9)
    train(state, 4)
    assert state.average is not None
    average = state.average.model.state_dict()
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, average[name]) == (not name.startswith("head")), name


def test_features_and_images_give_the_head_the_same_step() -> None:
    on_images, on_features = (state_of(TransferConfig(freeze=("all-but-head",))) for _ in range(2))
    recipe = Recipe(build_loss(TrainConfig(), 0.1, None), REGULARIZE)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        features: Tensor = on_features.model.eval().features(images)  # type: ignore[operator]
    on_images.training_mode()
    step(on_images, Batch(images, labels), recipe)
    step(on_features, Batch(features, labels, rest=on_features.model.head), recipe)
    assert torch.equal(on_images.model.head.weight, on_features.model.head.weight)  # type: ignore[arg-type]


def test_patience_waits_for_the_last_phase_and_then_starts_anew() -> None:
    state = state_of(TransferConfig(freeze=("all-but-head",), unfreeze={"after": 3, "most": 1}))  # type: ignore[arg-type]
    state.stopping = replace(state.stopping, patience=2)
    for epoch in range(1, 6):
        state.stopping = state.stopping.after({"epoch": epoch, "val_accuracy": 0.5, "val_loss": 1.0})
        state.close_epoch(0.0)
        state.enter_phase()
        assert state.exhausted == (epoch == 5), epoch


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.none() | st.integers(1, 6))
def test_every_schedule_thaws_in_order_or_says_how_long_it_is(
    after: int, every: int, stages: int, most: int | None
) -> None:
    unfreeze = {"after": after, "every": every, "stages": stages, "most": most}
    transfer = TransferConfig(freeze=("all-but-head",), unfreeze=unfreeze)  # type: ignore[arg-type]
    thaws = -(-min(most or 4, 4) // stages)
    last = after + (thaws - 1) * every
    model = network()
    if last >= 10:
        with pytest.raises(UserError, match=f"longer than the run: .* after {last} epochs, but train.epochs is 10"):
            plan(model, transfer, 10)
        return
    finetuning = plan(model, transfer, 10)
    assert finetuning is not None
    assert [phase.epoch for phase in finetuning.phases] == [0, *range(after, last + 1, every)]
    for one, other in zip(finetuning.phases, finetuning.phases[1:], strict=False):
        assert one.trains < other.trains
    assert [stage for phase in finetuning.phases for stage in phase.unfrozen] == STAGES[::-1][: most or 4]


ERRORS = [
    (
        {"freeze": ("stgae1",)},
        "'stgae1' matches no stage and no parameter. Did you mean 'stage1'? Stages: stem, stage1",
    ),
    ({"freeze": ("*nothing*",)}, "'*nothing*' matches no stage and no parameter"),
    ({"freeze": ("*",)}, "leaves nothing to train"),
    ({"freeze": ("all-but-head",), "unfreeze": {"after": 10}}, "longer than the run: stem would be unfrozen after 13"),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_mistakes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        plan(network(), TransferConfig(**settings), 10)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_without_stages_is_refused_and_nothing_asked_is_nothing_done() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert plan(plain, TransferConfig(), 1) is None
    with pytest.raises(UserError, match="which Sequential is not"):
        plan(plain, TransferConfig(freeze=("all-but-head",)), 1)


def test_batch_norm_that_trains_can_keep_its_statistics() -> None:
    state = state_of(TransferConfig(freeze=("stem",), freeze_statistics=True))
    before = bits(state)
    train(state, 2)
    moved = changed(before, bits(state))
    assert moved == {name for name, _ in state.model.named_parameters() if not name.startswith("stem.")}
    assert state.model.training, "only batch norm and what is frozen is in eval mode"
