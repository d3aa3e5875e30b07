"""Divides a network behind the stages that stay frozen for a whole run: their outputs are constants. Keeps nothing.

What is above them is a copy of the network's structure with the same parameters, in which the modules below do nothing.
That this computes what the network does is checked on images, for networks of libraries are of many kinds.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from convsmith.contracts import Classifier
from convsmith.transfer.unfreezing import Finetuning, stages_and_head


@dataclass(frozen=True)
class Division:
    """The names of the modules below the boundary, of which the outputs of `last` are the constants."""

    below: tuple[str, ...]
    last: str

    def rest(self, model: nn.Module) -> nn.Module:
        """The network above the boundary, which takes outputs of `last`; its parameters and buffers are the model's."""
        tensors = chain(model.parameters(), model.buffers())
        rest: nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        for name in self.below:
            parent, _, child = name.rpartition(".")
            setattr(rest.get_submodule(parent), child, nn.Identity())
        return rest

    @torch.no_grad()
    def maps(self, model: nn.Module, images: Tensor) -> Tensor:
        """The outputs of `last` for network inputs, in eval mode; nothing above it is computed."""
        with _in_eval_mode(model), _ends_with(model.get_submodule(self.last)) as outputs:
            model(images)
        return outputs[0]

    def digest(self, model: nn.Module) -> str:
        """A hash of all that the outputs of `last` depend on in the network."""
        digest = hashlib.sha256(repr((self, model)).encode())
        for name in self.below:
            for key, value in model.get_submodule(name).state_dict().items():
                digest.update(f"{name} {key} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


@torch.no_grad()
def divide(model: nn.Module, finetuning: Finetuning, images: Tensor) -> Division | None:
    """The division of a network behind the stages that no phase of `finetuning` trains; None if there is none.

    `images` are some inputs, for which network and division must agree to the last bit, in eval mode.
    """
    trained = {id(value) for name, value in model.named_parameters() if name in finetuning.phases[-1].trains}
    names = {id(module): name for name, module in model.named_modules()}
    assert isinstance(model, Classifier)
    inside: list[str] = []
    for _, stage in list(stages_and_head(model))[:-1]:
        modules = stage if isinstance(stage, nn.ModuleList) else [stage]
        if any(id(value) in trained for value in stage.parameters()) or not all(id(one) in names for one in modules):
            break
        inside += [names[id(module)] for module in modules]
    if not inside:
        return None
    try:
        with _in_eval_mode(model):
            within = tuple(f"{name}." for name in inside)
            others = [name for name in _called_before(model, inside[-1], images) if not name.startswith(within)]
            division = Division(tuple(dict.fromkeys([*inside, *others])), inside[-1])
            agrees = torch.equal(division.rest(model)(division.maps(model, images)), model(images))
    except Exception:  # whatever a network raises whose stages are no chain of modules that take and give one tensor
        return None
    return division if agrees else None


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """A context in which batch norm learns nothing from the images."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _ReachedError(Exception):
    """A module has been computed whose outputs are wanted."""


@contextmanager
def _ends_with(module: nn.Module) -> Iterator[list[Tensor]]:
    """A context in which the network's forward pass ends with a module; its output is in the list."""
    outputs: list[Tensor] = []

    def end(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output)
        raise _ReachedError

    handle = module.register_forward_hook(end)
    try:
        yield outputs
    except _ReachedError:
        pass
    finally:
        handle.remove()


def _called_before(model: nn.Module, last: str, images: Tensor) -> list[str]:
    """The modules without parameters and children that are called before `last` has ended."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children()) and not any(True for _ in module.parameters())
    ]
    try:
        with _ends_with(model.get_submodule(last)):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return called
