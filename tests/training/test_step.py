"""One step as a whole: it never waits for the device."""

from __future__ import annotations

import pytest
import torch

from convsmith.data.augment import Augment
from convsmith.data.config import AugmentConfig, Preprocessing
from convsmith.data.preprocess import ToInput
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.optim.config import OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.optim.optimizers import build_optimizer, keep_base_rates, parameter_groups
from convsmith.optim.schedules import Schedule
from convsmith.training.config import TrainConfig
from convsmith.training.loss import build_loss
from convsmith.training.state import new_state
from convsmith.training.step import Recipe, step

META = torch.device("meta")  # its tensors have no values: asking for one, as .item(), .cpu() and bool() do, raises
EVERYTHING = {
    "hflip": True,
    "shift": 2,
    "cutout": 3,
    "rotation": 20,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "random_resized_crop": 0.4,
}


@pytest.mark.parametrize(
    "mixing", [{"mixup": 0.2}, {"cutmix": 1.0, "trivial": True}, {"mixup": 0.2, "cutmix": 1.0, "rand_ops": 2}]
)
@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_no_value_leaves_the_device_within_a_step(mixing: dict[str, float], loss: str) -> None:
    augment = AugmentConfig(**EVERYTHING, **mixing)
    regularize = RegularizeConfig(l1=0.1, l2=0.1, l2_mode="decoupled", clip_norm=1.0)
    config = TrainConfig(loss=loss, ema=0.9)
    seen = {"image_size": 16, "working_size": 20, "channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    seen |= {"resize": "stretch", "interpolation": "bilinear", "background": "white"}
    to_input = ToInput(Preprocessing(**seen), META)
    model = build(ModelConfig(), 3, 16, 4).to(META)
    optimizer = keep_base_rates(
        build_optimizer(parameter_groups(model), OptimConfig(name="sgd", lr=0.1), regularize, META)
    )
    state = new_state(model, optimizer, Schedule(ScheduleConfig(name="cosine"), 3, 2), config, torch.device("cpu"))
    state.metrics = type(state.metrics)(META)
    pixels = torch.zeros(8, 20, 20, 3, dtype=torch.uint8, device=META)
    labels = torch.zeros(8, dtype=torch.int64, device=META)
    with pytest.raises(Exception, match="meta"):
        bool(labels.sum() > 0)
    for number in range(8):
        batch = Augment(augment, to_input)(pixels, labels, state.generator, [0, 0, number])
        assert batch.images.is_meta
        step(state, batch, Recipe(build_loss(config, 0.0, None), regularize))
    assert state.step == 8
