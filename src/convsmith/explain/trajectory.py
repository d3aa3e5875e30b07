"""The weights along a run's training, for a path through the loss landscape. No losses are computed here."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from convsmith import records
from convsmith.config import read_layer, read_run_config, validate
from convsmith.errors import RunFailed, UserError
from convsmith.events import EpochEnd, Listener, Note, nobody
from convsmith.explain.activations import evenly
from convsmith.explain.context import ExplainContext
from convsmith.explain.landscape import weights_of
from convsmith.nets.build import build
from convsmith.runtime import Interrupts, seed_everything
from convsmith.training import checkpoint, setup
from convsmith.training.loop import epochs
from convsmith.training.state import evaluated_weights

QUICK = 120.0  # seconds up to which a training is repeated for its path; the picture itself takes as long
MOST_POINTS = 12  # points of a path, besides the start and the explained model
MOST_VALUES = 50_000_000  # parameters of all points together: 200 MB

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Trajectory:
    """`points` are weights by name, in the order of training; `solution` is the name of the model's own.

    `source` says where they come from, as the end of a sentence.
    """

    points: dict[str, Weights]
    solution: str
    source: str


def trajectory_of(context: ExplainContext, listener: Listener = nobody) -> Trajectory:
    """One point per epoch if the training can be repeated in a short time, else the start and the kept checkpoints.

    A repetition counts only if it ends at the explained model bit for bit.
    """
    return _repeated(context, listener) or _kept(context)


def _repeated(context: ExplainContext, listener: Listener) -> Trajectory | None:
    """The path of the same training, repeated; None where that would take long, or ends at other weights."""
    run, card = context.run, context.predictor.card
    model, config = weights_of(context.model), read_run_config(run.config)
    if card.architecture is None or config.data.is_own or not run.summary.exists():
        return None
    summary = records.read(run.summary, records.Summary)
    seconds, last, best = summary["seconds"], summary["epochs"], summary["best_epoch"]
    wanted = {*map(int, evenly([str(epoch) for epoch in range(1, last + 1)], MOST_POINTS)), best}
    size = sum(value.numel() for value in model.values())
    if seconds > QUICK or size * (len(wanted) + 1) > MOST_VALUES:
        return None
    listener(Note(f"repeating the training for its path: {last} epochs, which took {seconds:.0f} s the first time"))
    points: dict[str, Weights] = {}
    solution = f"the model (epoch {best})"
    quiet = config.with_values(track={"wandb": "off"})
    try:
        prepared = setup.prepare(quiet, splits=records.read(run.splits, records.Splits)["splits"], measured=True)
        with tempfile.TemporaryDirectory() as folder:
            experiment = setup.start(prepared, Path(folder))
            points["start"] = _at(experiment.state.evaluated, model)
            for event in epochs(experiment, Interrupts()):
                if not isinstance(event, EpochEnd):
                    continue
                epoch = event.row["epoch"]
                if epoch in wanted:
                    points[solution if epoch == best else f"epoch {epoch}"] = _at(experiment.state.evaluated, model)
                if epoch == last:
                    break
    except (UserError, RunFailed):  # data or pretrained weights are no longer available
        return None
    if solution not in points or any(not torch.equal(value, model[name]) for name, value in points[solution].items()):
        listener(
            Note("the repetition ended at other weights (another machine or version?), so the checkpoints are shown")
        )
        return None
    return Trajectory(points, solution, "from the same training, repeated to the same weights bit for bit")


def _at(net: nn.Module, model: Weights) -> Weights:
    return {name: value.to(model[name].device) for name, value in weights_of(net).items()}


def _kept(context: ExplainContext) -> Trajectory:
    """The initial weights, drawn again from the run's seed unless they were loaded, and the checkpoints."""
    model = weights_of(context.model)
    first = _first(context, model)
    steps: dict[int, tuple[str, Weights]] = {} if first is None else {-1: ("start", first)}
    for file in (checkpoint.PREVIOUS, checkpoint.LAST, checkpoint.BEST):
        try:
            tensors, metadata = checkpoint.read(context.run.checkpoints / file)
        except checkpoint.DamagedCheckpointError:  # or absent
            continue
        stored = evaluated_weights(tensors)
        if any(name not in stored or stored[name].shape != value.shape for name, value in model.items()):
            continue  # it is of another network
        weights = {name: stored[name].to(value.device) for name, value in model.items()}
        steps[metadata["step"]] = (f"epoch {metadata['epoch']}", weights)
    points, solution = {}, "the model"
    for step in sorted(steps):
        name, weights = steps[step]
        if all(torch.equal(value, model[key]) for key, value in weights.items()):
            name = solution = f"the model ({name})"
        points[name] = weights
    points.setdefault(solution, model)
    return Trajectory(points, solution, "all that the run has kept, joined by straight lines")


def _first(context: ExplainContext, model: Weights) -> Weights | None:
    """The weights before step 1; None where they were loaded."""
    config, card = validate(read_layer(context.run.config)), context.predictor.card
    if config.transfer.weights != "none" or card.architecture is None:
        return None
    seed_everything(config.train.seed)
    preprocessing = card.preprocessing
    fresh: nn.Module = build(card.architecture, preprocessing.channels, preprocessing.image_size, len(card.classes))
    # What is fixed, such as a whitening, was the same from the start.
    return {
        name: value.detach().to(model[name].device) if value.requires_grad else model[name]
        for name, value in fresh.named_parameters()
    }
