"""The inputs of a report: the files of a finished run, and its train and val images where they are available."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convsmith import records
from convsmith.config import RunConfig, read_run_config
from convsmith.data.dataset import Dataset, Subset, open_dataset
from convsmith.data.source import SPLITS
from convsmith.data.sources import Source
from convsmith.errors import UserError, command, damaged
from convsmith.prediction.evaluate import refuse_lost, run_dataset
from convsmith.prediction.evaluation import Predictions, read_predictions
from convsmith.prediction.model_file import ModelCard, load_model, read_card
from convsmith.rundir import CARD, RunDir, open_single
from convsmith.tracking import csv as metrics_csv

TEMPLATES = Path(__file__).with_name("templates")
NEEDED = ("summary.json", "metrics.csv", "splits.json", f"model/{CARD}")
EVALUATED = ("evaluation-val.json", "predictions-val.csv")

#: The charts of the trainings of a study by epoch: column of metrics.csv, label, whether it is shown in percent.
FOLD_CHARTS = (
    ("val_accuracy", "inner validation accuracy (%)", True),
    ("val_loss", "inner validation loss (nats)", False),
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A finished run; its images and its network are opened on first use.

    `source` and `module` are the user's own data and network, if the run was trained with such.
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
    others: list[dict[str, Any]]
    openings: list[dict[str, Any]]
    environment: dict[str, Any]
    source: Source | None
    module: nn.Module | None

    @cached_property
    def model(self) -> nn.Module | None:
        """The best weights, on the CPU in eval mode; None where the network is the user's own and was not passed in."""
        if self.card.architecture is None and self.module is None:
            return None
        # A copy: the caller may be using the module, on another device.
        return load_model(self.run.model, torch.device("cpu"), copy.deepcopy(self.module))[0]

    @cached_property
    def _opened(self) -> tuple[Dataset | None, str]:
        try:
            return run_dataset(self.run, self.source), ""
        except UserError as error:
            return None, str(error)

    @property
    def dataset(self) -> Dataset | None:
        """The data as the run divided them; None where they are no longer available, and `absent` says why."""
        return self._opened[0]

    @property
    def absent(self) -> str:
        return self._opened[1]


def read_inputs(path: Path, source: Source | None = None, module: nn.Module | None = None) -> Inputs:
    """The inputs of the run in `path`; UserError where the run or a file is missing.

    The test split stays sealed: only what `evaluate` wrote about it is read.
    """
    run = open_finished(path)
    card = read_card(run.model)
    evaluation = records.read(run.evaluation("val"), records.Evaluation)
    predictions = read_predictions(run.predictions("val"), card.classes)
    if len(predictions.ids) != evaluation["n"]:
        raise UserError(
            f"'{run.predictions('val')}' has {len(predictions.ids)} images and '{run.evaluation('val').name}' "
            f"{evaluation['n']}: make both again with {command('evaluate', path)}"
        )
    test = run.evaluation("test")
    names = [name for name in run.evaluations() if name not in SPLITS]
    others = [one for name in names if (one := records.read(run.evaluation(name), records.Evaluation)).get("data")]
    rows, summary = read_course(run)
    return Inputs(
        run=run,
        config=read_run_config(run.config),
        card=card,
        rows=rows,
        summary=summary,
        splits=records.read(run.splits, records.Splits),
        evaluation=evaluation,
        predictions=predictions,
        test=records.read(test, records.Evaluation) if test.exists() else None,
        others=others,
        openings=records.read_lines(run.test_access, records.TestAccess),
        environment=records.read(run.environment, records.Environment) if run.environment.exists() else {},
        source=source,
        module=module,
    )


def open_pool(run: RunDir, config: RunConfig, recorded: str, source: Source | None) -> tuple[Subset | None, str]:
    """The images that a study has divided into folds, with the `recorded` hash, or why they are not available."""
    try:
        if source is None:
            refuse_lost(config.data, run)
        dataset = open_dataset(config.data, source=source, trained=True).of_hash(recorded)
        if dataset is None:
            raise UserError(f"the data of '{run.path}' has changed since")
        return dataset.pool(), ""
    except UserError as error:
        return None, str(error)


def open_finished(path: Path) -> RunDir:
    """A run with everything that a report needs; a UserError names the command that makes a missing file."""
    run = open_single(path, *NEEDED)
    if records.read(run.summary, records.Summary)["val"] is None:
        raise UserError(
            f"run '{path}' was trained without val images, so that there are none to report on: try it on others, "
            f"{command('evaluate', path, '--data')} OTHER"
        )
    for name in EVALUATED:
        if not (run.path / name).exists():
            raise UserError(f"run '{path}' has no {name}: {command('evaluate', path)} makes it")
    return run


def read_course(run: RunDir) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of metrics.csv and summary.json of a finished run; UserError where they are not of the same training."""
    rows, summary = read_metrics(run.metrics), records.read(run.summary, records.Summary)
    if len(rows) < summary["best_epoch"]:
        raise damaged(run.metrics, f"it ends before epoch {summary['best_epoch']}, the best of {run.summary.name}")
    return rows, summary


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv, at least one; UserError where it is damaged."""
    rows = [dict(row) for row in metrics_csv.read(path)]
    if not rows:
        raise damaged(path, "it has no complete row")
    for number, row in enumerate(rows, start=1):
        records.check(path, records.MetricsRow, row, f"row {number}, ")
    return rows
