"""Grad-CAM, for any stage that returns feature maps, and its overlay on an image. Maps are scored in `attribution`.

Source: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization"
(ICCV 2017, arXiv:1610.02391). With A_k the maps of a stage, y the logit of a class and Z the positions of a map::

    w_k = 1/Z sum_ij dy / dA_k[i, j]          map = ReLU(sum_k w_k A_k)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convsmith.contracts import Classifier, gray_or_rgb
from convsmith.data.augment import LUMA
from convsmith.data.preprocess import InputPixels
from convsmith.errors import UserError, choose
from convsmith.nets.mirror import one_view

BATCH = 32  # images at a time: their maps and gradients are held at once
OPACITY = 0.6  # of the colour where a map is 1; where it is 0, only the image is seen
HEAT = "plasma"  # its lightness rises evenly, so it can be read in gray and with any colour vision

Module = TypeVar("Module", bound=nn.Module)


def stages_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are those of the stages, by name; for a net without stages, its convolutions.

    A stage that is a list of modules is never called itself: its last module stands for it.
    """
    if not isinstance(model, Classifier):
        return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    stages: Mapping[str, nn.Module] = model.stages
    return {name: _last(stage) for name, stage in stages.items()}


def _alike(maps: Sequence[int], images: Sequence[int]) -> bool:
    """Whether height and width have the same ratio, to the pixel that a rounded stride leaves."""
    (rows, columns), (height, width) = maps, images
    if height == width:
        return rows == columns
    return abs(rows - columns * height / width) <= 1 or abs(columns - rows * width / height) <= 1


def feature_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The outputs of the stages for `images` [N, C, H, W], by name and in order: each [N, K, h, w].

    Stages that return no maps (fully connected ones, tokens of a transformer) are left out.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # Maps have the form of the images: the output [N, h, w, K] of a transformer is not a map.
            if isinstance(output, Tensor) and output.ndim == 4 and _alike(output.shape[2:], images.shape[2:]):
                found[name] = output.clone()  # an in-place layer may follow

        return hook

    stages = stages_of(model)
    handles = [module.register_forward_hook(keep(name)) for name, module in stages.items()]
    run_hooked(model, images, handles)
    return {name: found[name] for name in stages if name in found}


def run_hooked(model: nn.Module, images: Tensor, handles: Sequence[RemovableHandle]) -> None:
    """Run a forward pass in eval mode without gradients for the hooks, and remove them afterwards."""
    try:
        with torch.no_grad(), evaluating(model), one_view(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def stage_with_maps(model: nn.Module, image: Tensor, name: str | None = None) -> str:
    """The stage called `name`, or else the last one with feature maps. `image` is any input [1, C, H, W].

    UserError where the net has no convolutions, or the stage does not exist or has no maps.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise UserError("this model has no convolutions, and Grad-CAM needs their feature maps: choose another model")
    stages = stages_of(model)
    if name is not None and name not in stages:
        raise choose("stage", name, stages)
    shapes = {stage: math.prod(maps.shape[-2:]) for stage, maps in feature_maps(model, image).items()}
    if not shapes:
        raise UserError("no stage of this model returns feature maps, which Grad-CAM needs: choose a convolutional one")
    if name is None:
        # A map of 1 x 1 has no positions to tell apart, so the last stage with a larger map is preferred.
        return [stage for stage, size in shapes.items() if size > 1 or max(shapes.values()) == 1][-1]
    if name not in shapes:
        raise UserError(f"stage '{name}' has no feature maps. Stages that have: {', '.join(shapes)}")
    return name


def grad_cam(model: nn.Module, module: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM of the output [N, K, h, w] of `module` for one class index per image: float [N, h, w], at least 0.

    `images` float [N, C, H, W] as the net takes them, `classes` int64 [N]. The model runs in eval mode; its mode and
    gradients are left as they were.
    """
    kept: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # an in-place layer may follow

    handle = module.register_forward_hook(hook)
    try:
        with torch.enable_grad(), evaluating(model), one_view(model):
            logits = model(images)
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
    finally:
        handle.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * kept[0].detach()).sum(dim=1).relu()


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge maps [N, h, w] bilinearly to [N, *size], each divided by its maximum: in [0, 1]. Zeros stay zero."""
    enlarged = nn.functional.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    return enlarged / enlarged.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def heat_maps(
    model: nn.Module,
    to_input: Callable[[Tensor], Tensor],
    pixels: InputPixels,
    classes: Sequence[int] | NDArray[np.int64],
    stage: str | None = None,
) -> NDArray[np.float32]:
    """Grad-CAM of N prepared images for one class index each: float32 [N, H, W] in [0, 1].

    `to_input` turns them into the input of the net, on the model's device. `stage` is as in `stage_with_maps`.
    """
    device = next(model.parameters()).device
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(pixels), BATCH):
        images = to_input(InputPixels(pixels.array[start : start + BATCH]).tensor(device))
        stage = stage_with_maps(model, images[:1], stage) if start == 0 else stage
        assert stage is not None
        chosen = torch.as_tensor(np.asarray(classes[start : start + BATCH]), dtype=torch.int64, device=device)
        maps = grad_cam(model, stages_of(model)[stage], images, chosen)
        found.append(enlarge(maps.float(), pixels.array.shape[1:3]).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(pixels.array.shape[:3], np.float32)


def overlay(pixels: NDArray[np.uint8], heat: NDArray[Any]) -> NDArray[np.uint8]:
    """An image uint8 [H, W, C] under its map, float [H, W] in [0, 1]: uint8 RGB [H, W, 3].

    The image is shown in gray, so that colour means only heat; the hotter a pixel, the more colour covers it.
    """
    from matplotlib import colormaps

    seen = gray_or_rgb(pixels).astype(np.float32)
    gray = seen @ np.array(LUMA) if seen.ndim == 3 else seen
    colour = colormaps[HEAT](np.clip(heat, 0, 1))[..., :3] * 255
    opacity = OPACITY * np.clip(heat, 0, 1)[..., None]
    result: NDArray[np.uint8] = np.rint((1 - opacity) * gray[..., None] + opacity * colour).astype(np.uint8)
    return result


@contextmanager
def evaluating(model: Module) -> Any:
    """A context in which the model is in eval mode; afterwards, every part is back in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def _last(stage: nn.Module) -> nn.Module:
    return _last(stage[-1]) if isinstance(stage, nn.ModuleList) else stage
