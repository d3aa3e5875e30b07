"""The results of a finished run: the kept model's evaluation, figures, and summary.json. Trains nothing."""

from __future__ import annotations

import statistics

import numpy as np

from convsmith import records
from convsmith.contracts import Tracker, gray_or_rgb
from convsmith.events import Finished
from convsmith.figures.curves import learning_curves
from convsmith.figures.matrices import evaluation_figure
from convsmith.figures.style import save
from convsmith.prediction.evaluate import batches_of, evaluate_split, logits_of
from convsmith.prediction.evaluation import evaluation
from convsmith.prediction.model_file import load_model
from convsmith.tracking import csv
from convsmith.training.experiment import Experiment


def finish(experiment: Experiment, tracker: Tracker) -> Finished:
    """Evaluate the kept weights on the val split, if any, and on clean train images, and write the run's results."""
    run, config, state = experiment.run, experiment.config, experiment.state
    own = None if experiment.card.architecture else state.evaluated
    model, card = load_model(run.model, experiment.device, own)
    record = logits = None
    if len(experiment.dataset.val):
        record, logits = evaluate_split(model, card, experiment.dataset.val, experiment.device, run, "val")
    clean = experiment.clean_sample
    clean_logits = logits_of(model, batches_of(clean, experiment.device), experiment.to_input, experiment.device)
    assert clean_logits is not None
    on_train = evaluation(clean.labels, clean_logits, card.classes)
    rows = csv.read(run.metrics)
    stopped = "all epochs done" if state.epoch == config.train.epochs else records.STOPPED_EARLY
    summary = {
        "name": run.name,
        "best_epoch": state.stopping.best_epoch,
        "epochs": state.epoch,
        "val": None if record is None else records.metric_values(record),
        "train": {"accuracy": on_train["accuracy"], "loss": on_train["loss"], "n": len(clean)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": state.total_seconds,
        "images_per_second": statistics.median(row["images_per_second"] or 0.0 for row in rows),
        "stopped_because": stopped,
        "skipped_files": len(experiment.dataset.failures),
    }
    run.figures.mkdir(exist_ok=True)
    save(learning_curves(rows, state.stopping.best_epoch), run.figures / "curves.png")
    if record is not None:
        save(evaluation_figure(record), run.confusion("val"))
    if config.track.images and logits is not None:
        tracker.log({"samples": _samples(experiment, logits)}, state.step)
    summary = records.write(run.summary, records.Summary, summary)
    scored = "no val images" if record is None else f"val accuracy {record['accuracy']:.4f}"
    run.log(f"finished: {stopped}, {scored}")
    return Finished(summary, record, tracker.where)


def _samples(experiment: Experiment, logits: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Evenly spaced val images, each with its true and its predicted class."""
    val, classes = experiment.dataset.val, experiment.card.classes
    count = min(experiment.config.track.images, len(val))
    chosen = np.linspace(0, len(val) - 1, count).astype(int)
    return [
        (
            gray_or_rgb(image),
            f"{classes[val.labels[at]]}, predicted as {classes[logits[at].argmax()]}",
        )
        for at, image in zip(chosen, val.gather(chosen), strict=True)
    ]
