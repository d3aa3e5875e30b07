"""One run: config -> parts -> the visible epoch loop -> run directory.

`start` and `resume` put the parts together (model, data, device, loss, metrics), `epochs` is the loop
(forward and backward lie in training/step.py), `finish` writes what a finished run leaves.
"""

from __future__ import annotations

import hashlib
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convsmith import rundir
from convsmith.config import RunConfig, read_layer, validate
from convsmith.contracts import Batch, Tracker
from convsmith.data.augment import Augment
from convsmith.data.batches import ToInput, batch_positions, epoch_order, steps_per_epoch
from convsmith.data.dataset import Dataset, open_dataset
from convsmith.data.sources import SOURCES, Source, cache_folder
from convsmith.errors import RunFailed, UserError
from convsmith.inference import ModelCard, batches_of, evaluate_split, load_model, logits_of, memory_format, save_model
from convsmith.insight.evaluation import evaluation
from convsmith.insight.figures import confusion_figure, learning_curves, save
from convsmith.nets.blocks import unsafe_channels_last
from convsmith.nets.build import build
from convsmith.nets.shapes import Estimate, LayerRow, estimate, trace
from convsmith.optim.optimizers import Group, build_optimizer, default_lr, parameter_groups
from convsmith.optim.penalties import penalty_values
from convsmith.optim.schedules import Schedule
from convsmith.rundir import RunDir, explain_os_errors
from convsmith.runtime import Interrupts, environment, seed_everything, select_device, set_threads
from convsmith.tracking import csv
from convsmith.tracking.wandb import open_tracker
from convsmith.training import checkpoint
from convsmith.training.layout import seconds_per_step
from convsmith.training.loop import EpochResult, Progress, fit
from convsmith.training.loss import balanced_weights, build_loss
from convsmith.training.state import TrainState, new_state
from convsmith.training.step import Recipe

