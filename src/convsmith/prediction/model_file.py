"""Reads and writes model/, the files of a trained model. Makes no predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from convsmith.contracts import Section
from convsmith.data.config import Preprocessing
from convsmith.data.preprocess import ToInput
from convsmith.errors import UserError, first_line
from convsmith.files import read_json, write_bytes, write_json
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.nets.tensors import checksum, load_strictly, read_safetensors
from convsmith.records import damaged, problem, unversioned, versioned

WEIGHTS, CARD = "model.safetensors", "model.json"


#: layout -> how torch orders images and weights in memory
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class ModelCard(Section):
    """model.json: all that predict, serve and export need besides the weights. Contains no times and no paths."""

    architecture: ModelConfig | None  # None for the user's own module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    layout: Literal["contiguous", "channels_last"]

    @property
    def memory_format(self) -> torch.memory_format:
        return FORMATS[self.layout]

    def to_input(self, device: torch.device) -> ToInput:
        """From prepared pixels, uint8 [B, W, W, C], to what the model takes."""
        return ToInput(self.preprocessing, device, self.memory_format)


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write model.safetensors and model.json, each atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # A single entry, since safetensors writes several in varying order, and equal runs must give equal files.
    header = versioned({"sha256": checksum(tensors)})
    write_bytes(folder / WEIGHTS, save(tensors, {"convsmith": json.dumps(header)}))
    write_json(folder / CARD, versioned(card.model_dump(mode="json")))


def read_card(folder: Path) -> ModelCard:
    """Read model.json; raises UserError if it is missing or damaged."""
    value = read_json(folder / CARD)
    card = unversioned(folder / CARD, value) if isinstance(value, dict) else value
    if (reason := problem(ModelCard, card)) is not None:
        raise damaged(folder / CARD, reason)
    return ModelCard.model_validate(card)


def read_model(folder: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read what `save_model` wrote; raises UserError if it is damaged."""
    card, hint = read_card(folder), "restore it, or train again"
    try:
        metadata, tensors = read_safetensors(folder / WEIGHTS)
    except OSError as error:
        raise UserError(f"'{folder / WEIGHTS}' cannot be read ({error.strerror or error}): {hint}") from None
    except SafetensorError as error:
        raise UserError(f"the model in '{folder}' is damaged ({first_line(error)}): {hint}") from None
    if "convsmith" in metadata:  # the first edition wrote the checksum alone
        metadata = unversioned(folder / WEIGHTS, json.loads(metadata["convsmith"]))
    if metadata.get("sha256") not in (None, checksum(tensors)):
        raise UserError(f"the model in '{folder}' is damaged (the checksum does not match): {hint}")
    return card, tensors


def load_model(folder: Path, device: torch.device, module: nn.Module | None = None) -> tuple[nn.Module, ModelCard]:
    """The model in eval mode on `device`. The user's own module must be passed in as `module`."""
    card, tensors = read_model(folder)
    if card.architecture is not None:
        size = card.preprocessing.image_size
        module = build(card.architecture, card.preprocessing.channels, size, len(card.classes))
    elif module is None:
        raise UserError(f"the model in '{folder}' is your own module: pass it in, convsmith.load(run, model=...)")
    load_strictly(module, tensors, f"the model in '{folder}'")
    assert module is not None
    return module.to(device=device, memory_format=card.memory_format).eval(), card  # type: ignore[call-overload]
