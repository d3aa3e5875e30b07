"""One run: from its parts, through the visible epoch loop, to the run directory.

The ten steps of a training: model, data, device, loss and metrics are put together in parts.py; forward and
backward lie in training/step.py; epochs, validation and logging stand here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch

from convsmith import files, records
from convsmith.contracts import Batch, Tracker
from convsmith.data.augment import Augment
from convsmith.data.sampler import batch_positions, epoch_order
from convsmith.data.sources import cache_folder
from convsmith.errors import RunFailed
from convsmith.events import EpochEnd, FeatureExtractionProgress, Finished, Interrupted, StepProgress, Unfroze
from convsmith.figures.curves import learning_curves
from convsmith.figures.matrices import confusion_figure
from convsmith.figures.style import save
from convsmith.files import explain_os_errors
from convsmith.optim.penalties import penalty_values
from convsmith.prediction.evaluate import batches_of, evaluate_split, logits_of
from convsmith.prediction.evaluation import evaluation
from convsmith.prediction.model_file import load_model, save_model
from convsmith.runtime import Interrupts
from convsmith.tracking import csv
from convsmith.tracking.wandb import open_tracker
from convsmith.training.loop import EpochResult, fit
from convsmith.training.setup import Experiment
from convsmith.transfer.features import FeatureFiles, logits_of_features
from convsmith.transfer.unfreezing import Phase
from convsmith.transfer.weights import caches_features

Row = dict[str, Any]


Event = StepProgress | EpochEnd | FeatureExtractionProgress | Unfroze | Interrupted | Finished


def epochs(experiment: Experiment, interrupts: Interrupts) -> Generator[Event]:
    """The run from where it stands to its end, saved on the way; ends with Finished or Interrupted."""
    tracker = _tracker(experiment)
    summary: dict[str, Any] = {"stopped_because": "interrupted"}
    failed = True
    try:
        with explain_os_errors(f"run '{experiment.run.path}' (what it had saved is kept)"):
            for event in _epochs(experiment, interrupts, tracker):
                if isinstance(event, Finished):
                    summary = event.summary
                yield event
        failed = False
    finally:
        tracker.close(summary, failed)


def _epochs(experiment: Experiment, interrupts: Interrupts, tracker: Tracker) -> Iterator[Event]:
    """The loop itself: what happens once an epoch is a line here."""
    run, config, state = experiment.run, experiment.config, experiment.state
    if state.head_alone and caches_features(config) and not state.exhausted:
        yield from _compute_features(experiment, interrupts)
        if interrupts.received:
            run.log(f"interrupted by {interrupts.received.name} before the features were whole")
            yield Interrupted(interrupts.received)
            return
    saved = time.monotonic()
    training = fit(
        state,
        experiment.recipe,
        train_batches(experiment),
        epochs=0 if state.exhausted else config.train.epochs,
        steps=experiment.steps,
        log_every=config.train.log_every,
        stop=lambda: bool(interrupts),
    )
    for event in training:
        _refuse_nonfinite(experiment, event.loss, event.bad_step)
        if not isinstance(event, EpochResult):
            if time.monotonic() - saved >= 60 * config.train.checkpoint_minutes:
                experiment.save()
                saved = time.monotonic()
            if config.track.every_steps:
                tracker.log({"step_loss": event.loss, "step_learning_rate": event.learning_rate}, event.step)
            yield event
        else:
            val = _validate(experiment, interrupts)
            if val is not None:
                row = _row(experiment, event, val)
                _refuse_nonfinite(experiment, row["val_loss"], -1)
                state.schedule.epoch_ended(row["val_loss"])
                state.stopping = state.stopping.after(row)
                best = state.stopping.best_epoch == event.epoch
                state.close_epoch(row["seconds"])
                phase = state.enter_phase()  # before the checkpoint: a resumed run starts with what is thawed by now
                if best:
                    save_model(run.model, state.evaluated, experiment.card)
                # The row goes first: a kill between the two leaves one too many, which a resume cuts, not one too few.
                csv.MetricsCsv(run.metrics).append(row)
                experiment.save(best)
                saved = time.monotonic()
                drawn = {} if config.track.wandb == "off" else {"confusion_matrix": _confusion(val)}
                tracker.log(row | drawn, state.step)
                run.log(f"epoch {event.epoch}: val_loss {row['val_loss']:.4f}, val_accuracy {row['val_accuracy']:.4f}")
                yield EpochEnd(row, best)
                if phase and state.epoch < config.train.epochs:
                    yield _unfroze(experiment, phase)
                if state.exhausted or state.epoch == config.train.epochs:
                    break
        if interrupts.received:  # in validation too: the epoch's training is kept, its validation comes again
            experiment.save()
            run.log(f"interrupted by {interrupts.received.name} at step {state.step}")
            yield Interrupted(interrupts.received)
            return
    yield _finish(experiment, tracker)


def train_batches(experiment: Experiment) -> Callable[[int, int], Iterator[Batch]]:
    """A function of (epoch, position): the epoch's augmented batches, in its order, from that step on."""
    config, train, device = experiment.config, experiment.dataset.train, experiment.device
    augment = Augment(config.augment, experiment.to_input)

    def batches(epoch: int, position: int) -> Iterator[Batch]:
        order = epoch_order(train.labels, config.train.seed, epoch, config.data.sampling == "balanced")
        for step, positions in enumerate(batch_positions(order, config.train.batch_size, position), start=position):
            labels = torch.from_numpy(train.labels[positions]).to(device)
            if experiment.features:
                yield Batch(experiment.features.view(epoch)[positions].to(device), labels, features=True)
            else:
                pixels = torch.from_numpy(train.gather(positions)).to(device)
                yield augment(pixels, labels, experiment.state.generator, [config.train.seed, epoch, step])

    return batches


