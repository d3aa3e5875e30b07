"""What goes into and comes out of the layers of a net, and the kernels that do it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from convsmith.explain.gradcam import run_hooked


def layers(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """The modules of these kinds by name, in the order in which they are defined."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def record(model: nn.Module, images: Tensor, names: Collection[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of the layers called `names` for `images` [N, C, S, S], in the order in which they ran.

    In eval mode. A layer that ran more than once shows its first time; one that did not run is left out.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    before: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            before.setdefault(name, inputs[0].clone())  # a layer that works in place would overwrite it

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


def strongest(maps: Tensor, count: int) -> list[int]:
    """The channels of `maps` [K, h, w] that vary most over their positions, the most varied first; at most `count`.

    Of maps of a single position, where nothing varies, those with the largest values.
    """
    flat = maps.flatten(1)
    worth = flat.std(dim=1) if flat.shape[1] > 1 else flat[:, 0]
    return [int(index) for index in worth.argsort(descending=True, stable=True)[:count]]


def evenly(names: Collection[str], count: int) -> list[str]:
    """At most `count` of `names`, the first and the last among them, the others at equal distances."""
    chosen = list(names)
    if len(chosen) <= count:
        return chosen
    return [chosen[round(place * (len(chosen) - 1) / (count - 1))] for place in range(count)]
