"""Features of a frozen backbone, which are constant: computed once and kept in memory and in the cache folder.

With augmentation, each image has `transfer.feature_views` views, drawn once; epoch e (from 0) trains on view
e mod views. The views do not depend on `train.seed`, and within a study the files do not depend on the split into
train and val, so that all folds and seeds share them. Trains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from convsmith.contracts import Classifier
from convsmith.data.augment import Augment
from convsmith.data.config import AugmentConfig
from convsmith.data.dataset import Dataset, Subset
from convsmith.data.preprocess import ToInput
from convsmith.data.stored import read_arrays, write_arrays
from convsmith.errors import UserError
from convsmith.files import explain_os_errors
from convsmith.terminal import warn

VERSION = 2  # increase this whenever views or features change, so that old ones are not used again
POLL = 0.1  # seconds to wait for a file that another process is writing before trying another file
PASS_BATCH = 32  # images per forward pass; part of the key, since the last bits may depend on it


@dataclass(frozen=True)
class FrozenFeatures:
    """`train` float32 [V, N, F] holds V views of each train image.

    `val` float32 [M, F] and `clean` float32 [S, F] are those of the val images and of a sample of the train images,
    without augmentation.
    """

    train: Tensor
    val: Tensor
    clean: Tensor

    def view(self, epoch: int) -> Tensor:
        """The features on which an epoch (from 0) trains: float32 [N, F]."""
        return self.train[epoch % len(self.train)]


class FeatureFiles:
    """The features that a run needs, one file per view: float32 [images, F] in the source's order."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        clean_sample: Subset,
        to_input: ToInput,
        augment: AugmentConfig,
        views: int,
        folder: Path,
    ) -> None:
        assert isinstance(model, Classifier)
        self._model, self._features, self._dataset, self._folder = model, model.features, dataset, folder
        self._to_input, self._augment = to_input, Augment(augment, to_input)
        augmented = augment != AugmentConfig()
        every = dataset.unsealed()
        is_fold = len(every) > len(dataset.train) + len(dataset.val)
        # A fold computes the features for its whole study; a single run computes only those that it needs itself.
        self._plain = every if is_fold or not augmented else dataset.joined(dataset.val, clean_sample)
        self._clean_sample = clean_sample
        self._viewed = every if is_fold else dataset.train
        self._views: list[int | None] = list(range(views)) if augmented else [None]
        self._backbone = _hash_of_backbone(model)

    def compute(self, stop: Callable[[], bool]) -> Iterator[tuple[int, int]]:
        """Write the missing files; yields the number of images done and their total. Ends early if `stop()` is true.

        Processes that need the same files share the work: files that another one is writing come last.
        """
        missing = [(subset, view) for subset, view in self._needed() if self._read(subset, view) is None]
        total, done = sum(len(subset) for subset, _ in missing), 0
        while missing:
            subset, view = missing.pop(0)
            path = self._path(subset, view)
            with explain_os_errors(f"the cache folder '{self._folder}'"):
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    with FileLock(path.with_suffix(".lock"), timeout=POLL):
                        if self._read(subset, view) is None:  # otherwise another process was faster
                            if path.exists():
                                warn(f"the features in '{path}' were damaged and are computed anew")
                            rows = []
                            for part in self._pass(subset, view):
                                rows.append(part)
                                yield done + sum(map(len, rows)), total
                                if stop():
                                    return
                            write_arrays(path, {"features": np.concatenate(rows)})
                    done += len(subset)
                except Timeout:
                    missing.append((subset, view))
                    if stop():
                        return

    def plain(self, subset: Subset) -> npt.NDArray[np.float32]:
        """The features of some images without augmentation, float32 [N, F]; the file must exist."""
        return self._rows(self._plain, None, subset).numpy()

    def load(self) -> FrozenFeatures:
        """Load the features; all files must exist."""
        return FrozenFeatures(
            torch.stack([self._rows(self._subset_of(view), view, self._dataset.train) for view in self._views]),
            self._rows(self._plain, None, self._dataset.val),
            self._rows(self._plain, None, self._clean_sample),
        )

    def _needed(self) -> list[tuple[Subset, int | None]]:
        plain = [] if None in self._views else [None]
        return [(self._subset_of(view), view) for view in [*self._views, *plain]]

    def _subset_of(self, view: int | None) -> Subset:
        return self._plain if view is None else self._viewed

    def _rows(self, whole: Subset, view: int | None, wanted: Subset) -> Tensor:
        values = self._read(whole, view)
        if values is None:
            raise UserError(f"the features in '{self._folder}' were damaged as they were written: resume")
        return torch.from_numpy(values[np.searchsorted(whole.rows, wanted.rows)])

    @torch.no_grad()
    def _pass(self, subset: Subset, view: int | None) -> Iterator[np.ndarray]:
        """Features of the images, augmented by the view's generator unless `view` is None: float32 [B, F] each."""
        self._model.eval()
        device = self._to_input.scale.device
        generator = torch.Generator(device).manual_seed(view or 0)
        for start in range(0, len(subset), PASS_BATCH):
            positions = np.arange(start, min(start + PASS_BATCH, len(subset)))
            pixels = torch.from_numpy(subset.gather(positions)).to(device)
            labels = torch.from_numpy(subset.labels[positions]).to(device)
            images = (
                self._to_input(pixels)
                if view is None
                else self._augment(pixels, labels, generator, [view, start]).images
            )
            yield self._features(images).float().cpu().numpy()

    def _read(self, subset: Subset, view: int | None) -> np.ndarray | None:
        """The stored features of a view, float32 [images, F]; None if they are missing or damaged."""
        stored = read_arrays(self._path(subset, view), features=(np.float32, (len(subset), None)))
        return None if stored is None else stored["features"]

    def _path(self, subset: Subset, view: int | None) -> Path:
        """The file of a view, named by a hash of everything that affects the features' bits."""
        settings = self._to_input.preprocessing.model_dump(mode="json")
        facts = [VERSION, PASS_BATCH, self._backbone, self._dataset.hash, settings, str(self._to_input.memory_format)]
        facts += [str(self._to_input.scale.device), torch.get_num_threads(), torch.__version__]
        facts += [view, self._augment.config.model_dump(mode="json") if view is not None else None]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(np.ascontiguousarray(subset.rows, dtype="<i8").data)
        return self._folder / f"{digest.hexdigest()}.npz"


@torch.inference_mode()
def logits_of_features(model: nn.Module, features: Tensor, device: torch.device) -> np.ndarray:
    """Logits float32 [N, K] of features [N, F]; only the head is run, which is put into eval mode and back."""
    assert isinstance(model, Classifier)
    training = model.head.training
    model.head.eval()
    logits: np.ndarray = model.head(features.to(device)).float().cpu().numpy()
    model.head.train(training)
    return logits


def _hash_of_backbone(model: nn.Module) -> str:
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
