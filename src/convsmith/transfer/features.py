"""What frozen parts of a network compute, which is constant: computed once and kept in the cache folder.

That is the features of a frozen backbone, on which the head is trained, and where `transfer.cache_stages` is on, the
outputs of the stages that stay frozen for the whole run (`Division`), on which the others are trained.

With augmentation, each image has `transfer.feature_views` views, drawn once; epoch e (from 0) trains on view
e mod views, which is computed when it is first needed. The views do not depend on `train.seed`, and within a study the
files do not depend on the split into train and val, so that all folds and seeds share them; files are memory-mapped,
so that they share the memory, too. Trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from convsmith.contracts import Classifier
from convsmith.data.ahead import ahead, sent
from convsmith.data.augment import Augment
from convsmith.data.config import AugmentConfig
from convsmith.data.dataset import Dataset, Subset
from convsmith.data.preprocess import ToInput
from convsmith.errors import UserError
from convsmith.files import explain_os_errors, write_bytes
from convsmith.precision import FLOAT32, computing_in
from convsmith.terminal import warn
from convsmith.transfer.division import Division

VERSION = 3  # increase this whenever views or features change, so that old ones are not used again
POLL = 0.1  # seconds to wait for a file that another process is writing before trying another file
_NAME = "features"  # of the tensor in a file, and of its CRC-32
PASS_BATCH = 32  # images per forward pass; part of the key, since the last bits may depend on it


@dataclass(frozen=True)
class FrozenFeatures:
    """The features that epochs have needed so far, float32 [N, ...] each.

    `views` has those of all train images by the number of the view, of which there are `count`. `val` and `clean` are
    those of the val images and of a sample of the train images, without augmentation. `division` tells what of the
    network is to be run on them; None: its head.
    """

    views: Mapping[int, Tensor]
    count: int
    val: Tensor
    clean: Tensor
    division: Division | None = None
    _rests: dict[int, nn.Module] = field(default_factory=dict)

    def view(self, epoch: int) -> Tensor:
        """The features on which an epoch (from 0) trains: float32 [N, ...]."""
        return self.views[epoch % self.count]

    @property
    def size(self) -> int:
        """Bytes, those of the views that no epoch has needed yet included."""
        one = next(iter(self.views.values()))
        return self.count * one.nbytes + self.val.nbytes + self.clean.nbytes

    def rest(self, model: nn.Module) -> nn.Module:
        """What of a network with the same frozen part remains to be run; the same module each time."""
        if self.division is None:
            assert isinstance(model, Classifier)
            return model.head
        if id(model) not in self._rests:
            self._rests[id(model)] = self.division.rest(model)
        return self._rests[id(model)]


class FeatureFiles:
    """The features that a run needs, one file per view: float32 [images, ...] in the source's order.

    They are those of the backbone, or with `division` the outputs of its frozen stages. With `below`, the latter are
    where the backbone's features are computed from. Augmented views, on which a training alone depends, are computed
    in its `precision`; images as they are, from which scores are computed, in float32 as every prediction.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        clean_sample: Subset,
        to_input: ToInput,
        augment: AugmentConfig,
        views: int,
        folder: Path,
        division: Division | None = None,
        below: FeatureFiles | None = None,
        precision: str = FLOAT32,
    ) -> None:
        assert isinstance(model, Classifier)
        self._model, self._features, self._dataset, self._folder = model, model.features, dataset, folder
        self._division, self._below, self._precision = division, below, precision
        self._to_input, self._augment = to_input, Augment(augment, to_input)
        augmented = augment != AugmentConfig()
        every = dataset.unsealed()
        is_fold = len(every) > len(dataset.train) + len(dataset.val)
        # A fold computes the features for its whole study; a single run computes only those that it needs itself.
        self._plain = every if is_fold or not augmented else dataset.joined(dataset.val, clean_sample)
        self._clean_sample = clean_sample
        self._viewed = every if is_fold else dataset.train
        self._views: list[int | None] = list(range(views)) if augmented else [None]
        self._network = division.digest(model) if division else _hash_of_backbone(model)
        self._mapped: dict[int | None, Tensor] = {}  # what was read, and compared with its checksum

    def missing(self, epoch: int | None = None) -> int:
        """The number of images, once for each of their views, to be computed for an epoch (from 0); None: for all."""
        return sum(len(self._subset(view)) for view in self._missing(epoch))

    def compute(self, stop: Callable[[], bool], epoch: int | None = None) -> Iterator[tuple[int, int]]:
        """Write the missing files of an epoch, or of all; yields the number of images done and their total.

        Ends early if `stop()` is true. Processes that need the same files share the work: files that another one is
        writing come last, and while nothing else is missing, a view of a later epoch is computed.
        """
        queue, done = self._missing(epoch), 0
        needed = {view: len(self._subset(view)) for view in queue}
        total = sum(needed.values())
        while needed:
            view = queue.pop(0)
            try:
                with closing(self._write(view)) as counts:
                    for count in counts:
                        yield done + (count if view in needed else 0), total
                        if stop():
                            return
                done += needed.pop(view, 0)
            except Timeout:
                if stop():
                    return
                queue = [*(queue or self._later(view)), view]

    def _write(self, view: int | None) -> Generator[int]:
        """Write a view's file unless it is there; yields the number of images done. Timeout if another process does."""
        path, rows = self._path(view), []
        with explain_os_errors(f"the cache folder '{self._folder}'"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), timeout=POLL):
                if self._read(view) is not None:  # another process was faster
                    return
                if path.exists():
                    warn(f"the features in '{path}' were damaged and are computed anew")
                for part in self._pass(view):
                    rows.append(part)
                    yield sum(map(len, rows))
                write_bytes(path, _packed(torch.cat(rows)))

    def plain(self, subset: Subset) -> npt.NDArray[np.float32]:
        """The features of some images without augmentation, float32 [N, F]; the file must exist."""
        return self._rows(None, subset).numpy()

    def load(self, epoch: int | None = None, before: FrozenFeatures | None = None) -> FrozenFeatures:
        """The features of an epoch, or of all, with those that were loaded `before`; their files must exist."""
        numbers = range(len(self._views)) if epoch is None else [epoch % len(self._views)]
        known = before.views if before else {}
        new = {
            number: self._rows(self._views[number], self._dataset.train) for number in numbers if number not in known
        }
        if before:
            return replace(before, views={**known, **new})
        return FrozenFeatures(
            new,
            len(self._views),
            self._rows(None, self._dataset.val),
            self._rows(None, self._clean_sample),
            self._division,
        )

    def _missing(self, epoch: int | None = None) -> list[int | None]:
        views = self._views if epoch is None else [self._views[epoch % len(self._views)]]
        return [view for view in dict.fromkeys([*views, None]) if self._read(view) is None]

    def _later(self, view: int | None) -> list[int | None]:
        """Another missing view that can be computed now, if there is one."""
        others = [other for other in self._missing() if other != view]
        return [other for other in others if self._below is None or self._below._read(other) is not None][:1]

    def _subset(self, view: int | None) -> Subset:
        return self._plain if view is None else self._viewed

    def _rows(self, view: int | None, wanted: Subset) -> Tensor:
        values, whole = self._read(view), self._subset(view)
        if values is None:
            raise UserError(f"the features in '{self._folder}' were damaged as they were written: resume")
        rows = np.searchsorted(whole.rows, wanted.rows)
        values = values if np.array_equal(rows, np.arange(len(values))) else values[torch.from_numpy(rows)]
        return values.movedim(-1, 1) if self._is_last else values

    @property
    def _is_last(self) -> bool:
        """Whether files hold maps with the channels last, so that none is copied to be computed with."""
        return self._division is not None and self._to_input.memory_format == torch.channels_last

    @torch.no_grad()
    def _pass(self, view: int | None) -> Iterator[Tensor]:
        """Features of a view's images, augmented by its generator unless it is None: float32 [B, ...] each."""
        subset = self._subset(view)
        self._model.eval()
        if self._below is not None:
            assert self._below._division is not None
            rest = self._below._division.rest(self._model)
            assert isinstance(rest, Classifier)
            for maps in self._below._rows(view, subset).split(PASS_BATCH):
                device = self._to_input.scale.device
                with self._computing(view):
                    features = rest.features(maps.to(device))
                yield features.float().cpu()
            return
        device = self._to_input.scale.device
        generator = torch.Generator(device).manual_seed(view or 0)
        parts = np.array_split(np.arange(len(subset)), range(PASS_BATCH, len(subset), PASS_BATCH))
        gathered = map(subset.gather, parts)
        arrived = map(torch.from_numpy, gathered) if device.type == "cpu" else ahead(gathered, device)
        for positions, pixels in zip(parts, arrived, strict=True):
            labels = sent(subset.labels[positions], device)
            images = (
                self._to_input(pixels)
                if view is None
                else self._augment(pixels, labels, generator, [view, int(positions[0])]).images
            )
            with self._computing(view):
                maps = self._division.maps(self._model, images) if self._division else self._features(images)
            maps = maps.float().cpu()
            yield maps.movedim(1, -1) if self._is_last else maps

    def _computing(self, view: int | None) -> AbstractContextManager[Any]:
        return computing_in(FLOAT32 if view is None else self._precision, self._to_input.scale.device)

    def _read(self, view: int | None) -> Tensor | None:
        """The stored features of a view, float32 [images, ...], memory-mapped; None if they are missing or damaged."""
        if view not in self._mapped:
            values = _unpacked(self._path(view))
            if values is None or len(values) != len(self._subset(view)):
                return None
            self._mapped[view] = values
        return self._mapped[view]

    def _path(self, view: int | None) -> Path:
        """The file of a view, named by a hash of everything that affects the features' bits."""
        settings = self._to_input.preprocessing.model_dump(mode="json")
        facts = [VERSION, PASS_BATCH, self._network, self._dataset.hash, settings, str(self._to_input.memory_format)]
        facts += [str(self._to_input.scale.device), torch.get_num_threads(), torch.__version__]
        facts += [
            self._below is not None,
            view,
            self._augment.config.model_dump(mode="json") if view is not None else None,
        ]
        if view is not None and self._precision != FLOAT32:
            facts.append(self._precision)
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(np.ascontiguousarray(self._subset(view).rows, dtype="<i8").data)
        return self._folder / f"{digest.hexdigest()}.safetensors"


def _packed(values: Tensor) -> bytes:
    """The content of a file with these values and a checksum of them."""
    return save({_NAME: values.contiguous()}, {_NAME: str(_checksum(values))})


def _unpacked(path: Path) -> Tensor | None:
    """The values in a file, memory-mapped; None if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            values: Tensor = file.get_tensor(_NAME)
            known = file.metadata()[_NAME]
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    right = values.dtype == torch.float32 and values.dim() >= 2 and str(_checksum(values)) == known
    return values if right else None


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.contiguous().numpy().data)


@torch.inference_mode()
def logits_of_features(rest: nn.Module, features: Tensor, device: torch.device) -> np.ndarray:
    """Logits float32 [N, K] of features [N, ...]; only the `rest` of the network is run, in eval mode."""
    modes = [(module, module.training) for module in rest.modules()]
    rest.eval()
    size = PASS_BATCH if features.dim() > 2 else len(features)
    logits: np.ndarray = torch.cat([rest(part.to(device)) for part in features.split(size)]).float().cpu().numpy()
    for module, training in modes:
        module.training = training
    return logits


def _hash_of_backbone(model: nn.Module) -> str:
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
