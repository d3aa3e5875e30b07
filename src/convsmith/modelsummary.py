"""Summarises a network layer by layer, without training it. Prints nothing; display.py shows it in a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from convsmith.config import RunConfig
from convsmith.contracts import Size, size_text
from convsmith.data.dataset import input_shape
from convsmith.errors import UserError
from convsmith.memory import explain_memory_errors
from convsmith.nets.build import build
from convsmith.nets.shapes import LayerRow, totals, trace
from convsmith.prediction.model_file import read_card
from convsmith.rundir import open_single
from convsmith.training.own import NO_PARTS, Parts
from convsmith.transfer import weights


@dataclass(frozen=True)
class ModelSummary:
    """The layers of a network for images [N, channels, *hw(image_size)] and this number of classes."""

    name: str
    channels: int
    image_size: Size
    classes: int
    layers: tuple[LayerRow, ...]

    @property
    def parameters(self) -> int:
        return totals(self.layers).parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of convolutions and fully connected layers for one image."""
        return totals(self.layers).macs

    @property
    def title(self) -> str:
        return f"{self.name} on {size_text(self.image_size)} x {self.channels}, {self.classes} classes"

    def table(self) -> list[dict[str, Any]]:
        """One row per layer."""
        return [asdict(row) for row in self.layers]


@explain_memory_errors("while the network was built", "choose a smaller network or a smaller data.image_size")
def of_config(config: RunConfig, parts: Parts = NO_PARTS) -> ModelSummary:
    """The network that this config describes; nothing is decoded, and no weights are downloaded."""
    config, spec = weights.expected(config)
    channels, size, classes = input_shape(config.data, spec, parts.source)
    model = parts.module or build(config.model, channels, size, classes)
    return _traced(model, type(model).__name__ if parts.module else config.model.name, channels, size, classes)


@explain_memory_errors("while the network was built")
def of_run(directory: Path, parts: Parts = NO_PARTS) -> ModelSummary:
    """The network of a run directory."""
    card = read_card(open_single(directory, "model/model.json").model)
    seen, classes = card.preprocessing, len(card.classes)
    if parts.module is not None:
        return _traced(parts.module, type(parts.module).__name__, seen.channels, seen.image_size, classes)
    if card.architecture is None:
        raise UserError(
            f"the network of run '{directory}' is your own module: pass it in, convsmith.summary(run=..., model=...)"
        )
    model = build(card.architecture, seen.channels, seen.image_size, classes)
    return _traced(model, card.architecture.name, seen.channels, seen.image_size, classes)


def _traced(model: nn.Module, name: str, channels: int, size: Size, classes: int) -> ModelSummary:
    return ModelSummary(name, channels, size, classes, tuple(trace(model, channels, size)))
