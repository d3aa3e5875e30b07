"""Computes the sizes, parameters, MACs and receptive fields of a network's layers. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convsmith.contracts import Size, hw, size_text
from convsmith.errors import UserError
from convsmith.nets.mirror import one_view

BYTES = 4  # float32


def output_size(size: int, kernel: int, padding: int, stride: int) -> int:
    """The size equation O = floor((T - K + 2P) / S) + 1, in pixels; below 1 where the window does not fit."""
    return (size - kernel + 2 * padding) // stride + 1


def discarded(size: int, kernel: int, padding: int, stride: int) -> int:
    """The number of pixels at the far edge of the padded input that no window covers: (T - K + 2P) mod S."""
    return (size - kernel + 2 * padding) % stride


def equation(size: int, kernel: int, padding: int, stride: int) -> str:
    """The size equation with its numbers, for example ``floor((31 - 2 + 2*0)/2) + 1 = 15, discards 1``."""
    quotient = f"({size} - {kernel} + 2*{padding})/{stride}"
    result = output_size(size, kernel, padding, stride)
    lost = discarded(size, kernel, padding, stride)
    if not lost:
        return f"{quotient} + 1 = {result}"
    what = f"{lost} of padding" if lost <= padding else f"{lost}, {padding} of padding" if padding else str(lost)
    return f"floor({quotient}) + 1 = {result}, discards {what}"


def fitted_size(layer: str, size: tuple[int, int], kernel: int, padding: int, stride: int, fix: str) -> tuple[int, int]:
    """Height and width by `output_size` if the window fits; else a UserError that names the layer, the equation and
    how to fix it.
    """
    if kernel > (side := min(size)) + 2 * padding:
        quotient = f"({side} - {kernel} + 2*{padding})/{stride}"
        floored = quotient if stride == 1 else f"floor({quotient})"
        raise UserError(
            f"{layer}: {floored} + 1 = {output_size(side, kernel, padding, stride)}: "
            f"a {kernel} x {kernel} window does not fit into {size_text(size)} pixels; {fix}"
        )
    height, width = (output_size(side, kernel, padding, stride) for side in size)
    return height, width


@dataclass(frozen=True)
class LayerRow:
    """One layer, as it ran on one image. Shapes leave out the batch: (C, H, W) or (F,).

    `macs` (multiply-accumulate operations) counts only convolutions and fully connected layers, without
    biases; this is the usual convention, and half of what torch's FlopCounterMode reports. `receptive_field` is in
    pixels of the image along the height and includes padding, so that it can exceed the image. It is the largest one
    over all branches and follows from the windows of convolutions and poolings only (attention
    and functional pooling see more); it is None if no positions are left (flattened or fully connected layers).
    `equation` is empty if the layer has none, or pads or rounds in another way.
    """

    name: str
    kind: str
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    padding: tuple[int, int] | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    equation: str
    discarded: int
    parameters: int
    macs: int
    receptive_field: int | None


@dataclass(frozen=True)
class Totals:
    parameters: int
    macs: int


def totals(rows: Iterable[LayerRow]) -> Totals:
    """The sums over `rows`: the network's parameters, and the MACs of one forward pass of one image."""
    rows = list(rows)
    return Totals(sum(row.parameters for row in rows), sum(row.macs for row in rows))


