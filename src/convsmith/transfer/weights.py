"""Locates and loads a run's initial weights (`transfer.weights`), with the architecture and input that they imply."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from convsmith.config import RunConfig
from convsmith.contracts import InputSpec, channels_text, size_text
from convsmith.data.dataset import Dataset
from convsmith.data.expected import differences, fitting, shown
from convsmith.data.sources import cache_folder
from convsmith.errors import UserError
from convsmith.files import nearest_path
from convsmith.nets.backbones import Backbone
from convsmith.nets.config import ModelConfig
from convsmith.nets.tensors import load_strictly, refuse_nonfinite
from convsmith.prediction.model_file import read_model
from convsmith.rundir import CARD, RunDir, open_run
from convsmith.transfer.config import LIBRARY_WEIGHTS, NO_WEIGHTS
from convsmith.transfer.pretrained import as_ours, expected_input, has_weights, hub_weights, read_tensors


@dataclass(frozen=True)
class Weights:
    """Tensors by the names under which they were saved; `what` describes their origin."""

    what: str
    tensors: dict[str, Tensor]
    spec: InputSpec | None
    path: str | None = None  # the absolute path of a file or a run
    model: ModelConfig | None = None  # the network, if the weights are those of a run


def locate(config: RunConfig, own_module: bool) -> Weights | None:
    """Read the weights that `transfer.weights` names; None if it names none.

    Raises UserError if they do not exist, or are of another architecture than `model.name`.
    """
    name = config.transfer.weights
    if name == NO_WEIGHTS:
        if config.transfer.freeze_statistics and not own_module:
            raise UserError(
                "transfer.freeze_statistics needs pretrained weights, since random ones have no statistics to keep: "
                "set --transfer.weights, or --transfer.freeze_statistics false"
            )
        return None
    if own_module:
        raise UserError("transfer.weights cannot be used with your own module: load its weights before you pass it in")
    if name == LIBRARY_WEIGHTS:
        model, cache = config.model.name, cache_folder(config.data)
        if "weights" not in config.transfer.model_fields_set and not has_weights(model, cache):
            return None  # the choice was left to us
        tensors, what = hub_weights(model, cache)
        return Weights(what, tensors, expected_input(model))
    path = Path(name)
    if not path.exists():
        raise UserError(
            f"transfer.weights '{name}' does not exist.{nearest_path(path)} Give {NO_WEIGHTS}, {LIBRARY_WEIGHTS} (the "
            "library's own), a .safetensors or .pth file, or a run directory"
        )
    if path.is_dir():
        return _of_run(config, path)
    return Weights(f"'{path.name}'", read_tensors(path), expected_input(config.model.name), str(path.resolve()))


def own_size(config: RunConfig) -> InputSpec | None:
    """The size that a library's network itself asks for where it starts from random weights; None for other networks.

    Small images keep their size, unless the network takes a single one.
    """
    spec = expected_input(config.model.name)
    if spec is None:
        return None
    return replace(spec, is_size_alone=True, smallest=spec.size if spec.smallest == spec.size else 0)


def expected(config: RunConfig) -> tuple[RunConfig, InputSpec | None]:
    """The architecture and input that `locate` would find, without reading or downloading a library's weights."""
    name = config.transfer.weights
    if name == NO_WEIGHTS:
        return config, own_size(config)
    if Path(name).is_dir():
        found = _of_run(config, Path(name))
        return config.model_copy(update={"model": found.model}), found.spec
    return config, expected_input(config.model.name)


def load(weights: Weights, model: nn.Module, dataset: Dataset) -> list[str]:
    """Load the weights into all of `model` but its head; returns sentences on what was loaded and adapted."""
    tensors, adapted = as_ours(model, weights.tensors)
    try:
        load_strictly(model, tensors, f"transfer.weights: {weights.what}")
    except UserError as error:
        seen = dataset.config.image_size
        if weights.spec is None or weights.spec.size == seen or tensors.keys() != model.state_dict().keys():
            raise
        trained = weights.spec.size
        assert seen is not None
        raise UserError(f"{error}; they are for {size_text(trained)} images and get {size_text(seen)}") from None
    refuse_nonfinite(model, f"transfer.weights: {weights.what}")
    assert isinstance(model.head, nn.Linear)
    # A library's initial head may be far too large: timm's EfficientNets draw values up to 0.7 for two classes.
    model.head.reset_parameters()
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("head."))
    messages = [f"weights of {weights.what}: {count:,} parameters; the head is new, for {len(dataset.classes)} classes"]
    messages += adapted
    if weights.spec:
        spec = weights.spec
        messages.append(
            f"they expect {size_text(spec.size)} {channels_text(spec.channels)} pixels, "
            f"{fitting(spec.resize, spec.crop)}, {spec.interpolation}, mean {shown(spec.mean)}, "
            f"standard deviation {shown(spec.std)}"
        )
        changed = differences(dataset.config, spec)
        messages += changed or ["the images are prepared as they expect"]
    else:
        messages.append(
            "the input that they expect is unknown (a run directory would record it), so the data and data.* decide"
        )
    return messages


def adapted(model: nn.Module) -> list[str]:
    """Sentences on the changes in a library's network that starts from random weights."""
    return list(model.changes) if isinstance(model, Backbone) else []


def caches_features(config: RunConfig) -> bool:
    """Whether features of a frozen backbone are kept, which mixed images rule out, since they are new each time."""
    return config.transfer.cache_features and not (config.augment.mixup or config.augment.cutmix)


def _of_run(config: RunConfig, path: Path) -> Weights:
    folder = path if (path / CARD).exists() else RunDir(path).model
    if not (folder / CARD).exists():
        if RunDir(path).study.exists():
            raise UserError(f"transfer.weights '{path}' is a study: name one of its runs, in folds/, arms/ or trials/")
        open_run(path, f"model/{CARD}")
    card, tensors = read_model(folder)
    if card.architecture is None:
        raise UserError(f"the network of transfer.weights '{path}' is your own module: pass it in with its weights")
    _refuse_other_model(path, card.architecture, config.model)
    what = f"run '{path}' ({card.architecture.name})"
    return Weights(what, tensors, card.preprocessing.input_spec(), str(path.resolve()), card.architecture)


def _refuse_other_model(path: Path, theirs: ModelConfig, requested: ModelConfig) -> None:
    """Raise UserError that names the keys which the user set to other values than those of the weights' network."""
    if requested.name != theirs.name and "name" in requested.model_fields_set:
        raise UserError(
            f"transfer.weights '{path}' is a {theirs.name}, but model.name is {requested.name}: leave model.name out"
        )
    values = [(key, getattr(theirs, key), getattr(requested, key)) for key in sorted(requested.model_fields_set)]
    if other := [f"model.{key} {of_run} but {set_to} is set" for key, of_run, set_to in values if of_run != set_to]:
        keys = ", ".join(f"model.{key}" for key, of_run, set_to in values if of_run != set_to)
        raise UserError(f"transfer.weights '{path}': its network has {', '.join(other)}: leave {keys} out")
