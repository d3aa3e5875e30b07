"""The file of an ablation study: a base config, arms that change it, and how they are compared. Imports no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field

from convsmith.config import Layer, RunConfig, fields, merge, over_preset, validate, word
from convsmith.contracts import Section, checked
from convsmith.data.config import READING
from convsmith.errors import UserError, choose, command, nearest
from convsmith.plainyaml import read_yaml
from convsmith.records import MetricName, unversioned
from convsmith.rundir import FOLDER_NAME, is_folder_name

BASE = "base"
#: the keys that decide which images are used: arms that differ in them could not be compared image by image
DIVISION = (*READING, "classes", "split_seed", "limit", "val_fraction", "test_fraction", "groups", "group_column")


MOST_FOLDS = 1_000  # also of repeats and of seeds
MOST_ARMS = 1_000  # also of the combinations of a choice, and of the choices of one key of a search
MOST_RUNS = 100_000  # trainings of one study

StudySource = str | Path | Mapping[str, Any]


class Choice(Section):
    """Hyperparameters chosen for each arm in each fold, by short runs scored on the fold's inner validation part."""

    hyperparameters: dict[str, tuple[Any, ...]] = Field(
        min_length=1,
        description="key -> the values to try",
        validation_alias=AliasChoices("hyperparameters", "knobs"),  # the key of the first edition
    )
    epochs: int = Field(ge=1, le=100_000, description="epochs of each short run")


class StudyConfig(Section):
    question: str | None = Field(None, description="what the study asks, in words")
    preset: str | None = Field(None, description="the preset that the base starts from")
    base: dict[str, dict[str, Any] | None] = Field(default_factory=dict, description="sections, over the preset")
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict, description="name -> the keys that it changes")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="key -> values: an arm a combination")
    choose: Choice | None = None
    expected: dict[str, Literal["helps", "hurts"]] = Field(
        default_factory=dict, description="what common wisdom expects of an arm; the page says where the result differs"
    )
    folds: int = Field(5, ge=2, le=MOST_FOLDS)
    repeats: int = Field(1, ge=1, le=MOST_FOLDS, description="how often the division into folds is repeated")
    seeds: int = Field(
        1, ge=1, le=MOST_FOLDS, description="how often each fold is trained, each time with another seed"
    )
    metric: MetricName = "accuracy"
    margin: float | None = Field(None, gt=0, description="differences smaller than this count as none (equivalence)")


