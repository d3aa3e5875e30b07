"""convnet and simple-cnn: names, sizes, contract and layouts."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import convsmith
from convsmith.contracts import Classifier
from convsmith.errors import UserError
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.nets.shapes import trace

TWO_BLOCKS = (BlockConfig(channels=4), BlockConfig(channels=6))


def test_simple_cnn_has_stable_readable_names():
    keys = list(build(ModelConfig(), 3, 32, 10).state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert keys == [
        "blocks.0.conv.weight",
        *(f"blocks.0.norm.{key}" for key in norm),
        "blocks.1.conv.weight",
        *(f"blocks.1.norm.{key}" for key in norm),
        "hidden.0.weight",
        "hidden.0.bias",
        "head.weight",
        "head.bias",
    ]


def test_names_do_not_depend_on_dropout():
    def names(hidden_dropout: float, dropout: float) -> list[str]:
        config = ModelConfig(hidden=(8, 5), hidden_dropout=hidden_dropout, dropout=dropout)
        return list(build(config, 1, 8, 3).state_dict())

    assert names(0.0, 0.0) == names(0.5, 0.2)
    assert "hidden.1.weight" in names(0.5, 0.2)


@pytest.mark.parametrize(("channels", "size", "flat"), [(3, 32, 4096), (1, 8, 256), (1, 28, 3136)])
def test_simple_cnn_fits_the_data(channels, size, flat):
    model = build(ModelConfig(), channels, size, 7)
    assert model.hidden[0].weight.shape == (200, flat)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_simple_cnn_takes_the_settings_of_the_model_section():
    config = ModelConfig(pool="average", activation="sigmoid", norm="none", hidden=(50, 20), dropout=0.1)
    kinds = [row.kind for row in trace(build(config, 3, 32, 10), 3, 32)]
    block = ["Conv2d", "Sigmoid", "AvgPool2d", "Dropout"]
    assert kinds == [*block, *block, "Flatten", *(["Linear", "Sigmoid", "Dropout"] * 2), "ScaledLinear"]
    assert len(build(ModelConfig(hidden=()), 3, 32, 10).hidden) == 0


@pytest.mark.parametrize(
    ("config", "stages"),
    [
        (ModelConfig(), ["blocks.0", "blocks.1", "hidden"]),
        (ModelConfig(name="convnet", blocks=TWO_BLOCKS, global_pool="average"), ["blocks.0", "blocks.1"]),
        (ModelConfig(name="small-resnet", depth=1, width=4), ["stem", "stage1", "stage2", "stage3"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_contract_of_a_classifier(config, stages):
    model = build(config, 3, 16, 5).eval()
    assert isinstance(model, Classifier)
    assert list(model.stages) == stages
    x = torch.randn(2, 3, 16, 16)
    assert model.features(x).dim() == 2
    assert torch.equal(model(x), model.head(model.features(x)))
    parts = [*model.stages.values(), model.head]
    assert sorted(id(p) for part in parts for p in part.parameters()) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("pool", ["max", "average", "t-max-avg"])
@pytest.mark.parametrize("global_pool", ["none", "average", "max"])
def test_both_layouts_give_the_same(pool, global_pool):
    config = ModelConfig(name="convnet", blocks=TWO_BLOCKS, hidden=(7,), pool=pool, global_pool=global_pool)
    model = build(config, 3, 12, 5).eval().double()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-12)


def test_global_pool_averages_each_channel():
    config = ModelConfig(name="convnet", blocks=TWO_BLOCKS, global_pool="average")
    model = build(config, 3, 12, 5).eval()
    x = torch.randn(2, 3, 12, 12)
    assert torch.allclose(model.features(x), model.blocks(x).mean(dim=(2, 3)))


def test_logit_scale_multiplies_the_logits():
    models = []
    for scale in (1.0, 0.125):
        torch.manual_seed(0)
        models.append(build(ModelConfig(logit_scale=scale), 1, 8, 3).eval())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(models[1](x), models[0](x) * 0.125)
    assert list(models[0].state_dict()) == list(models[1].state_dict())


def test_the_same_seed_gives_the_same_network():
    def weights() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return build(ModelConfig(init="kaiming_normal"), 1, 8, 3).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("blocks", "size", "message"),
    [
        (
            [{"channels": 4}, {"channels": 4}, {"channels": 4, "kernel": 5, "padding": 0}],
            8,
            "block 3 conv: (2 - 5 + 2*0)/1 + 1 = -2: a 5 x 5 window does not fit into 2 x 2 pixels; "
            "use a smaller kernel, more padding or a larger image",
        ),
        (
            [{"channels": 4}, {"channels": 4}],
            2,
            "block 2 pool: floor((1 - 2 + 2*0)/2) + 1 = 0: a 2 x 2 window does not fit into 1 x 1 pixels; "
            "use a smaller pool_size, pool: none or a larger image",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(blocks, size, message):
    config = ModelConfig.model_validate({"name": "convnet", "blocks": blocks})
    with pytest.raises(UserError) as error:
        build(config, 3, size, 10)
    assert str(error.value) == message


@pytest.mark.parametrize("blocks", [None, ()])
def test_a_convnet_without_blocks_is_refused(blocks):
    with pytest.raises(UserError, match=r"needs model\.blocks"):
        build(ModelConfig(name="convnet", blocks=blocks), 3, 32, 10)


def test_the_study_example_is_a_preset():
    text = (Path(convsmith.__file__).parent / "presets" / "study-example.yaml").read_text(encoding="utf-8")
    preset = yaml.safe_load(text)
    assert preset["data"] == {"source": "cifar10"}
    rows = trace(build(ModelConfig.model_validate(preset["model"]), 3, 32, 10), 3, 32)
    assert [row.kind for row in rows if row.equation] == ["Conv2d", "MaxPool2d", "Flatten"]
    assert [row.equation.split(" = ")[1] for row in rows if row.equation] == ["30", "15", "7200"]


def test_dropout_works_in_training_alone():
    model = build(ModelConfig(dropout=0.5), 1, 8, 3)
    x = torch.randn(4, 1, 8, 8)
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 3
    model.eval()
    assert torch.equal(model(x), model(x))
