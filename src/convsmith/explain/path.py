"""The weights that a run has been at: all that a path through the loss landscape can be drawn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convsmith.config import read_layer, validate
from convsmith.explain.subject import Subject
from convsmith.insight.landscape import weights_of
from convsmith.nets.build import build
from convsmith.runtime import seed_everything
from convsmith.training import checkpoint


def path_of(subject: Subject) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Weights by the name of their place, in the order of training; and the name of the explained model's place.

    They are the first weights, drawn anew from the run's seed where they did not come from elsewhere, and those of
    the checkpoints that a run keeps (the last two, the best).
    """
    model = weights_of(subject.model)
    first = _first(subject, model)
    steps: dict[int, tuple[str, dict[str, Tensor]]] = {} if first is None else {-1: ("start", first)}
    for file in (checkpoint.PREVIOUS, checkpoint.LAST, checkpoint.BEST):
        try:
            tensors, facts = checkpoint.read(subject.run.checkpoints / file)
        except checkpoint.DamagedCheckpointError:  # or absent
            continue
        kind = "average." if any(name.startswith("average.") for name in tensors) else "model."
        weights = {name: tensors[f"{kind}{name}"].to(value.device) for name, value in model.items()}
        steps[facts["step"]] = (f"epoch {facts['epoch']}", weights)
    points, solution = {}, "the model"
    for step in sorted(steps):
        name, weights = steps[step]
        if all(torch.equal(value, model[key]) for key, value in weights.items()):
            name = solution = f"the model ({name})"
        points[name] = weights
    points.setdefault(solution, model)
    return points, solution


def _first(subject: Subject, model: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights before step 1; None where they were loaded."""
    config, card = validate(read_layer(subject.run.config)), subject.predictor.card
    if config.transfer.weights != "none" or card.architecture is None:
        return None
    seed_everything(config.train.seed)
    preprocessing = card.preprocessing
    fresh: nn.Module = build(card.architecture, preprocessing.channels, preprocessing.image_size, len(card.classes))
    # What is fixed, such as a whitening, was so from the start.
    return {
        name: value.detach().to(model[name].device) if value.requires_grad else model[name]
        for name, value in fresh.named_parameters()
    }
