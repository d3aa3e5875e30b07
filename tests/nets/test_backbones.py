"""torchvision's and timm's architectures as classifiers."""

import pytest
import torch
from torch import nn

from convsmith.contracts import Classifier
from convsmith.errors import UserError
from convsmith.nets.backbones import Backbone, timm_backbone, torchvision_backbone
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.nets.shapes import totals, trace

RESNET_STAGES = ["stem", "layer1", "layer2", "layer3", "layer4"]


def check_contract(model: Backbone, channels: int, size: int, classes: int) -> None:
    model.eval()
    assert isinstance(model, Classifier)
    assert isinstance(model.head, nn.Linear)
    x = torch.randn(2, channels, size, size)
    assert model(x).shape == (2, classes)
    assert model.features(x).shape == (2, model.head.in_features)
    assert torch.equal(model(x), model.head(model.features(x)))
    parts = [*model.stages.values(), model.head]
    assert sorted(id(p) for part in parts for p in part.parameters()) == sorted(id(p) for p in model.parameters())
    assert totals(trace(model, channels, size)).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "head", "first", "last"),
    [
        ("resnet18", 32, "fc", "stem", "layer4"),
        ("mobilenet_v3_small", 32, "classifier.3", "stem", "classifier.0"),
        ("shufflenet_v2_x0_5", 32, "fc", "stem", "conv5"),
        ("mnasnet0_5", 32, "classifier.1", "stem", "layers.14"),
        ("googlenet", 32, "fc", "stem", "inception5b"),
    ],
)
def test_torchvision_architectures(name, size, head, first, last):
    model = torchvision_backbone(name, 3, size, 5)
    assert model.head_name == head
    assert next(iter(model.stages)) == first
    assert list(model.stages)[-1] == last
    assert model.changes == ()
    assert model.training
    check_contract(model, 3, size, 5)


def test_vgg_stages_end_at_the_poolings():
    model = torchvision_backbone("vgg11", 3, 32, 5)
    stages = ["stem", "features.3", "features.6", "features.11", "features.16", "classifier.0"]
    assert list(model.stages) == stages


def test_the_network_is_torchvisions_own():
    from torchvision import models

    torch.manual_seed(0)
    ours = build(ModelConfig(name="torchvision/resnet18"), 3, 32, 5).eval()
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None, num_classes=5).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))
    renamed = {
        f"net.{key}" if not key.startswith("fc.") else key.replace("fc.", "head.") for key in theirs.state_dict()
    }
    assert set(ours.state_dict()) == renamed


def test_other_channels_change_the_first_convolution_and_say_so():
    model = torchvision_backbone("resnet18", 1, 32, 4)
    assert model.net.conv1.weight.shape == (64, 1, 7, 7)
    assert model.net.conv1.stride == (2, 2)
    assert model.net.conv1.bias is None
    assert model.changes == ("conv1 was initialised randomly for 1 input channels instead of 3",)
    assert list(model.stages) == RESNET_STAGES
    check_contract(model, 1, 32, 4)


def test_a_head_that_is_a_convolution_becomes_linear_on_the_averaged_features():
    model = torchvision_backbone("squeezenet1_1", 3, 64, 5)
    assert model.head_name == "classifier.1"
    check_contract(model, 3, 64, 5)
    images = torch.randn(2, 3, 64, 64)
    maps = model.net.features(images)
    torch.testing.assert_close(model.features(images), maps.mean(dim=(2, 3)))


def test_a_convolution_on_pooled_features_is_the_same_linear_layer():
    import timm

    model = timm_backbone("dla34", 3, 64, 5).eval()
    check_contract(model, 3, 64, 5)
    theirs = timm.create_model("dla34", num_classes=5).eval()
    own = model.state_dict()
    state = {
        key: own[f"head.{key[3:]}"].reshape(value.shape) if key.startswith("fc.") else own[f"net.{key}"]
        for key, value in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_an_image_too_small_is_refused():
    with pytest.raises(UserError, match=r"'torchvision/alexnet' does not accept 32 x 32 images \(.*too small\)"):
        torchvision_backbone("alexnet", 3, 32, 5)


def test_unknown_torchvision_architecture():
    with pytest.raises(UserError, match=r"'resnet19' does not exist. Did you mean 'resnet18'\? Choices: alexnet, "):
        torchvision_backbone("resnet19", 3, 32, 5)


@pytest.mark.parametrize(
    ("name", "head", "stages"),
    [
        ("resnet10t", "fc", RESNET_STAGES),
        ("mobilenetv3_small_050", "classifier", ["stem", *(f"blocks.{i}" for i in range(6)), "conv_head"]),
        ("convnext_atto", "head.fc", ["stem", *(f"stages.{i}" for i in range(4)), "head"]),
    ],
)
def test_timm_architectures(name, head, stages):
    model = timm_backbone(name, 1, 64, 5)
    assert model.head_name == head
    assert list(model.stages) == stages
    check_contract(model, 1, 64, 5)


def test_unknown_timm_architecture():
    with pytest.raises(UserError, match=r"'resnet51' does not exist; nearest: .*resnet50"):
        timm_backbone("resnet51", 3, 32, 5)


def test_timm_models_that_cannot_be_adapted_are_refused():
    with pytest.raises(UserError, match=r"'timm/levit_128s' cannot be used: its head is neither a linear layer nor"):
        timm_backbone("levit_128s", 3, 224, 5)
