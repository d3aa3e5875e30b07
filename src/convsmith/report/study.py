"""report.html of a cross-validation, where each image is predicted by the net that was not trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from convsmith import records
from convsmith.config import RunConfig, read_run_config
from convsmith.data.dataset import Subset
from convsmith.data.sources import Source
from convsmith.errors import UserError, command, damaged
from convsmith.figures.page import render
from convsmith.prediction.evaluation import Predictions, read_predictions, read_rows
from convsmith.prediction.model_file import ModelCard, load_model, read_card
from convsmith.report import images, sections
from convsmith.report.charts import KINDS, Axes, Line, line_chart
from convsmith.report.diagnosis import course, diagnose
from convsmith.report.images import Gallery
from convsmith.report.inputs import FOLD_CHARTS, NEEDED, TEMPLATES, open_pool, read_course
from convsmith.rundir import RunDir, open_run
from convsmith.studies.fold_job import RECORD
from convsmith.studies.study import FOLDS


@dataclass(frozen=True, eq=False)
class Crossval:
    """A finished cross-validation. `folds` are the runs by (repeat, number), `rows` their epochs in the same order."""

    run: RunDir
    config: RunConfig
    card: ModelCard
    result: dict[str, Any]
    folds: dict[tuple[int, int], RunDir]
    rows: list[list[dict[str, Any]]]
    predictions: Predictions
    environment: dict[str, Any]
    source: Source | None = None

    @cached_property
    def opened(self) -> tuple[Subset | None, str]:
        """The images that were divided into folds, or why they are not available."""
        recorded = records.read(self.run.path / FOLDS, records.Folds)["hash"]
        return open_pool(self.run, self.config, recorded, self.source)


def read_crossval(run: RunDir, source: Source | None = None) -> Crossval:
    """UserError where the study is not finished, or a file is damaged."""
    open_run(run.path, run.crossval.name, FOLDS)
    result = records.read(run.crossval, records.Crossval)
    folds = {}
    for file in run.path.glob(f"folds/*/{RECORD}"):
        record = records.read(file, records.Fold)
        folds[record["repeat"], record["fold"]] = open_run(file.parent, *NEEDED, "evaluation-val.json")
    folds = dict(sorted(folds.items()))
    for name in [run.predictions("oof").name] if folds else [f"folds/*/{RECORD}"]:
        if not folds or not (run.path / name).exists():
            again = command("resume", run.path)
            raise UserError(f"study '{run.path}' has no {name}: {again} makes it if a fold is still to do")
    card = read_card(next(iter(folds.values())).model)
    return Crossval(
        run=run,
        config=read_run_config(run.config),
        card=card,
        result=result,
        folds=folds,
        rows=[read_course(fold)[0] for fold in folds.values()],
        predictions=read_predictions(run.predictions("oof"), card.classes, result["repeats"]),
        environment=records.read(run.environment, records.Environment) if run.environment.exists() else {},
        source=source,
    )


def study_page(study: Crossval) -> str:
    """report.html of a cross-validation."""
    predictions = study.predictions
    pool, absent = study.opened
    gallery = Gallery(pool, predictions.ids)
    confusion = images.confusion(predictions, gallery)
    values = {
        "run": study.run,
        "config": study.config,
        "result": study.result,
        "by_image": records.test_of(study.result) == "images",
        "metrics": {
            name: metric
            for name, metric in records.informative(len(predictions.classes)).items()
            if name in study.result["mean"]
        },
        "images": len(predictions.ids),
        "findings": _findings(study),
        "charts": [_chart(study, *chart) for chart in FOLD_CHARTS],
        "legend": [(at, _name(study, key)) for at, key in enumerate(list(study.folds)[:KINDS])],
        "confusion": confusion,
        "classes": sections.per_class(predictions),
        "mistakes": images.mistakes(predictions, gallery, lambda positions: _heats(study, gallery, positions)),
        "suspected": images.suspected_labels(predictions, gallery),
        "calibration": sections.calibration(predictions),
        "absent": absent,
        "example": str(next(iter(study.folds.values())).path),
        "commands": [
            ("train one net on all training images", command("train", study.run.config)),
            ("make this page again", command("report", study.run.path)),
        ],
        "environment": study.environment,
        "shown": {"images": {str(at): uri for at, uri in gallery.uris.items()}, "cells": confusion["shots"]},
    }
    return render(TEMPLATES / "study.html", values | {"in_short": sections.summary(predictions, values, [])})


def _findings(study: Crossval) -> list[tuple[str, int]]:
    """The findings on the folds' curves, and the number of folds that have each."""
    found, classes = Counter[str](), len(study.card.classes)
    for rows, fold in zip(study.rows, study.folds.values(), strict=True):
        val_images = records.read(fold.evaluation("val"), records.Evaluation)["n"]
        train_images = len(records.read(fold.splits, records.Splits)["splits"]["train"])
        summary = records.read(fold.summary, records.Summary)
        seen = course(rows, summary, study.config, classes, train_images, val_images)
        found.update(finding.name for finding in diagnose(seen))
    return found.most_common()


def _name(study: Crossval, key: tuple[int, int]) -> str:
    repeat, number = key
    return f"fold {number}" + (f" of repeat {repeat}" if study.result["repeats"] > 1 else "")


def _chart(study: Crossval, metric: str, label: str, percent: bool) -> tuple[str, Any]:
    lines = [
        Line(_name(study, key), at, [(row["epoch"], row[metric]) for row in rows])
        for at, (key, rows) in enumerate(list(zip(study.folds, study.rows, strict=True))[:KINDS])
    ]
    ends = [rows[-1][metric] for rows in study.rows]
    words = f"By epoch, one line per fold. They end between {min(ends):.4g} and {max(ends):.4g}."
    return label, line_chart(label, words, Axes("epoch", label, percent=percent), lines)


def _heats(study: Crossval, gallery: Gallery, positions: Sequence[int]) -> list[str | None]:
    """Grad-CAM of each image, by the net that was not trained on it."""
    held_by = _held_by(study.run.predictions("oof"))
    found: dict[int, str | None] = {}
    for key, fold in study.folds.items():
        mine = [at for at in positions if held_by[study.predictions.ids[at]] == key]
        if mine:
            model, card = load_model(fold.model, torch.device("cpu"))
            found.update(zip(mine, images.heats_of(model, card, study.predictions, gallery)(mine), strict=True))
    return [found.get(at) for at in positions]


def _held_by(file: Path) -> dict[str, tuple[int, int]]:
    """The first (repeat, fold) that held each image out, by id."""
    found: dict[str, tuple[int, int]] = {}
    for number, row in enumerate(read_rows(file, ("id", "repeat", "fold")), start=1):
        if not (row["repeat"].isdecimal() and row["fold"].isdecimal()):
            raise damaged(file, f"row {number}: it was held out by no fold")
        found.setdefault(row["id"], (int(row["repeat"]), int(row["fold"])))
    return found