def _compute_features(experiment: Experiment, interrupts: Interrupts) -> Iterator[FeatureExtractionProgress]:
    """Set `experiment.features`, which trains the head until more is thawed; the pass is time of the present epoch."""
    config, began = experiment.config, time.perf_counter()
    files = FeatureFiles(
        experiment.state.model,
        experiment.dataset,
        experiment.to_input,
        config.augment,
        config.transfer.feature_views,
        cache_folder(config.data) / "features",
    )
    for done, total in files.compute(lambda: bool(interrupts)):
        yield FeatureExtractionProgress(done, total)
    if not interrupts:
        experiment.features = files.load()
        experiment.state.seconds += time.perf_counter() - began


def _unfroze(experiment: Experiment, phase: Phase) -> Unfroze:
    state = experiment.state
    if not phase.head_alone:
        experiment.features = None
    count = sum(parameter.numel() for parameter in state.model.parameters() if parameter.requires_grad)
    experiment.run.log(f"from epoch {state.epoch + 1} on {', '.join(phase.thawed)} train too: {count:,} parameters")
    return Unfroze(state.epoch, phase.thawed, count)


def _finish(experiment: Experiment, tracker: Tracker) -> Finished:
    """Evaluate the best weights on the val split and write evaluation, predictions, figures and summary."""
    run, config, state = experiment.run, experiment.config, experiment.state
    own = None if experiment.card.architecture else state.evaluated
    model, card = load_model(run.model, experiment.device, own)
    record, logits = evaluate_split(model, card, experiment.dataset.val, experiment.device, run, "val")
    rows = csv.read(run.metrics)
    stopped = "all epochs done" if state.epoch == config.train.epochs else "early stopping"
    summary = {
        "name": run.name,
        "best_epoch": state.stopping.best_epoch,
        "epochs": state.epoch,
        "val": records.metric_values(record),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": state.total_seconds,
        "images_per_second": statistics.median(row["images_per_second"] or 0.0 for row in rows),
        "stopped_because": stopped,
        "skipped_files": len(experiment.dataset.failures),
    }
    counts = np.asarray(record["confusion_matrix"]["counts"])
    run.figures.mkdir(exist_ok=True)
    save(learning_curves(rows, state.stopping.best_epoch), run.figures / "curves.png")
    save(confusion_figure(counts, card.classes), run.figures / "confusion.png")
    if config.track.images:
        tracker.log({"samples": _samples(experiment, logits)}, state.step)
    records.write(run.summary, records.Summary, summary)
    run.log(f"finished: {stopped}, val accuracy {record['accuracy']:.4f}")
    return Finished(summary, record, tracker.where)


