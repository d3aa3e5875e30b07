"""Models by name, and the settings that each uses."""

import pytest

from convsmith.errors import UserError
from convsmith.nets.build import _BACKBONES, build
from convsmith.nets.config import LIBRARIES, MODELS, BlockConfig, ModelConfig


def test_an_unknown_model_gets_the_nearest_and_all_choices():
    with pytest.raises(UserError) as error:
        build(ModelConfig(name="simple-cn"), 3, 32, 10)
    assert str(error.value) == (
        "model 'simple-cn' does not exist. Did you mean 'simple-cnn'? "
        "Choices: convnet, simple-cnn, small-resnet, timm/<architecture>, torchvision/<architecture>"
    )


@pytest.mark.parametrize("name", ["simple-cnn", "small-resnet", "torchvision/resnet18", "timm/resnet18"])
def test_blocks_belong_to_convnet_alone(name):
    with pytest.raises(UserError, match=f"^model.blocks .* has no effect on '{name}'"):
        build(ModelConfig(name=name, blocks=(BlockConfig(channels=3),)), 3, 32, 10)


def test_a_setting_that_changes_nothing_is_refused_with_those_that_do():
    with pytest.raises(UserError) as error:
        build(ModelConfig(name="small-resnet", pool="average"), 3, 32, 10)
    assert str(error.value) == (
        "model.pool = average has no effect on 'small-resnet': leave it at its default (max) or choose a model "
        "that uses it. Settings of 'small-resnet': activation, depth, init, logit_scale, mirror, norm, width"
    )


def test_every_setting_is_used_by_some_model():
    used = {"name"}.union(*(model.uses for model in MODELS.values()))
    assert used == set(ModelConfig.model_fields)


def test_every_library_of_the_config_has_its_builder():
    assert set(LIBRARIES) == set(_BACKBONES)


def test_the_names_are_in_the_description_of_the_config():
    described = ModelConfig.model_fields["name"].description
    assert all(name in described for name in [*MODELS, *(f"{library}/" for library in LIBRARIES)])
