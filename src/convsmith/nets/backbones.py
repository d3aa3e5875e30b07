"""Architectures of torchvision and timm by name, as classifiers with features, head and stages. Loads no weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.contracts import Size, hw, size_text
from convsmith.errors import UserError, choose, first_line

# Containers that hold stages rather than being one.
_CONTAINERS = ("features", "layers", "blocks", "stages", "trunk_output", "classifier")

# Auxiliary classifiers change the output in training, and without init_weights these two networks warn.
_TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class Backbone(nn.Module):
    """A library's network with its last linear layer as `head`: a `contracts.Classifier`.

    A head that is a 1 x 1 convolution becomes the linear layer of the same weights on the averaged features. `net` is
    the library's module with its original parameter names and an identity in place of the head; `head_name` is the
    original name of the head, and `changes` describes what was adapted. The stages go from `stem`
    to the last one; every parameter of `net` is in exactly one. A stage of several modules is a ModuleList, which is
    never called itself: to see the stage's output, hook its last module.
    """

    def __init__(self, name: str, net: nn.Module, head_name: str, changes: tuple[str, ...] = ()) -> None:
        super().__init__()
        head = net.get_submodule(head_name)
        if isinstance(head, nn.Conv2d):
            head = _as_linear(head)
        assert isinstance(head, nn.Linear)
        _replace(net, head_name, nn.Identity())
        self.name, self.head_name, self.changes = name, head_name, changes
        self.net, self.head = net, head
        in_stages = [id(p) for stage in self.stages.values() for p in stage.parameters()]
        assert sorted(in_stages) == sorted(id(p) for p in net.parameters()), f"{name}: stages do not cover the net"

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        return _stages(self.net)

    def features(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> features [N, F]."""
        features: Tensor = self.net(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """`images` float [N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def library_network(model: str) -> nn.Module:
    """The network ``library/name`` as the library builds it, with random weights and its own number of classes."""
    library, _, name = model.partition("/")
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    from torchvision import models

    net: nn.Module = models.get_model(name, weights=None, **_TORCHVISION_OPTIONS.get(name, {}))
    return net


def torchvision_backbone(name: str, channels: int, image_size: Size, classes: int) -> Backbone:
    """torchvision's classification network `name`, untrained. Only the input channels of its stem are adapted."""
    from torchvision import models

    refuse_unknown_torchvision(name)
    net = models.get_model(name, weights=None, num_classes=classes, **_TORCHVISION_OPTIONS.get(name, {}))
    changes = () if channels == 3 else (_adapt_stem(net, channels),)
    last = {
        kind: path for path, module in net.named_modules() for kind in (nn.Linear, nn.Conv2d) if type(module) is kind
    }
    return _adapted(f"torchvision/{name}", net, last.get(nn.Linear) or last[nn.Conv2d], changes, channels, image_size)


def timm_backbone(name: str, channels: int, image_size: Size, classes: int) -> Backbone:
    """timm's network `name`, untrained, with the input channels adapted by timm."""
    refuse_unknown_timm(name)
    import timm

    try:
        net = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=classes)
    except TypeError as error:
        raise UserError(f"model 'timm/{name}' cannot be adapted to {channels} channels, {classes} classes") from error
    head = net.get_classifier()  # type: ignore[operator]
    path = next((path for path, module in net.named_modules() if module is head), None)
    return _adapted(f"timm/{name}", net, path, (), channels, image_size)


def refuse_unknown_torchvision(name: str) -> None:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise choose("torchvision architecture", name, names)


def refuse_unknown_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"nearest: {', '.join(close)}" if close else "timm.list_models() has all names"
        raise UserError(f"timm architecture '{name}' does not exist; {hint}")


def _adapted(
    name: str, net: nn.Module, head_name: str | None, changes: tuple[str, ...], channels: int, image_size: Size
) -> Backbone:
    """Make a Backbone, after running one image to check that the size fits and that the head produces the logits."""
    head = net.get_submodule(head_name) if head_name else None
    if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) and head.groups == 1:
        assert head_name is not None
        backbone = Backbone(name, net, head_name, changes)
        features = _output(name, net, channels, image_size)
        if isinstance(features, Tensor) and features.shape == (1, head.in_channels):
            return backbone
    if head_name is None or not isinstance(head, nn.Linear):
        raise UserError(
            f"model '{name}' cannot be used: its head is neither a linear layer nor a 1 x 1 convolution; choose "
            "another architecture"
        )
    outputs: list[Tensor] = []
    handle = head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        logits = _output(name, net, channels, image_size)
    finally:
        handle.remove()
    if len(outputs) != 1 or not isinstance(logits, Tensor) or not torch.equal(outputs[0], logits) or logits.dim() != 2:
        raise UserError(
            f"model '{name}' cannot be used: its logits do not come from a single last linear layer; "
            "choose another architecture"
        )
    return Backbone(name, net, head_name, changes)


def _output(name: str, net: nn.Module, channels: int, image_size: Size) -> Any:
    """What the network makes of one image of zeros. Raises UserError if it does not accept images of this size."""
    net.eval()
    try:
        with torch.no_grad():
            return net(torch.zeros(1, channels, *hw(image_size)))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"model '{name}' does not accept {size_text(image_size)} images ({first_line(error)}); "
            "use another --data.image_size or another architecture"
        ) from error
    finally:
        net.train()


def _as_linear(convolution: nn.Conv2d) -> nn.Linear:
    """The linear layer that computes on features [N, C] what a 1 x 1 convolution does on maps [N, C, 1, 1]."""
    linear = nn.Linear(convolution.in_channels, convolution.out_channels, bias=convolution.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(convolution.weight[..., 0, 0])
        if convolution.bias is not None:
            linear.bias.copy_(convolution.bias)
    return linear


def first_convolution(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """The name and the module of the convolution that sees the image."""
    return next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))


def _adapt_stem(net: nn.Module, channels: int) -> str:
    """Replace the first convolution with one for `channels` input channels; returns a description of the change."""
    path, old = first_convolution(net)
    assert old.groups == 1
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    _replace(net, path, new)
    return f"{path} was initialised randomly for {channels} input channels instead of {old.in_channels}"


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def _stages(net: nn.Module) -> dict[str, nn.Module]:
    """The stages of `net` by name, from input to output.

    A module that contains layers is a stage; consecutive single layers form one stage, up to the next pooling.
    The first stage is the `stem`, together with the single layers that directly follow it.
    """
    groups: list[tuple[str, list[nn.Module]]] = []
    run: list[nn.Module] = []
    own = list(net.parameters(recurse=False))
    if own:
        run = [nn.ParameterList(own)]
        groups.append(("stem", run))
    for name, module in _units(net):
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            run = []
        elif not any(True for _ in module.parameters()):
            continue
        elif any(True for child in module.children() for _ in child.parameters()):
            groups.append((name if groups else "stem", [module]))
            run = groups[-1][1] if len(groups) == 1 else []
        elif run:
            run.append(module)
        else:
            run = [module]
            groups.append((name if groups else "stem", run))
    return {name: modules[0] if len(modules) == 1 else nn.ModuleList(modules) for name, modules in groups}


def _units(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children of `net`, with each container replaced by its own children."""
    units: list[tuple[str, nn.Module]] = []
    for name, child in net.named_children():
        if name in _CONTAINERS and isinstance(child, nn.Sequential | nn.ModuleList):
            units += [(f"{name}.{inner}", module) for inner, module in child.named_children()]
        else:
            units.append((name, child))
    return units
