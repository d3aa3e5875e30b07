"""The parts of a run while it trains, and the event that describes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from convsmith.config import RunConfig
from convsmith.data.dataset import Dataset, Subset
from convsmith.data.preprocess import ToInput
from convsmith.data.sampler import steps_per_epoch
from convsmith.events import TrainingStarted
from convsmith.nets.shapes import Estimate, LayerRow, totals
from convsmith.prediction.model_file import ModelCard, save_model
from convsmith.rundir import RunDir
from convsmith.tracking.wandb import watched
from convsmith.training import checkpoint, footprint
from convsmith.training.feed import WORDS, Feed
from convsmith.training.gather import image_epochs
from convsmith.training.own import own_settings
from convsmith.training.ranks import ALONE, Ranks
from convsmith.training.state import TrainState
from convsmith.training.step import Recipe
from convsmith.transfer.features import FrozenFeatures

CLEAN_IMAGES = 1_000  # the largest number of train images that are scored without augmentation


@dataclass
class Experiment:
    """The parts of one run; `config` is resolved, so that nothing in it is left to be chosen."""

    run: RunDir
    config: RunConfig
    dataset: Dataset
    device: torch.device
    state: TrainState
    recipe: Recipe
    card: ModelCard
    layers: list[LayerRow]
    feed: Feed
    seconds_per_epoch: float | None = None  # expected mean time of the epochs on images; None: not measured
    notes: tuple[str, ...] = ()  # sentences that the user should read before the first step
    features: FrozenFeatures | None = None  # on which is trained at present; None: on images
    ranks: Ranks = ALONE
    _parts: dict[Subset, Subset] = field(default_factory=dict)

    @cached_property
    def clean_sample(self) -> Subset:
        """Train images that are scored without augmentation, in eval mode; the same ones in every run."""
        return self.dataset.train.sample(CLEAN_IMAGES)

    def part_of(self, subset: Subset) -> Subset:
        """This rank's share of the images; the same object each time, of which a copy may lie on the device."""
        if self.ranks.alone:
            return subset
        return self._parts.setdefault(subset, subset.at(self.ranks.share(np.arange(len(subset)))))

    @property
    def image_epochs(self) -> int:
        """The number of epochs that train on images; the others train on features that were computed once."""
        return image_epochs(self.config, self.state.finetuning)

    @property
    def to_input(self) -> ToInput:
        return self.card.to_input(self.device)

    @property
    def steps(self) -> int:
        return steps_per_epoch(len(self.dataset.train), self.config.train.batch)

    @property
    def needs(self) -> Estimate:
        """The expected memory."""
        return footprint.needs(self.config, self.layers, self.state.finetuning)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint as the last one, and if it is the `best`, also as that; the first rank does."""
        if not self.ranks.first:
            return
        metadata = self.state.metadata() | {"config": self.config.model_dump(mode="json"), "ranks": self.ranks.size}
        if self.config.optim.is_own:  # the config does not describe it
            metadata["own_optimizer"] = own_settings(self.state.optimizer)
        checkpoint.write(self.run.checkpoints, self.state.tensors(), metadata, best)

    def save_model(self) -> None:
        """Write the weights of the present epoch as the run's model; the first rank does."""
        if self.ranks.first:
            save_model(self.run.model, self.state.evaluated, self.card, self.config.train.temperature)


def opening(experiment: Experiment) -> TrainingStarted:
    """The event that describes a training before its next step."""
    config, dataset, data = experiment.config, experiment.dataset, experiment.dataset.config
    assert data.image_size is not None
    assert data.working_size is not None
    assert data.channels is not None
    assert config.train.threads is not None
    return TrainingStarted(
        directory=experiment.run.path,
        source=data.title,
        train=len(dataset.train),
        val=len(dataset.val),
        test=dataset.test_size,
        unused=dataset.unused,
        classes=dataset.classes,
        image_size=data.image_size,
        working_size=data.working_size,
        channels=data.channels,
        resize=data.resize,
        model=config.model.name,
        is_own=config.is_own,
        parameters=sum(parameter.numel() for parameter in experiment.state.model.parameters()),
        macs=totals(experiment.layers).macs,
        device=config.train.device,
        threads=config.train.threads,
        layout=config.train.layout,
        precision=config.train.precision,
        feed=WORDS[experiment.feed.way],
        memory=experiment.needs.memory,
        seconds_per_epoch=experiment.seconds_per_epoch,
        epochs=config.train.epochs,
        image_epochs=experiment.image_epochs,
        steps=experiment.steps,
        step=experiment.state.step,
        notes=experiment.notes,
        watch=watched(config.track, experiment.run.path),
        keep=config.train.keep,
    )