@dataclass(frozen=True)
class Estimate:
    """An upper bound of the memory that training needs, in bytes (float32)."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def memory(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


def estimate(rows: Iterable[LayerRow], *, batch: int, state_per_parameter: int, backward: bool = True) -> Estimate:
    """Estimate the memory for training with batches of `batch` images.

    `state_per_parameter` is the number of values kept for each parameter (SGD 0, with momentum 1, Adam 2; one more for
    EMA). The input and the output of every layer are kept for the backward pass. Without a backward pass there are no
    gradients, and only the input and the output of the current layer are kept.
    """
    rows = list(rows)
    weights = BYTES * totals(rows).parameters
    if not backward:
        widest = max((prod(row.input_shape) + prod(row.output_shape) for row in rows), default=0)
        return Estimate(parameters=weights, gradients=0, optimizer=0, activations=BYTES * batch * widest)
    kept = sum(prod(row.output_shape) for row in rows if row.output_shape and row.kind not in _VIEWS)
    if rows:
        kept += prod(rows[0].input_shape)
    return Estimate(
        parameters=weights,
        gradients=weights,
        optimizer=state_per_parameter * weights,
        activations=BYTES * batch * kept,
    )


_VIEWS = ("Flatten", "Identity")


def trace(model: nn.Module, channels: int, size: Size) -> list[LayerRow]:
    """One row for each layer that runs, in the order of execution, on one image of zeros in eval mode.

    A layer is a module without children, or one that has parameters itself. Functions called outside
    modules (additions, functional pooling, attention products) have no row. Parameters are counted once,
    where they first appear; those of modules that are never called come last, with empty shapes, so
    that the sum is that of the network. The model's modes are restored.
    """
    rows: list[LayerRow] = []
    counted: set[int] = set()
    called: set[int] = set()
    layers = {
        name: module
        for name, module in model.named_modules()
        if not any(module.children()) or any(True for _ in module.parameters(recurse=False))
    }

    def new_parameters(module: nn.Module) -> int:
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(id(p) for p in own)
        return sum(p.numel() for p in own)

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        called.add(id(module))
        source, result = _first_tensor(inputs), _first_tensor(output)
        if source is None or result is None or isinstance(module, nn.Identity):
            return
        rows.append(_row(name, module, source, result, new_parameters(module)))

    modes = {module: module.training for module in model.modules()}
    first = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, channels, *hw(size), device=first.device, dtype=first.dtype)
    _set_receptive_field(image, (1, 1))
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: record(name, module, inputs, output))
        for name, module in layers.items()
    ]
    try:
        model.eval()
        with torch.no_grad(), one_view(model), _PropagateReceptiveFields():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    for name, module in layers.items():
        if id(module) not in called and (parameters := new_parameters(module)):
            rows.append(LayerRow(name, type(module).__name__, None, None, None, (), (), "", 0, parameters, 0, None))
    return rows


def _row(name: str, module: nn.Module, source: Tensor, result: Tensor, parameters: int) -> LayerRow:
    window = _window(module)
    field = _receptive_field(source)
    text, lost = "", 0
    if window and source.dim() == 4:
        _, stride, padding, extent = window
        axes = list(zip(source.shape[2:], extent, padding, stride, strict=True))
        if [output_size(*axis) for axis in axes] == list(result.shape[2:]):
            texts = [equation(*axis) for axis in axes]
            text = texts[0] if texts[0] == texts[1] else "; ".join(texts)
            lost = max(discarded(*axis) for axis in axes)
        if field:
            field = (field[0] + (extent[0] - 1) * field[1], field[1] * stride[0])
    elif isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        rows = source.shape[2]
        text = f"{rows} x {source.shape[3]} to {result.shape[2]} x {result.shape[3]}"
        # A single position sees the whole map and has no neighbours, so its jump does not matter.
        field = (field[0] + (rows - 1) * field[1], field[1]) if field and result.shape[2] == 1 else None
    elif isinstance(module, nn.Flatten) and source.dim() > 2:
        text = f"{'*'.join(str(n) for n in source.shape[1:])} = {result.shape[1]}"
    _set_receptive_field(result, field)
    macs = 0
    if isinstance(module, nn.Conv2d | nn.Linear):
        macs = result.numel() * module.weight[0].numel()
    return LayerRow(
        name=name,
        kind=type(module).__name__,
        kernel=window[0] if window else None,
        stride=window[1] if window else None,
        padding=window[2] if window else None,
        input_shape=tuple(source.shape[1:]),
        output_shape=tuple(result.shape[1:]),
        equation=text,
        discarded=lost,
        parameters=parameters,
        macs=macs,
        receptive_field=field[0] if field and result.dim() == 4 else None,
    )


_Pair = tuple[int, int]


def _window(module: nn.Module) -> tuple[_Pair, _Pair, _Pair, _Pair] | None:
    """Kernel, stride, padding and extent (of the dilated kernel) of a convolution or a pooling."""
    kernel, stride = getattr(module, "kernel_size", None), getattr(module, "stride", None)
    if not (_is_pair(kernel) and _is_pair(stride)):
        return None
    kernel, stride, dilation = _pair(kernel), _pair(stride), _pair(getattr(module, "dilation", 1))
    extent = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        padding = tuple(ceil((n - 1) / 2) for n in extent) if padding == "same" else 0
    return kernel, stride, _pair(padding), extent


def _is_pair(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, Sequence) and len(value) == 2)


def _pair(value: Any) -> _Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _first_tensor(value: Any) -> Tensor | None:
    return next(iter(_tensors(value)), None)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


# A tensor's (receptive field, jump): the jump is the distance between two neighbouring positions, in image pixels.


def _receptive_field(tensor: Tensor) -> _Pair | None:
    return getattr(tensor, "_receptive_field", None)


def _set_receptive_field(tensor: Tensor, field: _Pair | None) -> None:
    tensor._receptive_field = field  # type: ignore[attr-defined]


class _PropagateReceptiveFields(TorchFunctionMode):
    """Passes receptive fields through functions between modules: results get the largest one of the arguments."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        receptive_fields = [field for tensor in _tensors(args) if (field := _receptive_field(tensor))]
        if receptive_fields:
            largest = (max(field for field, _ in receptive_fields), max(jump for _, jump in receptive_fields))
            for tensor in _tensors(result):
                _set_receptive_field(tensor, largest)
        return result
