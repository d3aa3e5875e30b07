"""Averaging over an image and its mirror image, outside training alone, and seen once by whoever looks at layers."""

import pytest
import torch

from convsmith.explain.gradcam import feature_maps, grad_cam, stages_of
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.nets.mirror import one_view
from convsmith.nets.shapes import trace

BLOCKS = (BlockConfig(channels=4), BlockConfig(channels=6))


def nets(name):
    """The same network without and with the averaging, in eval mode."""
    found = []
    for mirror in (False, True):
        torch.manual_seed(0)
        blocks = {"blocks": BLOCKS} if name == "convnet" else {}
        found.append(build(ModelConfig(name=name, mirror=mirror, **blocks), 3, 8, 4).eval())
    return found


@pytest.mark.parametrize("name", ["convnet", "small-resnet", "simple-cnn"])
def test_outside_training_logits_are_the_mean_of_the_image_s_and_its_mirror_image_s(name):
    plain, averaging = nets(name)
    images = torch.randn(3, 3, 8, 8)
    mean = (plain(images) + plain(images.flip(-1))) / 2
    torch.testing.assert_close(averaging(images), mean)
    torch.testing.assert_close(averaging(images.flip(-1)), averaging(images))
    torch.testing.assert_close(averaging.head(averaging.features(images)), averaging(images))
    assert trace(averaging, 3, 8) == trace(plain, 3, 8)
    for net in (plain, averaging):
        torch.manual_seed(1)  # of the dropout
        net.train()
    torch.manual_seed(1)
    expected = plain(images)
    torch.manual_seed(1)
    assert torch.equal(averaging(images), expected)


def test_maps_are_those_of_the_image_itself():
    plain, averaging = nets("convnet")
    images, classes = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    for (name, maps), expected in zip(
        feature_maps(averaging, images).items(), feature_maps(plain, images).values(), strict=True
    ):
        assert torch.equal(maps, expected), name
    heat = [grad_cam(net, stages_of(net)["blocks.1"], images, classes) for net in (plain, averaging)]
    assert torch.equal(*heat)
    assert averaging.mirror


def test_a_layer_of_a_user_s_network_may_be_called_mirror():
    own = torch.nn.Module()
    own.mirror = torch.nn.Flatten()
    with one_view(own):
        assert isinstance(own.mirror, torch.nn.Flatten)
