"""RunConfig: the sections of one run, and how defaults, preset, file and flags are combined.

Precedence: defaults < preset < file < flags. Imports no torch, so that `--help`, `--print-config`
and the check for typing errors respond at once.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from convsmith.contracts import Section, problems, wrong
from convsmith.data.config import AugmentConfig, DataConfig
from convsmith.errors import UserError, choose, command, damaged, nearest
from convsmith.files import nearest_path
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.optim.config import OptimConfig, RegularizeConfig, ScheduleConfig
from convsmith.plainyaml import parse_yaml as parse_yaml
from convsmith.plainyaml import read_yaml, to_yaml
from convsmith.records import unversioned, versioned
from convsmith.tracking.config import TrackConfig
from convsmith.training.config import TrainConfig
from convsmith.transfer.config import (
    AUTO_WEIGHTS,
    LIBRARY_WEIGHTS,
    NO_WEIGHTS,
    TransferConfig,
    UnfreezeConfig,
)

Layer = dict[str, Any]
BASELINE = "baseline"  # the preset of a small network from random weights, for any data
ABSENT = "absent"  # in a comparison, the value of a key that a config does not have


class RunConfig(Section):
    """Everything that decides a run's numbers, and where they are tracked."""

    data: DataConfig = Field(DataConfig(), description="images and labels: where they are, how they are read and split")
    model: ModelConfig = Field(ModelConfig(), description="the network and its layers")
    optim: OptimConfig = Field(OptimConfig(), description="optimiser and learning rate")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="how the learning rate changes")
    regularize: RegularizeConfig = Field(RegularizeConfig(), description="penalties, label smoothing, clipping")
    augment: AugmentConfig = Field(AugmentConfig(), description="random changes of the training images")
    transfer: TransferConfig = Field(TransferConfig(), description="pretrained weights, freezing and unfreezing")
    train: TrainConfig = Field(TrainConfig(), description="epochs, batches, loss, device, early stopping")
    track: TrackConfig = Field(TrackConfig(), description="Weights & Biases")

    @model_validator(mode="after")
    def _which_weights(self) -> RunConfig:
        """Decide transfer.weights auto by the network. The key stays unset, so that another network decides anew."""
        if self.transfer.weights == AUTO_WEIGHTS:
            decided = self.transfer.model_copy()
            decided.__dict__["weights"] = LIBRARY_WEIGHTS if self.model.is_library else NO_WEIGHTS
            decided.__pydantic_fields_set__.discard("weights")
            self.__dict__["transfer"] = decided
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        if self.train.loss == "focal" and self.regularize.label_smoothing:
            raise ValueError("--train.loss focal cannot be combined with --regularize.label_smoothing: set one of them")
        if self.train.class_weights == "balanced" and self.data.sampling == "balanced":
            raise ValueError("train.class_weights and data.sampling both correct class imbalance: choose one")
        if self.transfer.head_l2 is not None and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("transfer.head_l2 needs kept features, which augment.mixup and augment.cutmix rule out")
        if self.schedule.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs ({self.schedule.warmup_epochs:g}) must be shorter than "
                f"train.epochs ({self.train.epochs})"
            )
        if self.optim.nesterov and (not self.optim.momentum or self.optim.dampening):
            raise ValueError("optim.nesterov needs optim.momentum above 0 and optim.dampening 0")
        if self.augment.saturation and (channels := self.data.channels) not in (None, 3):
            raise ValueError(f"augment.saturation needs RGB images, but data.channels is {channels}: set it to 0")
        return self

    @property
    def is_own(self) -> bool:
        """Whether data or network are the user's own, from Python, so that no command can pass them in."""
        return self.data.is_own or self.model.is_own

    def with_values(self, **sections: Mapping[str, Any]) -> RunConfig:
        """A copy with new values for the given keys of the given sections; keys that were not set stay unset."""
        return validate(
            merge(self.model_dump(mode="json", exclude_unset=True), *({k: dict(v)} for k, v in sections.items()))
        )

    def to_yaml(self) -> str:
        """The text of a config.yaml, which `read_layer` can read back; UserError for a path that is not UTF-8."""
        values = self.model_dump(mode="json")
        for key, value in flattened(values):
            try:
                str(value).encode()
            except UnicodeEncodeError:
                raise UserError(f"{key} '{value}' is not UTF-8, so that no file can name it: rename it") from None
        return to_yaml(versioned(values))


