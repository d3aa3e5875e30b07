"""All that a report is made of: the files of a finished run, and its train and val images where they can be had."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convsmith.config import RunConfig, read_layer, validate
from convsmith.data.dataset import Dataset
from convsmith.data.sources import Source
from convsmith.errors import UserError
from convsmith.inference import CARD, ModelCard, load_model, run_dataset
from convsmith.rundir import RunDir, open_run, read_json
from convsmith.tracking import csv as metrics_csv

NEEDED = ("summary.json", "metrics.csv", "splits.json", "evaluation-val.json", "predictions-val.csv", f"model/{CARD}")


@dataclass(frozen=True, eq=False)
class Predictions:
    """predictions-<split>.csv: `labels` int64 [N] index `classes`, `probabilities` float64 [N, K]."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def predicted(self) -> NDArray[np.int64]:
        winners: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return winners

    @property
    def right(self) -> NDArray[np.bool_]:
        verdicts: NDArray[np.bool_] = self.predicted == self.labels
        return verdicts

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Logits up to a constant a row, hence good for losses and temperatures. A probability of 0 counts as 1e-45."""
        least = float(np.finfo(np.float32).smallest_subnormal)
        logarithms: NDArray[np.float64] = np.log(self.probabilities.clip(min=least))
        return logarithms

    @property
    def losses(self) -> NDArray[np.float64]:
        """The cross-entropy of each image in nats, float64 [N]."""
        losses: NDArray[np.float64] = -self.log_probabilities[np.arange(len(self.labels)), self.labels]
        return losses


@dataclass(frozen=True, eq=False)
class Material:
    """A finished run; its images and its network are opened when they are asked for.

    `source` and `module` are the user's own data and network, where the run has been trained with such.
    """

    run: RunDir
    config: RunConfig
    card: ModelCard
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    splits: dict[str, Any]
    evaluation: dict[str, Any]
    predictions: Predictions
    test: dict[str, Any] | None
    openings: list[dict[str, Any]]
    environment: dict[str, Any]
    source: Source | None
    module: nn.Module | None

    @cached_property
    def model(self) -> nn.Module | None:
        """The best weights, on the CPU in eval mode; None where the network is the user's own and was not handed in."""
        if self.card.architecture is None and self.module is None:
            return None
        # A copy: whoever handed the module in may be using it, on another device.
        return load_model(self.run.model, torch.device("cpu"), copy.deepcopy(self.module))[0]

    @cached_property
    def _opened(self) -> tuple[Dataset | None, str]:
        try:
            return run_dataset(self.run, self.source), ""
        except UserError as error:
            return None, str(error)

    @property
    def dataset(self) -> Dataset | None:
        """The data as the run divided it; None where it cannot be had again, and `absent` says why."""
        return self._opened[0]

    @property
    def absent(self) -> str:
        return self._opened[1]


def read_material(path: Path, source: Source | None = None, module: nn.Module | None = None) -> Material:
    """The material of the run in `path`; UserError where the run or a file is missing.

    The test split stays sealed: of it only what `evaluate` wrote is read.
    """
    run = open_finished(path)
    card = ModelCard.model_validate(read_json(run.model / CARD))
    test, openings = run.evaluation("test"), run.test_access
    return Material(
        run=run,
        config=validate(read_layer(run.config)),
        card=card,
        rows=[dict(row) for row in metrics_csv.read(run.metrics)],
        summary=read_json(run.summary),
        splits=read_json(run.splits),
        evaluation=read_json(run.evaluation("val")),
        predictions=read_predictions(run.predictions("val"), card.classes),
        test=read_json(test) if test.exists() else None,
        openings=[json.loads(line) for line in openings.read_text("utf-8").splitlines()] if openings.exists() else [],
        environment=read_json(run.environment) if run.environment.exists() else {},
        source=source,
        module=module,
    )


def open_finished(path: Path) -> RunDir:
    """A run with all that a report needs; a UserError says which command makes what is missing."""
    run = open_run(path)
    if run.study.exists():
        folds = sorted(str(file.parent) for file in run.path.glob("*/**/fold.json"))
        example = f": convsmith report {folds[0]}" if folds else ""
        raise UserError(f"'{run.path}' is a study: a report shows a single run, such as one of its folds{example}")
    return open_run(path, *NEEDED)


def read_predictions(file: Path, classes: tuple[str, ...]) -> Predictions:
    """A predictions-<split>.csv of a model with these `classes`."""
    index = {name: at for at, name in enumerate(classes)}
    ids, labels, chances = [], [], []
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            ids.append(row["id"])
            labels.append(index[row["label"]])
            chances.append([float(row[f"p_{name}"]) for name in classes])
    return Predictions(tuple(ids), np.array(labels, dtype=np.int64), np.array(chances, dtype=np.float64), classes)
