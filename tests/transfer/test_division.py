"""A network in two: what is above the frozen stages computes, and learns, what the whole network does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convsmith.contracts import Batch, Classifier
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.optim.config import OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import build_optimizer, keep_base_rates
from convsmith.optim.schedules import Schedule
from convsmith.training.config import TrainConfig
from convsmith.training.loss import build_loss
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe, step
from convsmith.transfer.config import TransferConfig
from convsmith.transfer.division import divide
from convsmith.transfer.unfreezing import plan

NETWORKS = [
    ModelConfig(name="small-resnet", width=4, depth=1),
    ModelConfig(name="convnet", blocks=(BlockConfig(channels=4), BlockConfig(channels=6)), hidden=(5,)),
    ModelConfig(name="torchvision/resnet18"),
    ModelConfig(name="timm/tf_efficientnet_lite0"),
]
LAST_STAGES = {"after": 1, "stages": 1, "most": 1}


def state_of(config: ModelConfig, transfer: TransferConfig) -> TrainState:
    torch.manual_seed(0)
    model = build(config, 3, 32, 3)
    finetuning = plan(model, transfer, 3)
    assert finetuning is not None
    optimizer = build_optimizer(finetuning.groups(model), OptimConfig(), RegularizeConfig(), torch.device("cpu"))
    schedule = Schedule(ScheduleConfig(), 2, 3)
    train = TrainConfig(ema=0.9)
    return new_state(model, keep_base_rates(optimizer), schedule, train, torch.device("cpu"), finetuning)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.name)
def test_steps_on_kept_outputs_are_those_on_images(config: ModelConfig) -> None:
    transfer = TransferConfig(freeze=("all-but-head",), unfreeze=LAST_STAGES)  # type: ignore[arg-type]
    whole, divided = state_of(config, transfer), state_of(config, transfer)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    assert divided.finetuning is not None
    division = divide(divided.model, divided.finetuning, images)
    assert division is not None
    maps = division.maps(divided.model.eval(), images)
    rest = division.rest(divided.model)
    recipe = Recipe(build_loss(TrainConfig(), 0.1, None), RegularizeConfig())
    for state in (whole, divided):
        state.close_epoch(0.0)
        state.enter_phase()
    for seed in range(2):
        for state, batch in ((whole, Batch(images, labels)), (divided, Batch(maps, labels, rest=rest))):
            state.training_mode(batch.rest)
            torch.manual_seed(seed)  # of its dropout
            step(state, batch, recipe)
    trained = divided.finetuning.phases[-1].trains
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, divided.model.state_dict()[name]), name
    assert len(trained) > 2, "more than the head was trained"
    assert divided.average is not None
    assert whole.average is not None
    with torch.no_grad():
        averaged = division.rest(divided.average.model).eval()(maps)
        assert torch.equal(averaged, whole.average.model(images))


def test_a_hash_of_the_frozen_stages_does_not_change_with_what_is_trained_above() -> None:
    transfer = TransferConfig(freeze=("all-but-head",), unfreeze=LAST_STAGES)  # type: ignore[arg-type]
    state = state_of(NETWORKS[0], transfer)
    assert state.finetuning is not None
    division = divide(state.model, state.finetuning, torch.randn(2, 3, 32, 32))
    assert division is not None
    before = division.digest(state.model)
    weights = dict(state.model.named_parameters())
    with torch.no_grad():
        weights["stage3.0.conv1.weight"].add_(1)
    assert division.digest(state.model) == before
    with torch.no_grad():
        weights["stage2.0.conv1.weight"].add_(1)
    assert division.digest(state.model) != before


class WithSkip(nn.Module):
    """A network whose head end sees the outputs of two stages, so that it cannot be divided between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {"a": self.a, "b": self.b}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return (self.b(self.a(images)) + images).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


class ReadingBelow(WithSkip):
    """A network that reads a weight of a frozen stage, which a module that does nothing has not."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return (self.b(self.a(images)) + self.a.weight.sum()).mean((2, 3))


@pytest.mark.parametrize("network", [WithSkip, ReadingBelow])
def test_a_network_that_cannot_be_divided_is_not(network: type[WithSkip]) -> None:
    model = network()
    assert isinstance(model, Classifier)
    finetuning = plan(model, TransferConfig(freeze=("a",)), 2)
    assert finetuning is not None
    assert divide(model, finetuning, torch.randn(2, 3, 8, 8)) is None


def test_a_network_of_which_all_is_trained_in_the_end_has_no_constant_part() -> None:
    transfer = TransferConfig(freeze=("all-but-head",), unfreeze={"after": 1, "stages": 9})  # type: ignore[arg-type]
    state = state_of(NETWORKS[0], transfer)
    assert state.finetuning is not None
    assert divide(state.model, state.finetuning, torch.randn(2, 3, 32, 32)) is None