REPEATED = ("data.source",)  # keys whose flags may be given several times
SHORTHANDS = {
    "data": "data.source",
    "model": "model.name",
    "epochs": "train.epochs",
    "batch-size": "train.batch_size",
    "lr": "optim.lr",
    "seed": "train.seed",
    "device": "train.device",
}
#: Keys by the names that other programs have for them.
ELSEWHERE = {
    **dict.fromkeys(("pretrained", "weights", "checkpoint", "finetune"), "transfer.weights"),
    **dict.fromkeys(("arch", "architecture", "backbone", "net", "network"), "model.name"),
    **dict.fromkeys(("dataset", "data-dir", "root"), "data.source"),
    **dict.fromkeys(("imgsz", "img-size", "image-size", "size", "resolution"), "data.image_size"),
    **dict.fromkeys(("learning-rate", "lr0"), "optim.lr"),
    **dict.fromkeys(("opt", "optimizer", "optimiser"), "optim.name"),
    **dict.fromkeys(("wd", "weight-decay"), "regularize.l2"),
    **dict.fromkeys(("batch", "bs"), "train.batch_size"),
    **dict.fromkeys(("num-epochs", "max-epochs"), "train.epochs"),
    **dict.fromkeys(("early-stopping", "early-stop"), "train.patience"),
    **dict.fromkeys(("scheduler", "lr-scheduler", "sched"), "schedule.name"),
    **dict.fromkeys(("workers", "num-workers"), "train.threads"),
}


def called_elsewhere(word: str) -> str | None:
    """The key that `word`, a flag or a setting that we do not have, is the usual name of, or None."""
    return ELSEWHERE.get(word.lstrip("-").replace("_", "-").lower())


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Each key as ``section.key`` with its pydantic field, in the order of the sections."""
    for section, field in RunConfig.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key, info in model.model_fields.items():
            yield f"{section}.{key}", info


def core_type(info: FieldInfo) -> Any:
    """The annotation without ``| None``."""
    if typing.get_origin(info.annotation) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(info.annotation) if arg is not type(None))
    return info.annotation


def choices(info: FieldInfo) -> tuple[Any, ...]:
    """The values of a Literal field; empty for other fields."""
    annotation = core_type(info)
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def is_section(info: FieldInfo) -> bool:
    """Whether the value has keys of its own."""
    kind = core_type(info)
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def takes_mapping(info: FieldInfo) -> bool:
    """Whether the value may be a mapping of the user's own names."""
    return any(typing.get_origin(kind) is dict for kind in typing.get_args(info.annotation))


def read_layer(path: Path) -> Layer:
    """The sections in a YAML file."""
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        near = nearest_path(path)
        raise UserError(f"config file '{path}' does not exist{near and f'.{near}'}") from None
    except IsADirectoryError:
        own = path / "config.yaml"
        hint = (
            f"the config of that run is {own}"
            if own.exists()
            else f"to train on its images: {command('train', '--data', path)}"
        )
        raise UserError(f"config file '{path}' is a folder: {hint}") from None
    except OSError as error:
        raise UserError(f"config file '{path}' cannot be read: {error.strerror}") from None
    return _as_layer(unversioned(path, values) if isinstance(values, dict) else values, f"'{path}'")


def read_config(path: Path) -> Layer:
    """The sections in a config file. In a run's config of the first edition, train.seed becomes data.split_seed."""
    layer = read_layer(path)
    if RunConfig.model_fields.keys() <= layer.keys():  # only the config of a run is complete
        layer["data"].setdefault("split_seed", layer["train"].get("seed", 0))
    return layer


def read_run_config(path: Path) -> RunConfig:
    """The resolved config of a run. Raises UserError if sections are missing, since defaults would change the run."""
    layer = read_config(path)
    if absent := [section for section in RunConfig.model_fields if section not in layer]:
        raise damaged(path, f"it has no section {', '.join(absent)}")
    return validate(layer)


def _as_layer(values: Any, what: str) -> Layer:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(part, dict | None) for part in values.values()):
        raise UserError(f"{what} must contain sections ({', '.join(RunConfig.model_fields)}), each with its keys")
    return {str(name): dict(part or {}) for name, part in values.items()}


def presets(name: str | None = None) -> dict[str, str]:
    """The presets that come with the package, or only the one with this name: name -> YAML text."""
    folder = resources.files("convsmith") / "presets"
    known = {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".yaml")
    }
    if name is not None and name not in known:
        raise choose("preset", name, known)
    return known if name is None else {name: known[name]}


def preset_layer(name: str) -> Layer:
    return _as_layer(parse_yaml(presets(name)[name], f"preset '{name}'"), f"preset '{name}'")


def flag_layer(flags: Mapping[str, str | list[str]]) -> Layer:
    """``{"optim.lr": "0.1"}`` -> ``{"optim": {"lr": "0.1"}}``; lists are YAML, or those of a flag of REPEATED."""
    known = dict(fields())
    layer: Layer = {}
    for key, text in flags.items():
        info = known[key]
        section, name = key.split(".")
        value: Any = text
        is_list = typing.get_origin(core_type(info)) is tuple
        if isinstance(text, str) and (is_list or is_section(info) or (text.startswith("{") and takes_mapping(info))):
            value = parse_yaml(text, f"--{key}")
        layer.setdefault(section, {})[name] = value
    return layer


