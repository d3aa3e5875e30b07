"""The training loop, from an experiment's current state to its end. Shows nothing; `finish` writes the results.

Everything that happens once per step or epoch is a line of `epochs`. It yields events; listeners change nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from convsmith import files
from convsmith.contracts import Classifier, Tracker
from convsmith.data.dataset import Subset
from convsmith.errors import EndedElsewhere, RunFailed
from convsmith.events import Doing, EpochEnd, FeatureExtractionProgress, Finished, Interrupted, StepProgress, Unfroze
from convsmith.figures.matrices import evaluation_figure
from convsmith.files import explain_os_errors
from convsmith.memory import explain_memory_errors
from convsmith.optim.penalties import penalty_values
from convsmith.prediction.evaluate import logits_of
from convsmith.prediction.evaluation import evaluation
from convsmith.records import metric_values
from convsmith.runtime import Interrupts
from convsmith.tracking import csv
from convsmith.tracking.null import NullTracker
from convsmith.tracking.wandb import open_tracker
from convsmith.training import footprint
from convsmith.training.experiment import Experiment
from convsmith.training.feed import train_batches
from convsmith.training.finish import finish
from convsmith.training.kept import kept_files
from convsmith.training.loss import class_weights
from convsmith.training.step import step
from convsmith.transfer.features import logits_of_features
from convsmith.transfer.solved_head import solve

CLEAN_MEASUREMENTS = 5  # epochs of a run in which clean train images are scored, always including the last one

Event = StepProgress | EpochEnd | FeatureExtractionProgress | Unfroze | Interrupted | Doing | Finished


def epochs(experiment: Experiment, interrupts: Interrupts) -> Generator[Event]:
    """Train from the current state to the end of the run, saving checkpoints; ends with Finished or Interrupted."""
    run, config, state, ranks = experiment.run, experiment.config, experiment.state, experiment.ranks
    with _tracked(experiment) as (tracker, summary):
        kept, batches, saved = kept_files(experiment), train_batches(experiment), time.monotonic()
        while state.epoch < config.train.epochs and not state.exhausted:
            # What frozen parts of the network compute are constants: a view of the images is computed once.
            if kept:
                began = time.perf_counter()
                for done, total in kept.compute(experiment, lambda: bool(interrupts)):
                    yield FeatureExtractionProgress(done, total)
                if received := ranks.agreed(interrupts.received):
                    yield _stopped(experiment, received)
                    return
                experiment.features = kept.load(experiment)
                if config.transfer.head_l2 is not None and not state.step:
                    if ranks.first:
                        _solve_head(experiment)
                    ranks.from_first(
                        [*state.model.parameters(), *(state.average.model.parameters() if state.average else ())]
                    )
                _place_features(experiment)
                state.seconds += time.perf_counter() - began

            state.training_mode(experiment.features.rest(state.model) if experiment.features else None)
            began = time.perf_counter()
            for batch in batches(state.epoch, state.position):
                step(state, batch, experiment.recipe)
                if state.position % config.train.log_every and not (interrupts and ranks.alone):
                    continue
                progress = _progress(experiment, began)
                received = ranks.agreed(interrupts.received)
                if time.monotonic() - saved >= 60 * config.train.checkpoint_minutes:
                    experiment.save()
                    saved = time.monotonic()
                if config.track.every_steps:
                    tracker.log({"step_loss": progress.loss, "step_learning_rate": progress.learning_rate}, state.step)
                yield progress
                if received:
                    yield _stopped(experiment, received)
                    return
                began = time.perf_counter()  # the time that listeners take is not training time

            # Validate; in a few epochs, score clean train images as well.
            trained, began = _progress(experiment, began), time.perf_counter()
            val = _scores(experiment, experiment.dataset.val, interrupts) if len(experiment.dataset.val) else {}
            if val is None:  # the epoch's training is saved, and a resume repeats its validation
                assert interrupts.received
                yield _stopped(experiment, interrupts.received)
                return
            row = _row(experiment, trained, val)
            stopping = state.stopping.after(row)
            if _is_measured(trained.epoch, config.train.epochs) or state.ends_with(stopping):
                clean = _scores(experiment, experiment.clean_sample, interrupts)
                if clean is None:
                    assert interrupts.received
                    yield _stopped(experiment, interrupts.received)
                    return
                row |= {"clean_train_loss": clean["loss"], "clean_train_accuracy": clean["accuracy"]}
            row["seconds"] = trained.seconds + time.perf_counter() - began

            # Schedule, early stopping, unfreezing.
            if val:
                state.schedule.epoch_ended(row["val_loss"])
            state.stopping = stopping
            best = stopping.best_epoch == trained.epoch
            state.close_epoch(row["seconds"])
            phase = state.enter_phase()  # before the checkpoint, so that a resumed run starts in the new phase

            # Write model, log and checkpoint.
            if best:
                experiment.save_model()
            # The row is written first: a kill in between leaves a row too many, which a resume can remove.
            if ranks.first:
                csv.MetricsCsv(run.metrics).append(row)
            experiment.save(best)
            saved = time.monotonic()
            figure = val and config.track.wandb != "off" and ranks.first
            tracker.log(row | ({"confusion_matrix": evaluation_figure(val)} if figure else {}), state.step)
            shown = ("val_loss", "val_accuracy") if val else ("train_loss", "train_accuracy")
            run.log(f"epoch {trained.epoch}: {', '.join(f'{name} {row[name]:.4f}' for name in shown)}")
            over = state.exhausted or state.epoch == config.train.epochs
            unfroze = Unfroze(state.epoch, phase.unfrozen, state.trained_parameters) if phase and not over else None
            if unfroze:
                experiment.features = None  # those of the phase that has ended
                run.log(
                    f"from epoch {state.epoch + 1} on, {', '.join(unfroze.stages)} train as well: "
                    f"{unfroze.parameters:,} parameters"
                )
            yield EpochEnd(row, best and config.train.keep == "best")
            if unfroze:
                yield unfroze
            received = None if over else ranks.agreed(interrupts.received)
            if received:
                yield _stopped(experiment, received)
                return

        if not ranks.first:
            return
        yield Doing("evaluating")
        finished = finish(experiment, tracker)
        summary.update(finished.summary)
        yield finished


def _place_features(experiment: Experiment) -> None:
    if experiment.features:
        free = footprint.available(experiment.device)
        experiment.features = experiment.feed.placed(experiment.features, free)


def _solve_head(experiment: Experiment) -> None:
    """Set the head to the solution on all views of the train images, before the first step."""
    config, train, features = experiment.config, experiment.dataset.train, experiment.features
    assert features is not None
    assert config.transfer.head_l2 is not None
    classes = len(experiment.card.classes)
    given = class_weights(config.train.class_weights, train.labels, experiment.card.classes)
    weights = None if given is None else given.numpy()
    views = [features.view(epoch) for epoch in range(features.count)]
    rows, labels = torch.cat(views).numpy(), np.tile(train.labels, len(views))
    head = solve(rows, labels, classes, [config.transfer.head_l2], weights)[0]
    averages = [experiment.state.average.model] if experiment.state.average else []
    for model in (experiment.state.model, *averages):
        assert isinstance(model, Classifier)
        assert isinstance(model.head, nn.Linear)
        head.copy_to(model.head)


def _progress(experiment: Experiment, began: float) -> StepProgress:
    """The current epoch so far; adds the time since `began` to its training time. RunFailed if it has diverged."""
    state = experiment.state
    loss, accuracy, images, bad_step = state.metrics.read(experiment.ranks)
    experiment.ranks.average_buffers([state.model, *([state.average.model] if state.average else [])])
    state.seconds += time.perf_counter() - began
    _refuse_nonfinite(experiment, loss, bad_step)
    return StepProgress(
        epoch=state.epoch + 1,
        position=state.position,
        steps=experiment.steps,
        step=state.step,
        loss=loss,
        accuracy=accuracy,
        images=images,
        learning_rate=state.learning_rate,
        seconds=state.seconds,
        bad_step=bad_step,
    )


def _is_measured(epoch: int, count: int) -> bool:
    """Whether clean images are scored in an epoch (from 1) of `count`; these epochs are spread over the run."""
    share = count / CLEAN_MEASUREMENTS
    return epoch in {math.ceil(share * number) for number in range(1, CLEAN_MEASUREMENTS + 1)}


def _scores(experiment: Experiment, subset: Subset, interrupts: Interrupts) -> dict[str, Any] | None:
    """The evaluation record of images without augmentation, in eval mode; None if it was interrupted.

    Several ranks divide the images; they do not stop in between.
    """
    model, features, ranks = experiment.state.evaluated, experiment.features, experiment.ranks
    if features:
        known = features.val if subset is experiment.dataset.val else features.clean
        logits: np.ndarray | None = logits_of_features(features.rest(model), known, experiment.device)
    else:
        images, to_input = experiment.feed.evaluated(experiment.part_of(subset)), experiment.to_input
        logits = logits_of(model, images, to_input, experiment.device, lambda: bool(interrupts) and ranks.alone)
        logits = None if logits is None else ranks.joined_rows(logits, len(subset))
    if logits is None:
        return None

    def record() -> dict[str, Any]:
        if not np.isfinite(logits).all():
            _refuse_nonfinite(experiment, math.nan, -1)
        return evaluation(subset.labels, logits / experiment.config.train.temperature, experiment.card.classes)

    return ranks.told(record)


def _row(experiment: Experiment, trained: StepProgress, val: dict[str, Any]) -> dict[str, Any]:
    row = {
        "epoch": trained.epoch,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        **{f"val_{name}": value for name, value in metric_values(val).items()},
        "learning_rate": trained.learning_rate,
        "images_per_second": trained.images_per_second,
        **penalty_values(experiment.state.optimizer, experiment.config.regularize),
    }
    if val:
        _refuse_nonfinite(experiment, row["val_loss"], -1)
    return row


def _stopped(experiment: Experiment, received: Any) -> Interrupted:
    experiment.save()
    experiment.run.log(f"interrupted by {received.name} at step {experiment.state.step}")
    return Interrupted(received)


def _refuse_nonfinite(experiment: Experiment, loss: float, bad_step: int) -> None:
    """Stop a run whose loss is not finite any more, before it reaches a checkpoint."""
    if bad_step < 0 and np.isfinite(loss):
        return
    state, config = experiment.state, experiment.config
    at = bad_step if bad_step >= 0 else state.step
    lr = state.base_rate
    smaller = "learning rate in your optimiser" if config.optim.is_own else f"--lr (for example {lr / 10:.3g})"
    message = (
        f"the loss is not a finite number at step {at + 1} (epoch {state.epoch + 1}, learning rate "
        f"{lr * state.schedule.factor(at):.3g}); the last good checkpoint is kept. Try a smaller {smaller}, "
        "--regularize.clip_norm 1 or --schedule.warmup_epochs 1"
    )
    experiment.run.log(message)
    raise RunFailed(message) if experiment.ranks.first else EndedElsewhere


@contextmanager
def _tracked(experiment: Experiment) -> Iterator[tuple[Tracker, dict[str, Any]]]:
    """The run's tracker, and a dict for the summary with which it is closed; disk errors name the run.

    The W&B id is kept in the run directory, so that a resumed run continues the same W&B run.
    """
    run = experiment.run
    if not experiment.ranks.first:
        yield NullTracker(), {}
        return
    known = run.wandb / "id.txt"  # W&B's viewer would take a name such as run-* for a run
    before = known.read_text(encoding="utf-8", errors="replace") if known.exists() else None
    parts, group = run.path.parts, experiment.config.track.group
    name = " ".join(parts[parts.index(group) :]) if group in parts else run.name  # "study folds 3"
    tracker = open_tracker(
        experiment.config.track, run.path, name, experiment.config.model_dump(mode="json"), before, run.warn
    )
    if tracker.run_id and tracker.run_id != before:
        files.write_text(known, tracker.run_id)
    summary: dict[str, Any] = {"stopped_because": "interrupted"}
    failed = True
    fix = (
        f"{footprint.sizes(experiment.config)} are in force; the last checkpoint is kept: end other programs, or lower "
        f"train.batch_size{footprint.halving(experiment.config)} in '{run.config}', and resume"
    )
    disk = explain_os_errors(f"run '{run.path}' (the last checkpoint is kept)")
    try:
        with disk, explain_memory_errors(f"in run '{run.path}'", fix):
            yield tracker, summary
        failed = False
    finally:
        tracker.close(summary, failed)
