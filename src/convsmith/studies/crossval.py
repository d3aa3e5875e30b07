"""N-fold cross-validation: the same config trained on every fold, scored once on what the fold held out."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from convsmith import files
from convsmith.config import RunConfig, read_run_config
from convsmith.data.dataset import HELD_OUT, Dataset
from convsmith.display import EXIT_CODES, Display, duration
from convsmith.errors import command
from convsmith.figures.matrices import confusion_figure
from convsmith.figures.style import save
from convsmith.files import read_json, write_json
from convsmith.prediction.evaluate import write_rows
from convsmith.records import HEADLINES, METRICS, shown
from convsmith.rundir import RunDir
from convsmith.studies import study
from convsmith.studies.fold_job import FoldJob
from convsmith.studies.folds import Fold, make_folds
from convsmith.studies.follow import follow
from convsmith.studies.statistics import mean_interval
from convsmith.training import setup

INNER_VAL = 0.1  # of a fold's training images, where the data's own val split leaves data.val_fraction open
RESULT = "crossval.json"
PLAIN: dict[str, Any] = {"box": None, "pad_edge": False}


def begin(
    config: RunConfig,
    folds: int,
    repeats: int,
    at_once: int,
    backend: str,
    runs_dir: Path,
    name: str | None,
    display: Display,
) -> int:
    """Start the study, or go on with the one of this name; the exit code of the process."""
    asked = {"kind": "crossval", "folds": folds, "repeats": repeats, "config": config.model_dump(mode="json")}
    at_once = min(at_once, folds * repeats)
    run = study.existing(runs_dir, name, asked)
    if run is None:
        study.backend(backend)
        prepared = setup.prepare(study.threads_for(config, at_once), progress=display.counting("decoding"))
        divisions = divide(prepared.dataset, prepared.config, folds, repeats)
        stem = f"{setup.stem(prepared.config)}-crossval"
        files = {study.FOLDS: study.folds_record(prepared.dataset, divisions)}
        run = study.create(runs_dir, name, stem, asked, prepared.config, files)
        _opening(run, prepared, divisions, at_once, display)
    return go_on(run, at_once, backend, display)


def divide(dataset: Dataset, config: RunConfig, folds: int, repeats: int) -> list[Fold]:
    """The folds of the data's train and val images together."""
    return make_folds(
        dataset.pool().labels,
        folds,
        repeats,
        config.data.val_fraction or INNER_VAL,
        config.data.split_seed,
        dataset.classes,
        dataset.pool_groups(),
    )


def go_on(run: RunDir, at_once: int, backend: str, display: Display) -> int:
    """Run what is not done yet, and write what all folds say together."""
    asked = study.read_asked(run)
    with run.lock():
        config = read_run_config(run.config)
        jobs = fold_jobs(run, config)
        ran = follow(run, jobs, at_once, backend, display)
        if ran.stopped:
            display.line(f"\nstopped, all saved; go on with: {command('resume', run.path)}")
            return EXIT_CODES[ran.stopped]
        result = summarise(run, asked, [job for job in jobs if job.done], ran.failed)
        _table(run, result, display)
    return 1 if ran.failed else 0


def fold_jobs(run: RunDir, config: RunConfig) -> list[FoldJob]:
    """A job a fold, each with a seed of its own: the base's, plus the fold's place."""
    folds_file = run.path / study.FOLDS
    record = read_json(folds_file)
    config = config.with_values(track={"group": run.name})
    return [
        FoldJob(
            name=f"fold {division['number']}" + (f" of repeat {division['repeat']}" if division["repeat"] > 1 else ""),
            directory=str((run.path / "folds" / str(index + 1)).resolve()),
            folds_file=str(folds_file.resolve()),
            index=index,
            config=config.with_values(train={"seed": config.train.seed + index}).model_dump(mode="json"),
            data_hash=record["hash"],
        )
        for index, division in enumerate(record["divisions"])
    ]


