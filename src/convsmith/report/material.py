"""All that a report is made of: the files of a finished run, and its train and val images where they can be had."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convsmith.config import RunConfig, read_run_config
from convsmith.data.dataset import Dataset
from convsmith.data.sources import Source
from convsmith.errors import UserError, command
from convsmith.prediction.evaluate import run_dataset
from convsmith.prediction.model_file import CARD, ModelCard, load_model, read_card
from convsmith.report import files
from convsmith.report.files import Predictions
from convsmith.rundir import RunDir, open_single

NEEDED = ("summary.json", "metrics.csv", "splits.json", f"model/{CARD}")
EVALUATED = ("evaluation-val.json", "predictions-val.csv")


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
    card = read_card(run.model)
    evaluation = files.read(run.evaluation("val"), files.Evaluation)
    predictions = files.read_predictions(run.predictions("val"), card.classes)
    if len(predictions.ids) != evaluation["n"]:
        raise UserError(
            f"'{run.predictions('val')}' has {len(predictions.ids)} images and '{run.evaluation('val').name}' "
            f"{evaluation['n']}: make both again, {command('evaluate', path)}"
        )
    test = run.evaluation("test")
    return Material(
        run=run,
        config=read_run_config(run.config),
        card=card,
        rows=files.read_metrics(run.metrics),
        summary=files.read(run.summary, files.Summary),
        splits=files.read(run.splits, files.Splits),
        evaluation=evaluation,
        predictions=predictions,
        test=files.read(test, files.Evaluation) if test.exists() else None,
        openings=files.read_openings(run.test_access),
        environment=files.read(run.environment, files.Environment) if run.environment.exists() else {},
        source=source,
        module=module,
    )


def open_finished(path: Path) -> RunDir:
    """A run with all that a report needs; a UserError says which command makes what is missing."""
    run = open_single(path, *NEEDED)
    for name in EVALUATED:
        if not (run.path / name).exists():
            raise UserError(f"run '{path}' has no {name}: {command('evaluate', path)} makes it")
    return run
