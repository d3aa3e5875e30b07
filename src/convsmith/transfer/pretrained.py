"""Pretrained weights: the input they expect, where to get them, how they map to our parameters. Trains nothing."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from convsmith.contracts import InputSpec
from convsmith.errors import UserError, first_line
from convsmith.files import require_file
from convsmith.nets.backbones import Backbone, first_convolution, refuse_unknown_timm, refuse_unknown_torchvision
from convsmith.nets.config import refuse_unknown
from convsmith.nets.tensors import read_safetensors
from convsmith.transfer import lookup

Tensors = dict[str, Tensor]

SMALLEST = 96  # side in pixels to which small images are enlarged for networks that were trained on photographs
HEAD, NET = "head.", "net."
WRAPPERS = ("state_dict", "model")  # keys under which training scripts store weights beside other data

# Auxiliary heads that are only for training; our networks are built without them.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's networks that take images of a single size, since they have learnt a value for each position.
_FIXED = ("vit_", "maxvit_")
# torchvision trained these with mean and standard deviation 0.5; its `transform_input` converts from the usual ones.
_HALVED = ("googlenet", "inception_v3")


def expected_input(model: str) -> InputSpec | None:
    """The input that the library's weights of ``torchvision/<name>`` or ``timm/<name>`` expect; None if unknown."""
    library, slash, name = model.partition("/")
    if not slash or library not in _LIBRARIES:
        return None
    return _LIBRARIES[library].expects(name)


def has_weights(model: str, cache: Path) -> bool:
    """Whether `hub_weights` has a source for ``torchvision/<name>`` or ``timm/<name>``: a file, or the library's own.

    Raises UserError for a name that the library does not know.
    """
    library, _, name = model.partition("/")
    _LIBRARIES[library].refuse_unknown(name)
    return lookup.placed(model, cache).is_file() or lookup.origin(model) is not None


def hub_weights(model: str, cache: Path) -> tuple[Tensors, str]:
    """The library's weights of an architecture, by the library's names, and a description of them.

    Those in the cache folder come first, then those that the library has downloaded before, then a download. Raises
    UserError for networks without weights, and WeightsAbsent if they cannot be had.
    """
    library, slash, name = model.partition("/")
    if not slash or library not in _LIBRARIES:
        refuse_unknown(model)
        raise UserError(
            f"--transfer.weights default: '{model}' has no pretrained weights; choose a --model that has some, such as "
            "torchvision/resnet18 or timm/tf_efficientnet_lite0, or set --transfer.weights to a file or a run"
        )
    _LIBRARIES[library].refuse_unknown(name)
    if (file := lookup.placed(model, cache)).is_file():
        return read_tensors(file), f"'{file}'"
    origin = lookup.origin(model)
    if origin is None:
        raise UserError(
            f"--transfer.weights default: {library} has no weights of '{name}'; give a file or a run instead"
        )
    if origin.kept is None and (reason := lookup.unreachable(origin)):
        raise lookup.absent(model, origin, reason, cache)
    try:
        with _silenced():
            return _LIBRARIES[library].load(name, origin), origin.label
    except UserError:
        raise
    except Exception as error:  # hubs and their clients raise errors of their own
        if origin.kept is not None:
            raise UserError(f"'{origin.kept}' cannot be read as weights of '{model}': {first_line(error)}") from None
        raise lookup.absent(model, origin, first_line(error), cache) from None


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """A context in which the libraries' advice and warnings about a download are not logged."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def read_tensors(path: Path) -> Tensors:
    """Read a .safetensors file, or a .pth or .pt file by torch's weights-only loader, which runs no code from it."""
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise UserError(f"transfer.weights '{path}' is not a file of weights: give a .safetensors or .pth file")
    try:
        require_file(path)
        if path.suffix == ".safetensors":
            return read_safetensors(path)[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was saved, before the error that says what matters
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(
            f"transfer.weights '{path}' cannot be read ({first_line(error)[:200]}): is it complete?"
        ) from None
    except Exception as error:  # the unpickler's own errors, which differ by version
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"transfer.weights '{path}' contains more than weights ({found[1] if found else type(error).__name__}), "
            "which is not loaded for safety: save its state_dict() as .safetensors"
        ) from None
    named = _items(stored)
    for name in WRAPPERS:
        named = _items(named.get(name)) or named
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        raise UserError(f"transfer.weights '{path}' contains no named tensors: save a state_dict()")
    if odd := [name for name, value in named.items() if not _is_dense(value)]:
        raise UserError(
            f"transfer.weights '{path}': its tensor '{odd[0]}' is sparse, quantised, without values or repeated by its "
            "strides, but weights are dense arrays: save a state_dict() of such"
        )
    return {str(name): value for name, value in named.items()}