def summarise(
    run: RunDir, asked: Mapping[str, Any], done: Sequence[FoldJob], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Write crossval.json, predictions-oof.csv and figures/confusion.png from the folds that are done."""
    folds = [RunDir(Path(job.directory)) for job in done]
    per_fold = [job.record() for job in done]
    # Folds of an older edition may lack the latest metrics.
    metrics = [metric for metric in METRICS if per_fold and all(metric in record for record in per_fold)]
    intervals = {}
    if len(per_fold) >= 2:
        for metric in metrics:
            mean, std, low, high = mean_interval([record[metric] for record in per_fold], 1 / asked["folds"])
            # A metric keeps its bounds, whatever few folds make of the t distribution.
            intervals[metric] = (mean, std, METRICS[metric].within(low), METRICS[metric].within(high))
    evaluations = [read_json(fold.evaluation(HELD_OUT)) for fold in folds]
    result: dict[str, Any] = {
        "folds": asked["folds"],
        "repeats": asked["repeats"],
        "missing": dict(failed),
        "per_fold": per_fold,
        "mean": {metric: float(np.mean([record[metric] for record in per_fold])) for metric in metrics},
        "std": {metric: std for metric, (_, std, _, _) in intervals.items()},
        "ci95": {metric: [low, high] for metric, (_, _, low, high) in intervals.items()},
    }
    if evaluations:
        classes = evaluations[0]["classes"]
        counts = np.sum([record["confusion_matrix"]["counts"] for record in evaluations], axis=0)
        result["confusion_matrix"] = evaluations[0]["confusion_matrix"] | {"counts": counts.tolist()}
        run.figures.mkdir(exist_ok=True)
        save(confusion_figure(counts, classes), run.figures / "confusion.png")
        _write_out_of_fold(run, folds, per_fold)
    write_json(run.path / RESULT, result)
    run.log(f"{len(per_fold)} folds done, {len(failed)} failed")
    return result


def _write_out_of_fold(run: RunDir, folds: Sequence[RunDir], per_fold: Sequence[Mapping[str, Any]]) -> None:
    """Every image with the prediction of the net that did not train on it, in the pool's order, repeat by repeat."""
    order = {name: at for at, name in enumerate(read_json(run.path / study.FOLDS)["pool"])}
    rows = []
    for fold, record in zip(folds, per_fold, strict=True):
        with fold.predictions(HELD_OUT).open(encoding="utf-8", newline="") as file:
            rows += [row | {"repeat": record["repeat"], "fold": record["fold"]} for row in csv.DictReader(file)]
    rows.sort(key=lambda row: (row["repeat"], order[str(row["id"])]))
    text = io.StringIO()
    write_rows(text, rows)
    files.write_text(run.predictions("oof"), text.getvalue())


def _opening(run: RunDir, prepared: setup.Prepared, divisions: Sequence[Fold], at_once: int, display: Display) -> None:
    config, dataset = prepared.config, prepared.dataset
    first = divisions[0]
    display.line(f"study   {run.path}")
    display.line(
        f"data    {config.data.source}: {len(dataset.pool()):,} images in {len(divisions)} folds, each of "
        f"{len(first.train):,} train, {len(first.val):,} inner val, {len(first.held_out):,} held out; "
        f"{dataset.test_size:,} test (sealed)"
    )
    display.line(f"model   {config.model.name}; {config.train.epochs} epochs, {config.train.threads} threads a fold")
    assert prepared.seconds_per_epoch is not None
    epoch = prepared.seconds_per_epoch * len(first.train) / len(dataset.train)
    whole = epoch * max(setup.image_epochs(config, prepared.finetuning), 1) * len(divisions) / at_once
    display.line(f"needs   about {duration(whole)} of training, {at_once} at once")
    display.notes(prepared.notes)


def _table(run: RunDir, result: Mapping[str, Any], display: Display) -> None:
    folds = Table("fold", *(METRICS[metric].label for metric in HEADLINES), "images", "seconds", **PLAIN)
    for record in result["per_fold"]:
        label = str(record["fold"]) if result["repeats"] == 1 else f"{record['repeat']}.{record['fold']}"
        scores = [shown(metric, record[metric]) for metric in HEADLINES]
        folds.add_row(label, *scores, f"{record['n']:,}", f"{record['seconds']:.1f}")
    over_folds = Table("metric", "mean", "std", "95% low", "95% high", **PLAIN)
    for metric, std in result["std"].items():
        values = (result["mean"][metric], std, *result["ci95"][metric])
        over_folds.add_row(METRICS[metric].label, *(shown(metric, value) for value in values))
    for table in (folds, over_folds) if result["std"] else (folds,):
        for column in table.columns[1:]:
            column.justify = "right"
        display.line("")
        display.console.print(table)
    for name, reason in result["missing"].items():
        display.line(f"missing: {name}, which failed: {reason}")
    if not result["std"]:
        display.line("fewer than two folds are done: no interval can be computed")
    written = f"{run.path / RESULT}, {run.predictions('oof').name}, figures/confusion.png, folds/"
    display.line(f"\nwritten: {written if result['per_fold'] else run.path / RESULT}")
    if result["missing"]:
        display.line(f"next: {command('resume', run.path)}   (tries what failed again)")
    else:
        display.line(f"next: {command('train', run.config)}   (one net from all of train)")
