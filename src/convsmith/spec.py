"""Turns the arguments of the public functions into a config and parts. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from convsmith.config import SHORTHANDS, Layer, RunConfig, Settings, called_elsewhere, merge, read_config
from convsmith.contracts import checked
from convsmith.data.config import ARRAYS, DataConfig, reading
from convsmith.data.sources import Source, cache_folder, from_arrays
from convsmith.data.tables import keep_frame
from convsmith.errors import UserError, nearest
from convsmith.training.own import OptimizerFactory, Parts

Arrays = tuple[np.ndarray, Any]
Sources = str | Path | Sequence[str | Path]
Data = Sources | Arrays | Mapping[str, Any] | None
Model = str | nn.Module | Mapping[str, Any] | None


@dataclass(frozen=True)
class Spec:
    """The arguments of a call: what they set, and the objects that were passed in."""

    settings: Settings
    parts: Parts

    @property
    def config(self) -> RunConfig:
        return self.settings.config

    @property
    def layer(self) -> Layer:
        """The merged layers, for studies, whose base is in a separate file."""
        return self.settings.layer


def spec_of(
    data: Data,
    model: Model,
    preset: str | None,
    config: str | Path | None,
    optimizer: OptimizerFactory | None,
    settings: Mapping[str, Any],
) -> Spec:
    """The specification that the arguments of `convsmith.train` and similar functions describe. Raises UserError."""
    sections: dict[str, dict[str, Any]] = {
        "data": dict(data) if isinstance(data, Mapping) else {} if data is None else {"source": data},
        "model": dict(model) if isinstance(model, Mapping) else {} if model is None else {"name": model},
    }
    source, network = sections["data"].get("source"), sections["model"].get("name")
    paths = _paths(source)
    arrays = source if isinstance(source, tuple) and paths is None else None
    module = network if isinstance(network, nn.Module) else None
    if source is not None and arrays is None and paths is None:
        raise _no_data(source)
    if network is not None and not isinstance(network, str | nn.Module):
        raise UserError(f"model must be a name, a torch module or a dict of settings, not {_kind(network)}")
    if source is not None:
        sections["data"]["source"] = paths if paths is not None else ARRAYS
    sections["data"] |= _tables(sections["data"])
    if module is not None:
        del sections["model"]["name"]
    layers = [read_config(Path(config))] if config else []
    layers += [_settings_layer(settings), {name: values for name, values in sections.items() if values}]
    return Spec(Settings(preset, tuple(layers), config is not None), parts_of(arrays, module, optimizer))


def parts_of(arrays: Arrays | None, module: nn.Module | None, optimizer: OptimizerFactory | None = None) -> Parts:
    """The objects that a user passed in; ``(images, labels)`` become a source of labelled records."""
    return Parts(None if arrays is None else from_arrays(*_pair(arrays)), module, optimizer)


def _pair(arrays: tuple[Any, ...]) -> Arrays:
    if len(arrays) != 2:
        raise UserError(f"data must be a pair (images, labels), not {len(arrays)} values")
    return arrays


def reading_of(data: Data) -> tuple[DataConfig, Source | None]:
    """What a trained model is given as data: how they are read, and the source where they are arrays. Raises UserError.

    `data` has the forms of `convsmith.train`'s.
    """
    settings = dict(data) if isinstance(data, Mapping) else {"source": data}
    settings |= _tables(settings)
    source = settings.get("source")
    if (paths := _paths(source)) is not None:
        return reading(settings | {"source": paths}), None
    if not isinstance(source, tuple):
        raise _no_data(source)
    images, labels = _pair(source)
    return reading(settings | {"source": ARRAYS}), from_arrays(images, labels, fewest_classes=1)


def _paths(source: object) -> list[str] | None:
    """The names or paths of data, if `source` is one or a list of them."""
    paths = [source] if isinstance(source, str | Path) else source
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | Path) for path in paths):
        return None
    return [str(path) for path in paths]


def _no_data(value: object) -> UserError:
    return UserError(
        f"data must be a name, a path, a list of paths, (images, labels) or a dict of settings, not {_kind(value)}"
    )


def _tables(settings: Mapping[str, Any]) -> dict[str, str]:
    """The tables among settings of data, as files that a config can name: those of Python go to the cache folder."""
    tables = {key: settings[key] for key in ("labels", "groups") if settings.get(key) is not None}
    cache = cache_folder(checked(DataConfig, {"cache": settings.get("cache")}, "data"))
    return {
        key: str(table) if isinstance(table, str | Path) else keep_frame(f"data.{key}", table, cache)
        for key, table in tables.items()
    }


def _kind(value: object) -> str:
    return type(value).__name__


def _settings_layer(settings: Mapping[str, Any]) -> Layer:
    """``epochs=5, augment={"hflip": True}`` -> sections."""
    shorts = {short.replace("-", "_"): key for short, key in SHORTHANDS.items() if short not in ("data", "model")}
    layer: Layer = {}
    for name, value in settings.items():
        if name in shorts:
            section, key = shorts[name].split(".")
            layer = merge(layer, {section: {key: value}})
        elif name in RunConfig.model_fields:
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{name} must be a dict of settings, for example {name}={{'key': value}}, not {_kind(value)}"
                )
            layer = merge(layer, {name: dict(value)})
        else:
            names = [*shorts, *RunConfig.model_fields]
            section, _, key = (called_elsewhere(name) or "").partition(".")
            usual = f" Did you mean {section}={{'{key}': ...}}?" if key else nearest(name, names)
            raise UserError(
                f"unknown setting '{name}'.{usual} Short names: {', '.join(shorts)}; sections, each "
                f"as a dict: {', '.join(RunConfig.model_fields)}"
            )
    return layer
