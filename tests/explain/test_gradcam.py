"""Grad-CAM against captum, against a twin written by the book, and for every kind of net that convsmith trains."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convsmith.data.preprocess import InputPixels
from convsmith.errors import UserError
from convsmith.explain.gradcam import enlarge, feature_maps, grad_cam, heat_maps, overlay, stage_with_maps, stages_of
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig

NETS = {
    "convnet": (
        ModelConfig(
            name="convnet",
            blocks=(
                BlockConfig(channels=6),
                BlockConfig(channels=8, pool="average"),
                BlockConfig(channels=8, pool="none"),
            ),
            hidden=(10,),
        ),
        24,
    ),
    "simple-cnn": (ModelConfig(activation="sigmoid"), 16),
    "small-resnet": (ModelConfig(name="small-resnet", width=4, depth=1), 16),
    "torchvision residual": (ModelConfig(name="torchvision/resnet18"), 64),
    "torchvision branches": (ModelConfig(name="torchvision/shufflenet_v2_x0_5"), 64),
    "torchvision convolution as head": (ModelConfig(name="torchvision/squeezenet1_1"), 64),
    "timm": (ModelConfig(name="timm/mobilenetv3_small_050"), 64),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(name, count=2):
    torch.manual_seed(0)
    config, size = NETS[name]
    model = build(config, 3, size, 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # not the identity that an untrained one is
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval(), torch.randn(count, 3, size, size), torch.arange(count) % 5


def by_the_book(model, module, image, label):
    """One image, the whole graph kept, loops over channels: equation (1) and (2) of the paper as they stand."""
    kept = []
    handle = module.register_forward_hook(lambda _, inputs, output: kept.append(output) or output.clone())
    logits = model(image[None].requires_grad_())
    handle.remove()
    gradient = torch.autograd.grad(logits[0, label], kept[0])[0][0]
    maps = kept[0][0].detach()
    total = torch.zeros(maps.shape[1:])
    for channel in range(len(maps)):
        total += gradient[channel].sum() / gradient[channel].numel() * maps[channel]
    return torch.clamp(total, min=0)


@pytest.mark.parametrize("name", NETS)
def test_grad_cam_is_the_equation_of_the_paper_at_every_stage(name):
    model, images, labels = made(name)
    found = feature_maps(model, images[:1])
    assert found
    for stage in found:
        module = stages_of(model)[stage]
        maps = grad_cam(model, module, images, labels)
        assert maps.shape == (2, *found[stage].shape[2:])
        expected = torch.stack([by_the_book(model, module, *pair) for pair in zip(images, labels, strict=True)])
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.max())))


@pytest.mark.parametrize("name", NETS)
def test_grad_cam_equals_captums_layer_grad_cam(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = pytest.importorskip(
            "captum.attr", reason="needs captum (pip install --no-deps captum: it asks for numpy below 2 without need)"
        )
    model, images, labels = made(name, count=3)
    for stage in feature_maps(model, images[:1]):
        module = stages_of(model)[stage]
        expected = captum.LayerGradCam(model, module).attribute(images, labels, relu_attributions=True)
        found = grad_cam(model, module, images, labels)
        torch.testing.assert_close(found, expected[:, 0].detach(), rtol=0, atol=1e-5)


def test_maps_are_by_default_those_of_the_last_stage_that_has_a_place():
    expected = {"convnet": "blocks.2", "small-resnet": "stage3", "torchvision residual": "layer4"}
    for name, stage in expected.items():
        model, images, _ = made(name)
        assert stage_with_maps(model, images[:1]) == stage
    model, images, _ = made("timm")  # its last layer, conv_head, sees one position alone
    stage = stage_with_maps(model, images[:1])
    assert feature_maps(model, images[:1])[stage].shape[-1] > 1


def test_a_model_is_left_as_it_was():
    model, images, labels = made("convnet")
    model.train()
    model.blocks[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    grad_cam(model, model.blocks[2], images, labels)
    feature_maps(model, images)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.blocks[2]._forward_hooks


def test_frozen_weights_and_channels_last_change_nothing():
    model, images, labels = made("small-resnet")
    expected = grad_cam(model, model.stage3, images, labels)
    frozen = model.requires_grad_(False).to(memory_format=torch.channels_last)
    found = grad_cam(frozen, frozen.stage3, images.contiguous(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_stages_is_explained_at_its_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 8, 8))
    assert stage_with_maps(model, torch.zeros(1, 3, 8, 8)) == "2"
    assert stage_with_maps(model, torch.zeros(1, 3, 8, 8), "0") == "0"
    image = torch.randn(3, 8, 8)
    expected = by_the_book(model.eval(), model[0], image, 1)  # the layer that follows works in place
    torch.testing.assert_close(grad_cam(model, model[0], image[None], torch.tensor([1]))[0], expected)


def test_what_cannot_be_explained_is_said_in_one_line():
    model, images, _ = made("convnet")
    with pytest.raises(UserError, match=r"stage 'blocks\.9' does not exist\. Did you mean 'blocks\.\d'\? Choices: "):
        stage_with_maps(model, images[:1], "blocks.9")
    with pytest.raises(
        UserError, match=r"'hidden' has no feature maps\. Stages that have: blocks\.0, blocks\.1, blocks\.2"
    ):
        stage_with_maps(model, images[:1], "hidden")
    with pytest.raises(UserError, match="no convolutions"):
        stage_with_maps(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))


def test_a_transformers_tokens_are_no_maps():
    torch.manual_seed(0)
    model = build(ModelConfig(name="timm/vit_tiny_patch16_224"), 3, 224, 2)
    with pytest.raises(UserError, match="no stage of this model returns feature maps"):
        stage_with_maps(model, torch.zeros(1, 3, 224, 224))


def test_a_net_that_looks_at_one_corner_has_its_heat_there():
    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            self.conv.weight.data.fill_(1.0)

        def forward(self, images):
            maps = self.conv(images)
            return torch.stack([maps[:, 0, :4, :4].sum((1, 2)), maps[:, 0, 4:, 4:].sum((1, 2))], dim=1)

    model, pixels = Corner(), np.zeros((1, 8, 8, 1), np.uint8)
    pixels[0, 1, 2] = 255
    heat = heat_maps(model, lambda batch: batch.permute(0, 3, 1, 2).float() / 255, InputPixels(pixels), [0])
    assert heat.shape == (1, 8, 8)
    assert np.unravel_index(heat[0].argmax(), (8, 8)) == (1, 2)
    assert heat[0].max() == 1
    assert heat[0].sum() == 1


@settings(max_examples=25)
@given(st.integers(1, 9), st.tuples(st.integers(9, 40), st.integers(9, 40)), st.integers(0, 2**31))
def test_enlarged_maps_lie_between_nothing_and_one(side, size, seed):
    maps = torch.rand(2, side, side, generator=torch.Generator().manual_seed(seed))
    maps[1] = 0
    found = enlarge(maps, size)
    assert found.shape == (2, *size)
    assert found.min() >= 0
    assert float(found[0].max()) == pytest.approx(1)
    assert not found[1].any()


def test_overlay_shows_the_image_where_it_is_cold_and_colour_where_it_is_hot():
    pixels = np.full((4, 4, 3), 90, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[2, 3] = 1
    shown = overlay(pixels, heat)
    assert shown.dtype == np.uint8
    assert shown.shape == (4, 4, 3)
    assert (shown[heat == 0] == 90).all()
    assert np.ptp(shown[2, 3]) > 50
    gray = overlay(pixels[..., :1], heat)
    np.testing.assert_array_equal(gray, shown)
