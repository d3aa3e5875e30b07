"""How images and kept features reach the device of a training: which of them lie there, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsmith import memory
from convsmith.contracts import Batch
from convsmith.data.ahead import ahead, sent
from convsmith.data.augment import Augment, alternation
from convsmith.data.dataset import Subset
from convsmith.data.epochs import epoch_of
from convsmith.data.preprocess import DevicePixels, InputPixels
from convsmith.data.sampler import batch_positions
from convsmith.prediction.evaluate import batches_of, passes
from convsmith.terminal import warn
from convsmith.training.loss import class_weights, share_of
from convsmith.transfer.features import FrozenFeatures

if TYPE_CHECKING:
    from convsmith.training.experiment import Experiment

#: direct: gathered when they are needed; resident: copied to the device once and gathered there; ahead: gathered by a
#: thread, and copied through pinned memory, while the device computes. All give the same bits.
Way = Literal["direct", "resident", "ahead"]

SHARE = 0.8  # of the memory that a training leaves free on its device, for images or features that lie there
CHUNK = 2**26  # bytes that are copied to the device at once
WORDS: dict[Way, str] = {
    "direct": "",
    "resident": "images on the device",
    "ahead": "images through pinned memory, since they do not fit on the device",
}


def way_of(device: torch.device, size: float, free: float | None) -> Way:
    """How `size` bytes reach a device that has `free` bytes left (None: unknown) beside the training's own needs."""
    if device.type == "cpu":
        return "direct"
    return "resident" if free is not None and size <= SHARE * free else "ahead"


class Feed:
    """The images of a run on their way to its device."""

    def __init__(self, device: torch.device, way: Way) -> None:
        self.device = device
        self.way = way
        self._copies: dict[Subset, Tensor] = {}  # on the device

    def images(
        self, subset: Subset, parts: Sequence[NDArray[np.int64]], reading: NDArray[np.int64] | None = None
    ) -> Generator[Tensor]:
        """The images at each of the positions within a subset, on the device: uint8 [B, H, W, C] each.

        Of an epoch whose images are streamed, `reading` is the order in which they are read.
        """
        if reading is not None:
            yield from ahead(subset.streamed(parts, reading), self.device)
        elif (whole := self._copied(subset)) is not None:
            yield from (whole.index_select(0, positions) for positions in self.split(np.concatenate(parts), parts))
        elif self.way == "ahead":
            yield from ahead(subset.gathered(parts), self.device)
        else:
            yield from (torch.from_numpy(pixels).to(self.device) for pixels in subset.gathered(parts))

    def rows(self, features: Tensor, parts: Sequence[NDArray[np.int64]]) -> Generator[Tensor]:
        """The rows at each of the positions of `features` [N, F], which lie on the device or in the host's memory."""
        if features.device.type == self.device.type:
            yield from (features.index_select(0, where) for where in self.split(np.concatenate(parts), parts))
        else:
            yield from ahead((features[part].numpy() for part in parts), self.device)

    def evaluated(self, subset: Subset) -> Iterator[InputPixels | DevicePixels]:
        """All images of a subset, in its order, for forward passes without augmentation."""
        if self.way != "resident":
            return batches_of(subset, self.device)
        return map(DevicePixels, self.images(subset, passes(subset)))

    def split(self, values: NDArray[np.int64], parts: Sequence[NDArray[np.int64]]) -> tuple[Tensor, ...]:
        """`values`, one for each position of all parts, on the device by one copy, in pieces as long as the parts."""
        pieces: tuple[Tensor, ...] = sent(values, self.device).split([len(part) for part in parts])
        return pieces

    def placed(self, features: FrozenFeatures, free: float | None) -> FrozenFeatures:
        """The features, on the device if that has room for all views beside what it needs."""
        loaded = [*features.views.values(), features.val, features.clean]
        placed = sum(value.nbytes for value in loaded if value.device.type == self.device.type)
        if way_of(self.device, features.size - placed, free) != "resident":
            return features
        views = {number: value.to(self.device) for number, value in features.views.items()}
        return replace(features, views=views, val=features.val.to(self.device), clean=features.clean.to(self.device))

    def _copied(self, subset: Subset) -> Tensor | None:
        """A subset's images on the device, copied when they are first needed; None where they do not lie there."""
        if self.way != "resident":
            return None
        if subset not in self._copies:
            try:
                self._copies[subset] = _on_device(subset, self.device)
            except Exception as error:
                if not memory.ran_out(error):
                    raise
                self.way = "ahead"
                self._copies.clear()
                warn("the images do not fit on the device after all: they come through pinned memory")
                return None
        return self._copies[subset]


def _on_device(subset: Subset, device: torch.device) -> Tensor:
    """All images of a subset: uint8 [N, H, W, C]."""
    whole = torch.empty((len(subset), *subset.shape), dtype=torch.uint8, device=device)
    size = max(1, CHUNK // int(np.prod(subset.shape)))
    for start in range(0, len(subset), size):
        positions = np.arange(start, min(start + size, len(subset)))
        whole[start : start + size].copy_(torch.from_numpy(subset.gather(positions)))
    return whole


def train_batches(experiment: Experiment) -> Callable[[int, int], Iterator[Batch]]:
    """A function of (epoch, position) that yields the epoch's augmented batches in order, from that position on."""
    config, train, feed, ranks = experiment.config, experiment.dataset.train, experiment.feed, experiment.ranks
    weights = class_weights(config.train.class_weights, train.labels, experiment.card.classes)

    def batches(epoch: int, position: int) -> Iterator[Batch]:
        order, reading = epoch_of(train, config.data, config.train.seed, epoch)
        whole = list(batch_positions(order, config.train.batch, position))
        if not whole:
            return
        parts = [ranks.share(positions) for positions in whole]
        shares = [
            None if ranks.alone else share_of(train.labels[part], train.labels[positions], weights)
            for part, positions in zip(parts, whole, strict=True)
        ]
        rows = np.concatenate(parts)
        labels = feed.split(train.labels[rows], parts)
        if experiment.features:
            rest = experiment.features.rest(experiment.state.model)
            with closing(feed.rows(experiment.features.view(epoch), parts)) as features:
                for number, (inputs, of_batch) in enumerate(zip(features, labels, strict=True), start=position):
                    ranks.seed([config.train.seed, epoch, number], experiment.state.generator)
                    yield Batch(inputs, of_batch, rest=rest, share=shares[number - position])
            return
        size = config.train.size_in(epoch, experiment.card.preprocessing.image_size)
        augment = Augment(config.augment, experiment.to_input.of_size(size))
        sides = alternation(config.augment, config.train.seed, epoch, len(train))
        mirrored = [None] * len(parts) if sides is None else feed.split(sides[rows], parts)
        with closing(feed.images(train, parts, reading)) as images:
            together = zip(images, labels, mirrored, strict=True)
            for number, (pixels, of_batch, sides_of_batch) in enumerate(together, start=position):
                key = [config.train.seed, epoch, number]
                ranks.seed(key, experiment.state.generator)
                batch = augment(pixels, of_batch, experiment.state.generator, key, sides_of_batch)
                yield replace(batch, share=shares[number - position])

    return batches
