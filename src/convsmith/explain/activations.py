"""The inputs and outputs of a net's layers, and the gradients of their weights. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from convsmith.explain.gradcam import run_hooked


def layers(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """The modules of these kinds by name, in the order in which they are defined."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def record(model: nn.Module, images: Tensor, names: Collection[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of the layers called `names` for `images` [N, C, H, W], in the order in which they ran.

    The model runs in eval mode. For a layer that runs more than once, the first time counts; one that does not run is
    left out.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    before: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            before.setdefault(name, inputs[0].clone())  # an in-place layer would overwrite it

        return hook

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found.setdefault(name, (before[name], output.clone()))

        return hook

    handles = []
    for name in names:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(note(name)), module.register_forward_hook(keep(name))]
    run_hooked(model, images, handles)
    return found


def evenly(names: Collection[str], count: int) -> list[str]:
    """At most `count` of `names`, evenly spaced and including the first and the last."""
    chosen = list(names)
    if len(chosen) <= count:
        return chosen
    return [chosen[round(at * (len(chosen) - 1) / (count - 1))] for at in range(count)]


def gradient_rms(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Root mean square of the gradient with respect to the weights of each convolution and linear layer, in order.

    `images` float [N, C, H, W], `labels` int64 [N]; the loss is the mean cross-entropy in nats. The model's own
    gradients are left as None. In a chain of saturating activations the values fall towards the first layer: the
    vanishing gradients of Hochreiter (1991) and Glorot and Bengio (2010).
    """
    model.zero_grad(set_to_none=True)
    cross_entropy(model(images), labels).backward()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.grad is not None:
            found[name] = float(module.weight.grad.square().mean().sqrt())
    model.zero_grad(set_to_none=True)
    return found
