"""The file of a tuning study: a base config, the space that is searched, and how. Imports no torch."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from convsmith.config import Layer, RunConfig, fields, merge, over_preset, validate
from convsmith.contracts import Section, checked
from convsmith.errors import UserError, command, nearest
from convsmith.records import Monitor, metric_of
from convsmith.studies.config import DIVISION, MOST_ARMS, MOST_RUNS, StudySource, name_of, read_values

#: why a key cannot be searched; the keys of DIVISION are refused as well
NOT_SEARCHED = {
    "train.seed": "a seed that did well is luck, not a better setting",
    "train.monitor": "it is the study's metric",
    "train.device": "it is the same for the whole study",
    "train.threads": "it is the same for the whole study",
}


class TuneConfig(Section):
    question: str | None = Field(None, description="what the study asks, in words")
    preset: str | None = Field(None, description="the preset that the base starts from")
    base: dict[str, dict[str, Any] | None] = Field(default_factory=dict, description="sections, over the preset")
    space: dict[str, Any] = Field(min_length=1, description="key -> {low, high, log, step}, or a list of choices")
    metric: Monitor = Field("val_accuracy", description="what trials are ranked by; also their train.monitor")
    trials: int = Field(20, ge=1, le=MOST_RUNS)
    pruner: Literal["median", "none"] = Field(
        "median", description="median: stop trials that are worse than the median"
    )
    storage: str | None = Field(None, description="URL of Optuna's database; none: SQLite in the study directory")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of the search; the runs have train.seed")

    @property
    def minimize(self) -> bool:
        return not metric_of(self.metric).higher_is_better


class Bounds(Section):
    """An interval as the file gives it."""

    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included, on a linear or logarithmic scale; `whole`: integers only."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool


@dataclass(frozen=True)
class Choices:
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """The values in a form that Optuna can store: a list becomes its JSON text."""
        return tuple(json.dumps(value) if isinstance(value, list | dict) else value for value in self.values)


Axis = Interval | Choices
Space = dict[str, Axis]


def read_tuning(study: StudySource) -> TuneConfig:
    """A tuning study: a file, the name of a shipped one, or its keys; a UserError names each wrong key."""
    values, name = read_values(study, TuneConfig, "base and space"), name_of(study)
    if "arms" in values or "grid" in values:
        raise UserError(f"study '{name}' is an ablation study, since it has arms: use {command('ablate', name)}")
    return checked(TuneConfig, values, f"study '{name}'")


def base_of(study: TuneConfig, flags: Layer) -> RunConfig:
    """The config that trials start from: preset < base < flags, with the study's metric as its monitor."""
    sections = {section: values or {} for section, values in study.base.items()}
    layer = over_preset(study.preset, sections, flags)
    monitor = layer.get("train", {}).get("monitor", study.metric)
    if monitor != study.metric:
        raise UserError(
            f"train.monitor is '{monitor}' and the study's metric '{study.metric}': leave train.monitor out"
        )
    return validate(merge(layer, {"train": {"monitor": study.metric}}))


def space_of(study: TuneConfig, base: RunConfig) -> Space:
    """The search space, key by key. A UserError names a key or value that no run could have."""
    known = dict(fields())
    space: Space = {}
    for key, given in study.space.items():
        if key not in known:
            raise UserError(f"space: unknown key '{key}'.{nearest(key, known)}")
        section, name = key.split(".")
        if section == "data" and name in DIVISION:
            raise UserError(
                f"space: {key} decides which images are used, and all trials must see the same: set it in base"
            )
        if section == "track" or key in NOT_SEARCHED:
            raise UserError(
                f"space: {key} cannot be searched: {NOT_SEARCHED.get(key, 'it does not affect the result')}"
            )
        if isinstance(given, list):
            space[key] = _choices(key, given, base)
        elif isinstance(given, dict):
            space[key] = _interval(key, checked(Bounds, given, f"space: {key}"), base)
        else:
            raise UserError(f"space: {key} must be an interval such as {{low: 0.1, high: 0.5}} or a list of choices")
    return space


def with_key(base: RunConfig, key: str, value: Any) -> RunConfig:
    section, name = key.split(".")
    return base.with_values(**{section: {name: value}})


def _choices(key: str, given: list[Any], base: RunConfig) -> Choices:
    if len(given) > MOST_ARMS:
        raise UserError(f"space: {key} lists {len(given):,} choices: at most {MOST_ARMS:,} are possible")
    values = tuple(_validated(key, value, base) for value in given)
    if len({json.dumps(value) for value in values}) < len(values):
        raise UserError(f"space: {key} lists a choice twice")
    if len(values) < 2:
        raise UserError(f"space: {key} needs two choices or more; a fixed value belongs in base")
    return Choices(values)


def _interval(key: str, bounds: Bounds, base: RunConfig) -> Interval:
    low, high, step = bounds.low, bounds.high, bounds.step
    kinds = _kinds(key)
    if not kinds & {int, float}:
        raise UserError(f"space: {key} is not a number and cannot have an interval: give a list of choices")
    if low >= high:
        raise UserError(f"space: {key} has low {low:g} and high {high:g}: low must be less than high")
    if bounds.log and low <= 0:
        raise UserError(f"space: {key} has low {low:g}: on a logarithmic scale it must be above 0")
    if bounds.log and step:
        raise UserError(f"space: {key} has both log and step: leave one out")
    steps = (high - low) / (step or 1.0)
    if not math.isfinite(steps):
        raise UserError(f"space: {key} has low {low:g}, high {high:g} and step {step or 1:g}: the interval is too wide")
    if step and abs(steps - round(steps)) > 1e-9 * steps:
        raise UserError(f"space: {key} has a step of {step:g} that does not lead from {low:g} to {high:g}")
    whole = all(number.is_integer() for number in (low, high, step or 1.0))
    if float not in kinds and not whole:
        raise UserError(f"space: {key} takes whole numbers: low, high and step must be whole numbers")
    whole = whole and int in kinds
    for bound in (low, high):
        _validated(key, int(bound) if whole else bound, base)
    return Interval(low, high, bounds.log, step, whole)


def _kinds(key: str) -> set[Any]:
    """The types that a key may have, except None."""
    annotation = dict(fields())[key].annotation
    return set(typing.get_args(annotation) or (annotation,)) - {type(None)}


def _validated(key: str, value: Any, base: RunConfig) -> Any:
    """The value as the config would hold it, such as 0.0001 for the text '1e-4'."""
    section, name = key.split(".")
    try:
        return with_key(base, key, value).model_dump(mode="json")[section][name]
    except UserError as error:
        raise UserError(f"space: {error}") from None
