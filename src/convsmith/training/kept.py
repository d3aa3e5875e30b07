"""What a training keeps of the frozen parts of its network: whether it fits, and the files that are to be computed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from convsmith import memory
from convsmith.config import RunConfig
from convsmith.data.config import AugmentConfig
from convsmith.data.dataset import Dataset
from convsmith.data.sources import cache_folder
from convsmith.training.gather import first_images
from convsmith.transfer.division import divide
from convsmith.transfer.features import FeatureFiles, FrozenFeatures
from convsmith.transfer.unfreezing import Finetuning
from convsmith.transfer.weights import caches_features

if TYPE_CHECKING:
    from convsmith.training.experiment import Experiment
    from convsmith.training.state import TrainState

SHARE = 0.5  # of the free memory and of the free disk, which the outputs of frozen stages may take


def without_stages(
    config: RunConfig, dataset: Dataset, model: nn.Module, finetuning: Finetuning | None
) -> tuple[bool, tuple[str, ...]]:
    """Whether transfer.cache_stages has nothing to keep, or no room for it, with a sentence that says why."""
    if finetuning is None:
        return True, (_unused("nothing is frozen"),)
    if not caches_features(config):
        return True, (_unused("transfer.cache_features is off, or images are mixed, which are new each time"),)
    if config.train.sizes:
        return True, (_unused("train.sizes changes the images"),)
    images = first_images(dataset, 2, torch.device("cpu"))
    division = divide(model, finetuning, images)
    if division is None:
        return True, (_unused("no stage stays frozen to the end behind which the network can be divided"),)
    one = division.maps(model, images)[0].nbytes
    views = config.transfer.feature_views if config.augment != AugmentConfig() else 1
    size = one * (views * len(dataset.train) + len(dataset.train) + len(dataset.val))
    cache = cache_folder(config.data)
    folder = next(above for above in (cache, *cache.absolute().parents) if above.exists())
    room = SHARE * min(shutil.disk_usage(folder).free, memory.available() or math.inf)
    if size <= room:
        return False, ()
    needed, most = memory.as_text(size), memory.as_text(room)
    return True, (_unused(f"they would take {needed}, and half of the free memory and disk is {most}"),)


def _unused(reason: str) -> str:
    return f"the outputs of frozen stages are not kept (transfer.cache_stages): {reason}"


@dataclass(frozen=True)
class KeptFiles:
    """The files of a training's constants: `stages` those of its frozen stages, `head` those that its head takes.

    None: there are none.
    """

    stages: FeatureFiles | None
    head: FeatureFiles | None

    def __bool__(self) -> bool:
        return bool(self.stages or self.head)

    def compute(self, experiment: Experiment, stop: Callable[[], bool]) -> Iterator[tuple[int, int]]:
        """Write what the coming epoch needs and is missing, as `FeatureFiles.compute` does."""
        files, epoch = self._of(experiment.state), _needed(experiment)
        counts, before = [one.missing(epoch) for one in files], 0
        for one, count in zip(files, counts, strict=True):
            for done, _ in one.compute(stop, epoch):
                yield before + done, sum(counts)
            before += count

    def load(self, experiment: Experiment) -> FrozenFeatures | None:
        """What the coming epoch trains on; None: on images."""
        files = self._of(experiment.state)
        return files[-1].load(_needed(experiment), experiment.features) if files else None

    def _of(self, state: TrainState) -> Sequence[FeatureFiles]:
        """The files of the present phase, each computed from those before it."""
        return [one for one in (self.stages, self.head if state.head_alone else None) if one is not None]


def _needed(experiment: Experiment) -> int | None:
    """The epoch whose view is needed next; None: the views of all epochs, from which the head is solved."""
    state = experiment.state
    return None if experiment.config.transfer.head_l2 is not None and not state.step else state.epoch


def kept_files(experiment: Experiment) -> KeptFiles:
    """The files that the rest of a training needs."""
    config, state = experiment.config, experiment.state
    if state.finetuning is None or state.exhausted or not caches_features(config):
        return KeptFiles(None, None)
    device = experiment.device
    division = None
    if config.transfer.cache_stages:
        images = first_images(experiment.dataset, 2, device)
        division = divide(state.model, state.finetuning, images.contiguous(memory_format=experiment.card.memory_format))

    def files(**parts: object) -> FeatureFiles:
        return FeatureFiles(
            state.model,
            experiment.dataset,
            experiment.clean_sample,
            experiment.to_input,
            config.augment,
            config.transfer.feature_views,
            cache_folder(config.data) / "features",
            precision=config.train.precision,
            **parts,  # type: ignore[arg-type]
        )

    stages = files(division=division) if division else None
    return KeptFiles(stages, files(below=stages) if state.head_alone else None)
