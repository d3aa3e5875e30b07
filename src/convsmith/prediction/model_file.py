"""Reads and writes model/, the files of a trained model. Makes no predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import field_validator
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from convsmith.contracts import Section
from convsmith.data.config import Preprocessing
from convsmith.data.preprocess import ToInput
from convsmith.errors import UserError, damaged, first_line
from convsmith.files import parse_json, read_json, write_bytes, write_json
from convsmith.nets.build import build
from convsmith.nets.config import ModelConfig
from convsmith.nets.tensors import checksum, load_strictly, read_safetensors, refuse_nonfinite
from convsmith.records import problem, unversioned, versioned
from convsmith.rundir import CARD

WEIGHTS = "model.safetensors"  # beside model.json


#: layout -> how torch orders images and weights in memory
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class ModelCard(Section):
    """model.json: all that predict, serve and export need besides the weights. Contains no times and no paths.

    In the file, `sha256` is the checksum of the rest. The file of weights repeats it, within its own checksum, which is
    thus one over both. Without it (removed by a person, or never written by the first edition) nothing is compared.
    """

    architecture: ModelConfig | None  # None for the user's own module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    layout: Literal["contiguous", "channels_last"]

    @field_validator("classes")
    @classmethod
    def _two_or_more(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < max(len(classes), 2):
            raise ValueError("must be two or more different names")
        return classes

    @property
    def memory_format(self) -> torch.memory_format:
        return FORMATS[self.layout]

    def to_input(self, device: torch.device) -> ToInput:
        """From prepared pixels, uint8 [B, H, W, C], to what the model takes."""
        return ToInput(self.preprocessing, device, self.memory_format)


def save_model(folder: Path, model: nn.Module, card: ModelCard, temperature: float = 1.0) -> None:
    """Write model.safetensors and model.json, each atomically.

    The logits of the written model are those of `model` divided by `temperature`, which goes into the linear head.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if temperature != 1:
        tensors |= {name: value / temperature for name, value in tensors.items() if name.startswith("head.")}
    content = versioned(card.model_dump(mode="json"))
    # A single entry, since safetensors writes several in varying order, and equal runs must give equal files.
    header = versioned({"sha256": checksum(tensors, _digest(content)), "card": _digest(content)})
    write_bytes(folder / WEIGHTS, save(tensors, {"convsmith": json.dumps(header)}))
    write_json(folder / CARD, content | {"sha256": _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of model.json, whatever the spaces between."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_card(folder: Path) -> ModelCard:
    """Read model.json; raises UserError if it is missing or damaged."""
    return _read_card(folder)[0]


def _read_card(folder: Path) -> tuple[ModelCard, str | None]:
    """model.json and its checksum; None if it has none."""
    value = read_json(folder / CARD)
    if not isinstance(value, dict):
        raise damaged(folder / CARD, "it is not an object")
    sha256 = value.pop("sha256", None)
    if sha256 not in (None, _digest(value)):
        raise _altered(folder)
    card = unversioned(folder / CARD, value)
    if (reason := problem(ModelCard, card)) is not None:
        raise damaged(folder / CARD, reason)
    return ModelCard.model_validate(card), sha256


def _altered(folder: Path) -> UserError:
    return UserError(
        f"'{folder / CARD}' is not as it was written with the weights beside it: restore it, or train again; "
        'if you have changed it on purpose, remove its "sha256"'
    )


def read_model(folder: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read what `save_model` wrote; raises UserError if it is damaged."""
    (card, sha256), hint = _read_card(folder), "restore it, or train again"
    try:
        metadata, tensors = read_safetensors(folder / WEIGHTS)
        header = parse_json(metadata["convsmith"]) if "convsmith" in metadata else metadata  # of the first edition
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except OSError as error:
        raise UserError(f"'{folder / WEIGHTS}' cannot be read ({error.strerror or error}): {hint}") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"the model in '{folder}' is damaged ({first_line(error)}): {hint}") from None
    header = unversioned(folder / WEIGHTS, header) if "convsmith" in metadata else header
    if header.get("sha256") not in (None, checksum(tensors, str(header.get("card", "")))):
        raise UserError(f"the model in '{folder}' is damaged (the checksum does not match): {hint}")
    if sha256 is not None and header.get("card") != sha256:
        raise _altered(folder)
    return card, tensors


def load_model(folder: Path, device: torch.device, module: nn.Module | None = None) -> tuple[nn.Module, ModelCard]:
    """The model in eval mode on `device`. The user's own module must be passed in as `module`."""
    card, tensors = read_model(folder)
    if card.architecture is not None:
        size = card.preprocessing.image_size
        try:
            module = build(card.architecture, card.preprocessing.channels, size, len(card.classes))
        except UserError as error:
            raise damaged(folder / CARD, str(error)) from None
    elif module is None:
        raise UserError(f"the model in '{folder}' is your own module: pass it in, convsmith.load(run, model=...)")
    assert module is not None
    load_strictly(module, tensors, f"the model in '{folder}'")
    refuse_nonfinite(module, f"the model in '{folder}'")
    return module.to(device=device, memory_format=card.memory_format).eval(), card  # type: ignore[call-overload]