def _validate(experiment: Experiment, interrupts: Interrupts) -> dict[str, Any] | None:
    """The evaluation record of the val split, with its seconds; None where a signal came."""
    began = time.perf_counter()
    val, state = experiment.dataset.val, experiment.state
    logits = (
        logits_of_features(state.evaluated, experiment.features.val, experiment.device)
        if experiment.features
        else logits_of(
            state.evaluated, batches_of(val), experiment.to_input, experiment.device, stop=lambda: bool(interrupts)
        )
    )
    if logits is None:
        return None
    if not np.isfinite(logits).all():
        _refuse_nonfinite(experiment, float("nan"), -1)
    return evaluation(val.labels, logits, experiment.card.classes) | {"seconds": time.perf_counter() - began}


def _row(experiment: Experiment, event: EpochResult, val: dict[str, Any]) -> Row:
    return {
        "epoch": event.epoch,
        "train_loss": event.loss,
        "train_accuracy": event.accuracy,
        **{f"val_{name}": value for name, value in records.metric_values(val).items()},
        "learning_rate": event.learning_rate,
        "seconds": event.seconds + val["seconds"],
        "images_per_second": event.images_per_second,
        **penalty_values(experiment.state.optimizer, experiment.config.regularize),
    }


def _refuse_nonfinite(experiment: Experiment, loss: float, bad_step: int) -> None:
    """Stop a run whose numbers are no numbers any more, before they reach a checkpoint."""
    if bad_step < 0 and np.isfinite(loss):
        return
    state, config = experiment.state, experiment.config
    at = bad_step if bad_step >= 0 else state.step
    lr = state.base_rate
    smaller = "learning rate in your optimiser" if config.optim.is_own else f"--lr (such as {lr / 10:.3g})"
    message = (
        f"the loss is not a finite number at step {at + 1} (epoch {state.epoch + 1}, learning rate "
        f"{lr * state.schedule.factor(at):.3g}); the last good checkpoint is kept. Try a smaller {smaller}, "
        "--regularize.clip_norm 1 or --schedule.warmup_epochs 1"
    )
    experiment.run.log(message)
    raise RunFailed(message)


def _tracker(experiment: Experiment) -> Tracker:
    """The run's tracker; its W&B id is kept in the run directory, so that a resumed run goes on in the same one."""
    run = experiment.run
    known = run.path / "wandb" / "id.txt"  # a name in run-* would be a run to W&B's viewer
    before = known.read_text(encoding="utf-8", errors="replace") if known.exists() else None
    parts, group = run.path.parts, experiment.config.track.group
    name = " ".join(parts[parts.index(group) :]) if group in parts else run.name  # "study folds 3"
    tracker = open_tracker(
        experiment.config.track, run.path, name, experiment.config.model_dump(mode="json"), before, run.warn
    )
    if tracker.run_id and tracker.run_id != before:
        files.write_text(known, tracker.run_id)
    return tracker


def _confusion(record: dict[str, Any]) -> Any:
    return confusion_figure(np.asarray(record["confusion_matrix"]["counts"]), record["classes"])


def _samples(experiment: Experiment, logits: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Val images evenly spaced, each with its true and its predicted class."""
    val, classes = experiment.dataset.val, experiment.card.classes
    count = min(experiment.config.track.images, len(val))
    chosen = np.linspace(0, len(val) - 1, count).astype(int)
    return [
        (
            image.squeeze(-1) if image.shape[-1] == 1 else image,
            f"{classes[val.labels[at]]}, predicted {classes[logits[at].argmax()]}",
        )
        for at, image in zip(chosen, val.gather(chosen), strict=True)
    ]