Row = dict[str, Any]
OptimizerFactory = Callable[[list[Group]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Parts:
    """What Python users may hand in instead of a name in the config."""

    source: Source | None = None
    module: nn.Module | None = None
    optimizer: OptimizerFactory | None = None


NO_PARTS = Parts()
CROP_HEADROOM = 1.15  # working size / image size, so that random resized crops have room


@dataclass(frozen=True)
class EpochEnd:
    """A finished epoch: its row in metrics.csv, and whether it is the best so far."""

    row: Row
    best: bool


@dataclass(frozen=True)
class Interrupted:
    """The run has been saved and can be resumed."""

    signal: int


@dataclass(frozen=True)
class Finished:
    summary: dict[str, Any]
    evaluation: dict[str, Any]


Event = Progress | EpochEnd | Interrupted | Finished


@dataclass
class Experiment:
    """The parts of one run, `config` resolved: nothing in it is left to be chosen."""

    run: RunDir
    config: RunConfig
    dataset: Dataset
    device: torch.device
    state: TrainState
    recipe: Recipe
    card: ModelCard
    layers: list[LayerRow]
    seconds_per_epoch: float | None = None  # expected for training; None where it was not measured
    remark: str | None = None

    @property
    def to_input(self) -> ToInput:
        return ToInput(self.card.preprocessing, self.device, memory_format(self.card.layout))

    @property
    def steps(self) -> int:
        return steps_per_epoch(len(self.dataset.train), self.config.train.batch_size)

    @property
    def needs(self) -> Estimate:
        """Memory and work, before the first step. An optimiser keeps up to two values a parameter."""
        kept = {"sgd": 1, "adam": 2, "adamw": 2, "rmsprop": 2, "adagrad": 1}[self.config.optim.name]
        return estimate(
            self.layers,
            batch=self.config.train.batch_size,
            images=len(self.dataset.train),
            state_per_parameter=kept + bool(self.config.train.ema),
        )


def start(
    config: RunConfig,
    runs_dir: Path,
    name: str | None = None,
    parts: Parts = NO_PARTS,
    progress: Callable[[int, int], None] | None = None,
) -> Experiment:
    """A new run, written down before its first step: config, environment, splits, first checkpoint.

    `progress(done, total)` is called while images are decoded for the first time.
    """
    rundir.refuse_taken(runs_dir, name)
    config, dataset, device = _open(config, parts, progress)
    model = _model(config, dataset, parts)
    layout, seconds = _measure(config, dataset, model, device)
    config = config.with_values(train={"layout": layout})
    run = rundir.create(runs_dir, name, _stem(config))
    experiment = _assemble(run, config, dataset, device, model, parts)
    experiment.seconds_per_epoch = seconds
    with explain_os_errors(f"the run directory '{run.path}'"):
        rundir.write_json(run.environment, environment() | {"device": str(device), "threads": config.train.threads})
        rundir.write_json(run.splits, dataset.splits_record())
        if dataset.failures:
            rundir.write_json(run.skipped, [failure._asdict() for failure in dataset.failures])
        _save(experiment)
        rundir.write_text(run.config, config.to_yaml())
        run.log(f"started: {len(dataset.train)} train images, {len(dataset.val)} val images")
    return experiment


def resume(run: RunDir, parts: Parts = NO_PARTS) -> Experiment:
    """A stopped run as its newest sound checkpoint left it."""
    config, dataset, device = _open(validate(read_layer(run.config)), parts)
    splits = rundir.read_json(run.splits)
    if dataset.hash != splits["hash"]:
        raise UserError(f"the data of run '{run.path}' has changed since it was started: train anew")
    dataset = dataset.with_splits(splits["splits"])
    tensors, facts, remark = checkpoint.read_newest(run.checkpoints)
    experiment = _assemble(run, config, dataset, device, _model(config, dataset, parts), parts)
    experiment.state.load(tensors, facts)
    experiment.remark = remark
    csv.cut_back(run.metrics, experiment.state.epoch)
    run.log(f"resumed at step {experiment.state.step}" + (f": {remark}" if remark else ""))
    return experiment


def epochs(experiment: Experiment, interrupts: Interrupts) -> Iterator[Event]:
    """The run from where it stands to its end, saved on the way; ends with Finished or Interrupted."""
    tracker = _tracker(experiment)
    summary: dict[str, Any] = {"stopped_because": "interrupted"}
    failed = True
    try:
        for event in _epochs(experiment, interrupts, tracker):
            if isinstance(event, Finished):
                summary = event.summary
            yield event
        failed = False
    finally:
        tracker.close(summary, failed)


def _epochs(experiment: Experiment, interrupts: Interrupts, tracker: Tracker) -> Iterator[Event]:
    """The loop itself: what happens once an epoch is a line here."""
    run, config, state, dataset = experiment.run, experiment.config, experiment.state, experiment.dataset
    augment = Augment(config.augment, experiment.to_input)
    train = dataset.train
    saved = time.monotonic()

    def batches(epoch: int, position: int) -> Iterator[Batch]:
        order = epoch_order(train.labels, config.train.seed, epoch, config.data.sampling == "balanced")
        for positions in batch_positions(order, config.train.batch_size, position):
            pixels = torch.from_numpy(train.gather(positions)).to(experiment.device)
            labels = torch.from_numpy(train.labels[positions]).to(experiment.device)
            yield augment(pixels, labels, state.generator)

    training = fit(
        state,
        experiment.recipe,
        batches,
        epochs=0 if state.stopper.exhausted else config.train.epochs,
        steps=experiment.steps,
        log_every=config.train.log_every,
        stop=lambda: bool(interrupts),
    )
    for event in training:
        _refuse_nonfinite(experiment, event.loss, event.bad_step)
        if not isinstance(event, EpochResult):
            if interrupts or time.monotonic() - saved >= 60 * config.train.checkpoint_minutes:
                _save(experiment)
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
                best = state.stopper.watch(row[config.train.monitor], event.epoch)
                state.close_epoch(row["seconds"])
                if best:
                    save_model(run.model, state.evaluated, experiment.card)
                # The row goes first: a kill between the two leaves one too many, which a resume cuts, not one too few.
                csv.MetricsCsv(run.metrics).append(row)
                _save(experiment, best)
                saved = time.monotonic()
                tracker.log(row | {"confusion_matrix": _confusion(val)}, state.step)
                run.log(f"epoch {event.epoch}: val_loss {row['val_loss']:.4f}, val_accuracy {row['val_accuracy']:.4f}")
                yield EpochEnd(row, best)
                if state.stopper.exhausted or state.epoch == config.train.epochs:
                    break
            else:  # interrupted in validation: the epoch's training is kept, its validation comes again
                _save(experiment)
        if interrupts.received:
            run.log(f"interrupted by {interrupts.received.name} at step {state.step}")
            yield Interrupted(interrupts.received)
            return
    yield _finish(experiment, tracker)


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
        "best_epoch": state.stopper.best_epoch,
        "epochs": state.epoch,
        "val": {
            "accuracy": record["accuracy"],
            **{score: record[score]["macro"] for score in ("precision", "recall", "f1")},
            "loss": record["loss"],
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": state.total_seconds,
        "images_per_second": statistics.median(row["images_per_second"] or 0.0 for row in rows),
        "stopped_because": stopped,
        "skipped_files": len(experiment.dataset.failures),
    }
    counts = np.asarray(record["confusion_matrix"]["counts"])
    run.figures.mkdir(exist_ok=True)
    save(learning_curves(rows), run.figures / "curves.png")
    save(confusion_figure(counts, card.classes), run.figures / "confusion.png")
    if config.track.images:
        tracker.log({"samples": _samples(experiment, logits)}, state.step)
    rundir.write_json(run.summary, summary)
    run.log(f"finished: {stopped}, val accuracy {record['accuracy']:.4f}")
    return Finished(summary, record)


def _open(
    config: RunConfig, parts: Parts, progress: Callable[[int, int], None] | None = None
) -> tuple[RunConfig, Dataset, torch.device]:
    """Data and machine, and the config with what they decided."""
    device = select_device(config.train.device)
    if parts.source is None and Path(config.data.source).exists() and config.data.source not in SOURCES:
        # The run must find its data again from any folder.
        config = config.with_values(data={"source": str(Path(config.data.source).resolve())})
    headroom = CROP_HEADROOM if config.augment.random_resized_crop else 1.0
    dataset = open_dataset(config.data, config.train.seed, progress, parts.source, headroom)
    config = config.with_values(
        data=dataset.config.model_dump(mode="json"),
        optim={"lr": default_lr(config.optim)},
        train={"device": device.type, "threads": set_threads(config.train.threads)},
    )
    return config, dataset, device


def _model(config: RunConfig, dataset: Dataset, parts: Parts) -> nn.Module:
    """The network with its first weights, which depend on `train.seed` alone."""
    seed_everything(config.train.seed)
    if parts.module is not None:
        return parts.module
    card = dataset.preprocessing()
    return build(config.model, card.channels, card.image_size, len(dataset.classes))


def _assemble(
    run: RunDir, config: RunConfig, dataset: Dataset, device: torch.device, model: nn.Module, parts: Parts
) -> Experiment:
    """Model, loss, optimiser and schedule from a resolved config, before the first step."""
    preprocessing = dataset.preprocessing()
    layers = trace(model, preprocessing.channels, preprocessing.image_size)
    model = model.to(device=device, memory_format=memory_format(config.train.layout))  # type: ignore[call-overload]
    assert config.optim.lr is not None
    groups = parameter_groups(model, config.optim.lr)
    optimizer = (
        parts.optimizer(groups) if parts.optimizer else build_optimizer(groups, config.optim, config.regularize, device)
    )
    steps = steps_per_epoch(len(dataset.train), config.train.batch_size)
    schedule = Schedule(config.schedule, steps, config.train.epochs)
    return Experiment(
        run=run,
        config=config,
        dataset=dataset,
        device=device,
        state=new_state(model, optimizer, schedule, config.train, device),
        recipe=_recipe(config, dataset, device),
        card=ModelCard(
            architecture=None if parts.module is not None else config.model,
            classes=dataset.classes,
            preprocessing=preprocessing,
            layout=config.train.layout,
        ),
        layers=layers,
    )


def _recipe(config: RunConfig, dataset: Dataset, device: torch.device) -> Recipe:
    weights = None
    if config.train.class_weights == "balanced":
        weights = balanced_weights(dataset.train.labels, len(dataset.classes)).to(device)
    return Recipe(build_loss(config.train, config.regularize.label_smoothing, weights), config.regularize)


def _measure(config: RunConfig, dataset: Dataset, model: nn.Module, device: torch.device) -> tuple[str, float]:
    """The faster memory layout, and the seconds that an epoch of training will take with it.

    A layout once chosen on this machine for the same net, sizes and threads is chosen again, so that a
    command repeated gives the same numbers although times vary.
    """
    layouts = [config.train.layout] if config.train.layout != "auto" else ["contiguous", "channels_last"]
    if device.type == "cpu" and (unsafe := unsafe_channels_last(model)):
        # Not even measured: oneDNN issue 6035 gives wrong gradients there or ends the process.
        if config.train.layout == "channels_last":
            raise UserError(f"train.layout=channels_last is unsafe on the CPU for {unsafe[0]}: use contiguous or auto")
        layouts = ["contiguous"]
    question = [config.model.model_dump(mode="json"), repr(model), config.train.batch_size, config.train.threads]
    question += [device.type, torch.__version__, config.data.image_size, config.data.channels]
    remembered = (
        cache_folder(config.data) / "layouts" / f"{hashlib.sha256(repr(question).encode()).hexdigest()[:24]}.txt"
    )
    if len(layouts) > 1 and remembered.exists():
        layouts = [remembered.read_text(encoding="utf-8")]
    positions = np.arange(min(config.train.batch_size, len(dataset.train)))
    to_input = ToInput(dataset.preprocessing(), device)
    images = to_input(torch.from_numpy(dataset.train.gather(positions)).to(device))
    labels = torch.from_numpy(dataset.train.labels[positions]).to(device)
    recipe = _recipe(config, dataset, device)
    times = seconds_per_step(model.to(device), Batch(images, labels), recipe.loss, layouts, device)
    layout = min(times, key=lambda name: times[name])
    if len(layouts) > 1:
        rundir.write_text(remembered, layout)
    return layout, times[layout] * steps_per_epoch(len(dataset.train), config.train.batch_size)


def _save(experiment: Experiment, best: bool = False) -> None:
    with explain_os_errors(f"a checkpoint in '{experiment.run.checkpoints}' (the one before is kept)"):
        checkpoint.write(experiment.run.checkpoints, experiment.state.tensors(), experiment.state.facts(), best)


def _validate(experiment: Experiment, interrupts: Interrupts) -> dict[str, Any] | None:
    """The evaluation record of the val split, with its seconds; None where a signal came."""
    began = time.perf_counter()
    val, state = experiment.dataset.val, experiment.state
    logits = logits_of(
        state.evaluated, batches_of(val), experiment.to_input, experiment.device, stop=lambda: bool(interrupts)
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
        "val_loss": val["loss"],
        "val_accuracy": val["accuracy"],
        **{f"val_{score}": val[score]["macro"] for score in ("precision", "recall", "f1")},
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
    assert config.optim.lr is not None
    rate = config.optim.lr * state.schedule.factor(at)
    message = (
        f"the loss is not a finite number at step {at + 1} (epoch {state.epoch + 1}, learning rate {rate:.3g}); "
        f"the last good checkpoint is kept. Try a smaller --lr (such as {config.optim.lr / 10:.3g}), "
        f"--regularize.clip_norm 1 or --schedule.warmup_epochs 1"
    )
    experiment.run.log(message)
    raise RunFailed(message)


def _tracker(experiment: Experiment) -> Tracker:
    """The run's tracker; its W&B id is kept in the run directory, so that a resumed run goes on in the same one."""
    run = experiment.run
    known = run.path / "wandb" / "run-id"
    before = known.read_text(encoding="utf-8") if known.exists() else None
    tracker = open_tracker(
        experiment.config.track, run.path, run.name, experiment.config.model_dump(mode="json"), before, run.warn
    )
    if tracker.run_id and tracker.run_id != before:
        rundir.write_text(known, tracker.run_id)
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


def _stem(config: RunConfig) -> str:
    """What an unnamed run is called before its number: data and model."""
    parts = (Path(config.data.source).name or "data", config.model.name)
    return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts)