def studies() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    folder = Path(str(resources.files("convsmith") / "study_files"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_values(study: StudySource, kind: type[Section], example: str) -> dict[str, Any]:
    """The content of a study's file, or of the shipped study with this name; a UserError where there is no such study.

    A mapping is taken as it is. `kind` has the keys that the file may have; `example` names some of them.
    """
    if isinstance(study, Mapping):
        return dict(study)
    path, name = Path(study), str(study)
    known = studies()
    if name in known and not path.is_file():  # a folder of that name is a study that was run here
        path = known[name]
    elif not path.exists():
        raise choose("study", name, known)
    try:
        values = read_yaml(path)
    except IsADirectoryError:
        raise UserError(f"study file '{path}' is not a YAML file") from None
    except OSError as error:
        raise UserError(f"study file '{path}' cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise UserError(f"study '{name}' must hold keys such as {example}: {', '.join(kind.model_fields)}")
    return unversioned(path, values)


def name_of(study: StudySource) -> str:
    """The name by which errors refer to the study."""
    return "of your own" if isinstance(study, Mapping) else str(study)


def read_study(study: StudySource) -> StudyConfig:
    """An ablation study: a file, the name of a shipped one, or its keys; a UserError names each wrong key."""
    values, name = read_values(study, StudyConfig, "base and arms"), name_of(study)
    if "space" in values:
        raise UserError(f"study '{name}' is a tuning study, since it has a space: use {command('tune', name)}")
    return validate_study(values, name)


def validate_study(values: Mapping[str, Any], name: str) -> StudyConfig:
    study = checked(StudyConfig, values, f"study '{name}'")
    if bool(study.arms) == bool(study.grid):
        raise UserError(f"study '{name}': give either arms (name: changes) or a grid (key: values)")
    if (number := count_arms(study)) > MOST_ARMS:
        what = "the grid has {:,} combinations: give fewer values" if study.grid else "it has {:,} arms"
        raise UserError(f"study '{name}': {what.format(number)}; at most {MOST_ARMS:,} are possible")
    if study.choose and (number := _count(study.choose.hyperparameters)) > MOST_ARMS:
        raise UserError(
            f"study '{name}': choose has {number:,} combinations: give fewer values; at most {MOST_ARMS:,} are possible"
        )
    return study


def count_arms(study: StudyConfig) -> int:
    """The number of arms besides the base, or of a grid's combinations, without building them."""
    return len(study.arms) or _count(study.grid)


def _count(grid: Mapping[str, tuple[Any, ...]]) -> int:
    return math.prod(map(len, grid.values()))


def arms_of(study: StudyConfig, flags: Layer) -> dict[str, RunConfig]:
    """The base (under the name `base`) and each arm as a config. `flags` override the base, and so apply to every arm.

    UserError for unknown keys, for arms that change nothing or change which images are used, and for identical arms.
    """
    below = over_preset(study.preset, _sections(study.base, BASE), flags)
    base = validate(below)
    configs, names = {BASE: base}, {_identity(base): BASE}
    named = {name: as_layer(changes, name) for name, changes in study.arms.items()} or _combinations(study.grid)
    for name, layer in named.items():
        _refuse_name(name)
        try:
            arm = validate(merge(below, layer))
        except UserError as error:
            raise UserError(f"arm '{name}': {error}") from None
        if moved := [key for key in layer.get("data", {}) if key in DIVISION]:
            raise UserError(f"arm '{name}' changes data.{moved[0]}: all arms must see the same images; set it in base")
        if "seed" in layer.get("train", {}):
            raise UserError(f"arm '{name}' changes train.seed: all arms must have the same seeds; set it in base")
        if layer.get("track"):
            raise UserError(
                f"arm '{name}' changes track.{next(iter(layer['track']))}, which does not affect the result"
            )
        if arm == base:
            if study.grid:
                continue  # the combination that is the base itself
            raise UserError(f"arm '{name}' changes nothing: the base already has {_shown(layer)}")
        if (twin := names.setdefault(_identity(arm), name)) != name:
            raise UserError(f"arms '{twin}' and '{name}' are the same")
        configs[name] = arm
    if unknown := [name for name in study.expected if name not in configs]:
        raise UserError(f"expected: there is no arm '{unknown[0]}'. Arms: {', '.join(list(configs)[1:])}")
    if len(configs) == 1:
        raise UserError("the grid has no combination other than the base: give more values")
    return configs


def choices_of(study: StudyConfig, below: Layer) -> list[Layer]:
    """The combinations of the hyperparameters of `choose`, each a layer; UserError where one does not fit `below`."""
    if study.choose is None:
        return []
    known = {key for key, _ in fields()}
    for key in study.choose.hyperparameters:
        if key not in known:
            raise UserError(f"choose: unknown key '{key}'.{nearest(key, known)}")
        if key.startswith(("data.", "track.")) or key == "train.seed":
            raise UserError(
                f"choose: {key} is not a hyperparameter: use keys of model, optim, schedule, regularize, ..."
            )
    layers = list(_combinations(study.choose.hyperparameters).values())
    for layer in layers:
        try:
            validate(merge(below, layer))
        except UserError as error:
            raise UserError(f"choose: {error}") from None
    return layers


def changes(base: RunConfig, arm: RunConfig) -> dict[str, Any]:
    """The keys in which an arm differs from its base, with the arm's values."""
    ours, theirs = base.model_dump(mode="json"), arm.model_dump(mode="json")
    return {
        f"{section}.{key}": value
        for section, values in theirs.items()
        for key, value in values.items()
        if value != ours[section][key]
    }


def as_layer(values: Mapping[str, Any], arm: str) -> Layer:
    """``{"model.pool": "max", "optim": {"lr": 0.1}}`` as sections."""
    layer: Layer = {}
    known = {key for key, _ in fields()}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if dot:
            if key not in known:
                raise UserError(f"arm '{arm}': unknown key '{key}'.{nearest(key, known)}")
            layer.setdefault(section, {})[name] = value
        elif isinstance(value, dict):
            layer.setdefault(section, {}).update(value)
        else:
            raise UserError(f"arm '{arm}': '{key}' must be a key such as optim.lr, or a section with its keys")
    return layer


def _sections(base: Mapping[str, Any], what: str) -> Layer:
    return as_layer({section: values or {} for section, values in base.items()}, what)


def _combinations(grid: Mapping[str, tuple[Any, ...]]) -> dict[str, Layer]:
    """`optim.lr=0.1, train.batch_size=32` -> its layer, for every combination of values."""
    result = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = ", ".join(f"{key.split('.')[-1]}={word(value)}" for key, value in chosen.items())
        result[name] = as_layer(chosen, name)
    return result


def _shown(layer: Layer) -> str:
    return ", ".join(f"{section}.{key}={word(v)}" for section, values in layer.items() for key, v in values.items())


def _identity(config: RunConfig) -> str:
    """A text that two configs share if they are equal."""
    return json.dumps(config.model_dump(mode="json"), sort_keys=True)


def _refuse_name(name: str) -> None:
    if name == BASE:
        raise UserError("arm 'base': this name is reserved for the base config; choose another")
    if name.startswith(".") or not is_folder_name(name):
        raise UserError(f"arm '{name}': the name must be usable as {FOLDER_NAME}")
