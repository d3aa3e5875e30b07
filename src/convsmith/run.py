"""A run as a Python object, and how Python's arguments become a config. `convsmith.train` and its kin are the doors."""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from convsmith.config import SHORTHANDS, Layer, RunConfig, merge, over_preset, read_layer, validate
from convsmith.data.sources import ARRAYS, Source, from_arrays
from convsmith.display import Display
from convsmith.errors import UserError, nearest
from convsmith.files import read_json
from convsmith.prediction.evaluate import evaluate
from convsmith.prediction.predictor import Prediction, Predictor, load_predictor
from convsmith.rundir import RunDir, open_run, refuse_taken
from convsmith.tracking import csv
from convsmith.training import checkpoint, setup
from convsmith.training.own import OptimizerFactory
from convsmith.training.setup import Experiment, Parts

Arrays = tuple[np.ndarray, Any]


class Run:
    """A run directory: its numbers, its model, and its evaluation."""

    def __init__(self, directory: Path, model: nn.Module | None = None, data: Arrays | None = None) -> None:
        self.files: RunDir = open_run(directory)
        self._module = model
        self._source = _source(data)

    @property
    def directory(self) -> Path:
        return self.files.path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row an epoch, as in metrics.csv."""
        return [dict(row) for row in csv.read(self.files.metrics)]

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json of a finished run."""
        return dict(read_json(open_run(self.directory, "summary.json").summary))

    @cached_property
    def predictor(self) -> Predictor:
        """The best model with its preprocessing."""
        return load_predictor(self.directory, module=self._module)

    def predict(self, images: Any) -> list[Prediction]:
        """Predict paths, PIL images, arrays uint8 [H, W(, C)] or tensors [C, H, W]: one, a list or a batch of them.

        Each has `label`, `confidence` and `probabilities` by class, the most probable first.
        """
        return self.predictor.predict(images)

    def evaluate(self, split: str = "val") -> dict[str, Any]:
        """The record of evaluation-<split>.json; `test` opens the sealed split, which is noted in the run."""
        command = f"convsmith.load({str(self.directory)!r}).evaluate({split!r})"
        return evaluate(self.files, split, command, source=self._source, module=self._module)

    def report(self) -> Path:
        """Write report.html again, and return where it is."""
        from convsmith.report.write import write_report

        return write_report(self.directory, self._source, self._module)

    def curves(self) -> Any:
        """The learning curves as a matplotlib Figure, which a notebook shows. They mark the epoch that was kept."""
        from convsmith.figures.curves import learning_curves

        rows = self.metrics
        if not rows:
            raise UserError(f"run '{self.directory}' has not finished an epoch yet: there are no curves to draw")
        _show_figures_in_notebooks()
        return learning_curves(rows, self.best_epoch)

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights the run has kept, as summary.json or the newest checkpoint records it."""
        if self.files.summary.exists():
            return int(self.summary["best_epoch"])
        return int(checkpoint.read_newest(self.files.checkpoints)[1]["stopper"]["best_epoch"])

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def _repr_html_(self) -> str:
        """In a notebook: the result, the last epochs and the learning curves."""
        rows = self.metrics[-5:]
        columns = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_f1")
        head = "".join(f"<th>{column}</th>" for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{row[column]:.4g}</td>" for column in columns) + "</tr>" for row in rows)
        curves = self.files.figures / "curves.png"
        image = ""
        if curves.exists():
            import base64

            data = base64.b64encode(curves.read_bytes()).decode()
            image = f'<img alt="learning curves" style="max-width:640px" src="data:image/png;base64,{data}">'
        title = html.escape(str(self.directory))
        return f"<p><b>{title}</b></p><table><tr>{head}</tr>{body}</table>{image}"


def train(
    data: str | Path | Arrays | Mapping[str, Any] | None,
    model: str | nn.Module | Mapping[str, Any] | None,
    preset: str | None,
    config: str | Path | None,
    name: str | None,
    runs_dir: Path,
    optimizer: OptimizerFactory | None,
    settings: Mapping[str, Any],
) -> Run:
    sections: dict[str, dict[str, Any]] = {
        "data": dict(data) if isinstance(data, Mapping) else {} if data is None else {"source": data},
        "model": dict(model) if isinstance(model, Mapping) else {} if model is None else {"name": model},
    }
    source, network = sections["data"].get("source"), sections["model"].get("name")
    arrays = source if isinstance(source, tuple) else None
    module = network if isinstance(network, nn.Module) else None
    if source is not None and not isinstance(source, str | Path | tuple):
        raise UserError(f"data must be a name, a path, (images, labels) or a dict of settings, not {_kind(source)}")
    if network is not None and not isinstance(network, str | nn.Module):
        raise UserError(f"model must be a name, a torch module or a dict of settings, not {_kind(network)}")
    if source is not None:
        sections["data"]["source"] = ARRAYS if arrays else str(source)
    if module is not None:
        del sections["model"]["name"]
    layers = [read_layer(Path(config))] if config else []
    layers += [_settings_layer(settings), sections]
    own = _parts(arrays, module, optimizer)
    display = Display()
    refuse_taken(runs_dir, name)
    whole = validate(over_preset(preset or (None if config else "baseline"), *layers))
    try:
        prepared = setup.prepare(whole, own, display.counting("decoding"))
    finally:
        display.clear()
    started = setup.start(prepared, runs_dir, name, own)
    return _follow(display, started, module, arrays)


def resume(directory: Path, model: nn.Module | None, optimizer: OptimizerFactory | None, data: Arrays | None) -> Run:
    run = open_run(directory, "checkpoints")
    if run.summary.exists():
        return Run(directory, model, data)
    return _follow(Display(), setup.resume(run, _parts(data, model, optimizer)), model, data)


def _follow(display: Display, started: Experiment, module: nn.Module | None, arrays: Arrays | None) -> Run:
    with started.run.lock():
        if display.follow(started):
            raise KeyboardInterrupt
        from convsmith.report.write import after_training

        finished = Run(started.run.path, module, arrays)
        after_training(finished.files, display.line, finished._source, module)
    return finished


def _parts(arrays: Arrays | None, module: nn.Module | None, optimizer: OptimizerFactory | None) -> Parts:
    return Parts(_source(arrays), module, optimizer)


def _source(arrays: Arrays | None) -> Source | None:
    if arrays is not None and len(arrays) != 2:
        raise UserError(f"data must be (images, labels), not {len(arrays)} things")
    return None if arrays is None else from_arrays(*arrays)


def _show_figures_in_notebooks() -> None:
    """Let a notebook draw figures where it prints their names, as it does after `%matplotlib inline` alone."""
    if (ipython := sys.modules.get("IPython")) is not None and (shell := ipython.get_ipython()) is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})


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
                    f"{name} must be a dict of settings, such as {name}={{'key': value}}, not {_kind(value)}"
                )
            layer = merge(layer, {name: dict(value)})
        else:
            names = [*shorts, *RunConfig.model_fields]
            raise UserError(
                f"unknown setting '{name}'.{nearest(name, names)} Short names: {', '.join(shorts)}; sections, each "
                f"as a dict: {', '.join(RunConfig.model_fields)}"
            )
    return layer