def merge(*layers: Layer) -> Layer:
    """Combine layers; later ones take precedence, key by key within each section."""
    result: Layer = {}
    for layer in layers:
        for section, values in layer.items():
            result[section] = {**result.get(section, {}), **values}
    return result


def unused(config: RunConfig) -> list[str]:
    """Sentences on settings that differ from their defaults but have no effect in this run."""
    return [line for section in RunConfig.model_fields for line in getattr(config, section).unused(section)]


def over_preset(preset: str | None, *layers: Layer) -> Layer:
    """Merge the layers over a preset.

    A preset's model settings are dropped if the layers name another model, or weights of a run, which bring a model.
    """
    above = merge(*layers)
    if preset is None:
        return above
    below = preset_layer(preset)
    own = below.get("model", {}).get("name")
    weights = above.get("transfer", {}).get("weights")
    if above.get("model", {}).get("name", own) != own or (isinstance(weights, str) and Path(weights).is_dir()):
        below = {**below, "model": {}}
    return merge(below, above)


def validate(layer: Layer) -> RunConfig:
    """A RunConfig, or a UserError that names each wrong key, its valid values and the nearest match."""
    try:
        return RunConfig.model_validate(layer)
    except ValidationError as error:
        raise UserError(problems(error, _explain)) from None


def validate_asked(layer: Layer) -> RunConfig:
    """The config of a record of what was asked for, in which a newer key than its version knew has its default value.

    `validate` takes a record without a precision for one of what was computed, which was float32.
    """
    return validate(merge({"train": {"precision": TrainConfig.model_fields["precision"].default}}, layer))


@dataclass(frozen=True)
class Settings:
    """What a user has set: a preset, or a complete file, and the layers above it."""

    preset: str | None
    layers: tuple[Layer, ...]
    is_complete: bool = False  # since a config file is among the layers

    @property
    def is_open(self) -> bool:
        """Whether neither a preset nor a file has chosen the recipe."""
        return self.preset is None and not self.is_complete

    @property
    def layer(self) -> Layer:
        """The merged layers without the preset."""
        return merge(*self.layers)

    def over(self, preset: str | None) -> RunConfig:
        """The config of all layers over a preset."""
        return validate(over_preset(preset, *self.layers))

    @property
    def config(self) -> RunConfig:
        """The config of all layers; where the recipe is open, over the preset `baseline`."""
        return self.over(BASELINE if self.is_open else self.preset)


def settings_of(preset: str | None, file: Path | None, flags: Mapping[str, str | list[str]]) -> Settings:
    """What a command line sets: defaults < preset < file < flags."""
    layers = ([read_config(file)] if file else []) + [flag_layer(flags)]
    return Settings(preset, tuple(layers), is_complete=file is not None)


def compose(preset: str | None, file: Path | None, flags: Mapping[str, str | list[str]]) -> RunConfig:
    """Combine defaults < preset < file < flags. Without a preset and a file, the preset is `baseline`."""
    return settings_of(preset, file, flags).config


def _explain(error: Any) -> str:
    return _unknown([str(part) for part in error["loc"]]) if error["type"] == "extra_forbidden" else wrong(error)


def _unknown(path: list[str]) -> str:
    key = ".".join(path)
    if len(path) == 1:
        sections = list(RunConfig.model_fields)
        return f"unknown section '{key}'.{nearest(key, sections)} Sections: {', '.join(sections)}"
    known = [name for name, _ in fields()]
    siblings = [name.split(".")[1] for name in known if name.startswith(f"{path[0]}.")]
    if len(path) > 2:  # inside a block, or in transfer.unfreeze
        inner, what = (UnfreezeConfig, "transfer.unfreeze") if path[0] == "transfer" else (BlockConfig, "a block")
        siblings = list(inner.model_fields)
        return f"unknown key '{key}'.{nearest(path[-1], siblings)} Keys of {what}: {', '.join(siblings)}"
    elsewhere = [name for name in known if name.endswith(f".{path[-1]}")]
    hint = nearest(path[-1], siblings) or (f" Did you mean '{elsewhere[0]}'?" if elsewhere else nearest(key, known))
    return f"unknown key '{key}'.{hint} Keys of {path[0]}: {', '.join(siblings)}"


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Each key in which the configs differ, down to the keys of a block, with its value in each config.

    A key that a config does not have, for example because it has fewer blocks, has the value `ABSENT`.
    """
    flat = [dict(flattened(config)) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [(key, [config.get(key, ABSENT) for config in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def flattened(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"blocks": [{"norm": "none"}]}}`` -> ``("model.blocks[0].norm", "none")``."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flattened(inner, f"{above}.{name}" if above else name)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from flattened(inner, f"{above}[{index}]")
    else:
        yield above, value


def word(value: Any) -> str:
    """A value as it is written in a config file or a flag."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