def _items(stored: Any) -> dict[Any, Any]:
    """The items of a dictionary, by dict's own method: a file can replace those of an OrderedDict by other values."""
    return dict(dict.items(stored)) if isinstance(stored, dict) else {}


def _is_dense(value: Tensor) -> bool:
    """Whether the storage holds every element; a few bytes can stand for any number of them otherwise."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def as_ours(model: nn.Module, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """`tensors` by the names of `model`, with the head of `model` instead of theirs, and sentences on all changes.

    The names may be ours (of a run) or the library's (for a Backbone). Missing and unexpected tensors are left for
    the strict loader to report.
    """
    own = model.state_dict()
    messages: list[str] = []
    theirs = HEAD
    if isinstance(model, Backbone) and not any(name.startswith(NET) for name in tensors):
        theirs = f"{NET}{model.head_name}."
        if left := sorted({name.split(".")[0] for name in tensors if name.startswith(AUXILIARY)}):
            messages.append(f"{', '.join(left)} are auxiliary heads for training, which are left out")
        tensors = {NET + name: value for name, value in tensors.items() if not name.startswith(AUXILIARY)}
    result = {name: value for name, value in tensors.items() if not name.startswith(theirs)}
    path, stem = first_convolution(model)
    weight = result.get(f"{path}.weight")
    if weight is not None and weight.dim() == 4 and weight.shape[1] != stem.in_channels and stem.groups == 1:
        result[f"{path}.weight"] = _other_channels(weight, stem.in_channels)
        messages.append(f"{path}: its weights for {weight.shape[1]} channels are summed to {stem.in_channels}")
    for name, value in own.items():
        # Older files lack batch norm's counters, which have no effect.
        if name.startswith(HEAD) or (name.endswith("num_batches_tracked") and name not in result):
            result[name] = value
    return result, messages


def _other_channels(weight: Tensor, channels: int) -> Tensor:
    """[O, C, K, K] -> [O, channels, K, K] with the same response as `weight` if all channels are equal."""
    return weight.sum(dim=1, keepdim=True).repeat(1, channels, 1, 1) / channels


@dataclass(frozen=True)
class _Library:
    expects: Callable[[str], InputSpec | None]
    refuse_unknown: Callable[[str], None]
    load: Callable[[str, lookup.Origin], Tensors]


def _torchvision_expects(name: str) -> InputSpec | None:
    refuse_unknown_torchvision(name)
    from torchvision import models

    transforms = models.get_model_weights(name).DEFAULT.transforms()
    size = int(transforms.crop_size[0])
    halved = name in _HALVED
    return InputSpec(
        size=size,
        smallest=size if name.startswith(_FIXED) else min(size, SMALLEST),
        channels=3,
        mean=(0.5,) * 3 if halved else tuple(transforms.mean),
        std=(0.5,) * 3 if halved else tuple(transforms.std),
        resize="crop",
        crop=min(size / transforms.resize_size[0], 1.0),
        interpolation=_interpolation(transforms.interpolation.value),
    )


def _torchvision_load(name: str, origin: lookup.Origin) -> Tensors:
    from torchvision import models

    if origin.kept is not None:
        _refuse_changed(origin.kept)
    weights = models.get_model_weights(name).DEFAULT
    tensors: Tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return tensors


def _refuse_changed(file: Path) -> None:
    """Raise UserError if the file's SHA-256 does not begin as its name says.

    torch compares them when it downloads a file, but not when it finds one of that name.
    """
    said = torch.hub.HASH_REGEX.search(file.name)
    if said is None:
        return
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(said[1]):
        raise UserError(
            f"'{file}' is damaged (its SHA-256 does not begin with {said[1]}, as its name says): delete it, and it is "
            "downloaded again"
        )


def _timm_expects(name: str) -> InputSpec | None:
    refuse_unknown_timm(name)
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    channels, size, _ = config.input_size
    return InputSpec(
        size=size,
        smallest=size if config.fixed_input_size else min(size, SMALLEST),
        channels=channels,
        mean=tuple(config.mean),
        std=tuple(config.std),
        resize="crop",
        crop=config.crop_pct,
        interpolation=_interpolation(config.interpolation),
    )


def _timm_load(name: str, origin: lookup.Origin) -> Tensors:
    import timm

    # timm renames what other trainers have written; it reads safetensors, or archives by torch's weights-only loader.
    given = None if origin.kept is None else {"state_dict": read_tensors(origin.kept)}
    net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=given)
    return dict(net.state_dict())


_LIBRARIES = {
    "torchvision": _Library(_torchvision_expects, refuse_unknown_torchvision, _torchvision_load),
    "timm": _Library(_timm_expects, refuse_unknown_timm, _timm_load),
}


def _interpolation(name: str) -> str:
    return name if name in ("bilinear", "bicubic") else "bicubic"
