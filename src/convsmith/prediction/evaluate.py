"""Evaluates a model on labelled images, of its run or others: logits, scores, and the files beside the run's others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith import records
from convsmith.config import read_run_config
from convsmith.data.ahead import ahead
from convsmith.data.config import DataConfig
from convsmith.data.dataset import Dataset, Subset, open_dataset, unseal_test
from convsmith.data.parallel import Progress
from convsmith.data.places import folder_of
from convsmith.data.preprocess import DevicePixels, InputPixels
from convsmith.data.sources import Source, open_source, with_absolute_paths
from convsmith.errors import RunFailed, UserError
from convsmith.events import Listener, Note, counter, nobody
from convsmith.figures.matrices import evaluation_figure
from convsmith.figures.style import save
from convsmith.files import as_csv, explain_os_errors, write_text
from convsmith.memory import explain_memory_errors
from convsmith.prediction.evaluation import evaluation, prediction_rows
from convsmith.prediction.model_file import ModelCard, load_model, read_card
from convsmith.prediction.other_data import name_of, named_alike, open_other, refuse_sealed, source_for
from convsmith.rundir import RunDir, open_run
from convsmith.runtime import select_device, set_threads

#: Images per forward pass: 16 of 224 x 224 pixels, proportionally fewer of larger and more of smaller ones. More are no
#: faster, since their activations fit into no cache, and take memory: an EfficientNet-Lite0 needs 25 MB an image.
PASS_PIXELS, MOST = 16 * 224**2, 256


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    batches: Iterable[InputPixels | DevicePixels],
    to_input: Callable[[Tensor], Tensor],
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32] | None:
    """Logits float32 [N, K] of batches of prepared images, or None if `stop()` became true in between.

    The model is put into eval mode and back. No random numbers are drawn.
    """
    training = model.training
    model.eval()
    parts: list[Tensor] = []
    for pixels in batches:
        if stop():
            break
        parts.append(model(to_input(pixels.tensor(device))))
    model.train(training)
    assert parts or stop(), "no images"
    return None if stop() else torch.cat(parts).float().cpu().numpy()


def images_per_pass(height: int, width: int) -> int:
    """The number of images of this size, in pixels, that a forward pass takes."""
    return min(MOST, max(1, PASS_PIXELS // (height * width)))


def passes(subset: Subset) -> list[NDArray[np.int64]]:
    """The positions of all images of a subset, in its order, divided into forward passes."""
    size = images_per_pass(*subset.shape[:2])
    return [np.arange(start, min(start + size, len(subset))) for start in range(0, len(subset), size)]


def batches_of(subset: Subset, device: torch.device) -> Iterator[InputPixels | DevicePixels]:
    """All images of a subset, in its order; for an accelerator they are gathered while it computes."""
    if device.type == "cpu":
        yield from map(InputPixels, subset.gathered(passes(subset)))
    else:
        yield from map(DevicePixels, ahead(subset.gathered(passes(subset)), device))


def refuse_nonfinite_logits(logits: NDArray[np.float32]) -> None:
    """Raise RunFailed for logits that are infinite or not a number, of which no probabilities can be made."""
    if wrong := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise RunFailed(
            f"the model's logits of {wrong:,} of {len(logits):,} images are not finite numbers: it has diverged, so "
            "train it again, with a smaller --lr"
        )


def evaluate_split(
    model: nn.Module,
    card: ModelCard,
    subset: Subset,
    device: torch.device,
    run: RunDir,
    split: str,
    data: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Evaluate a split and write evaluation-<split>.json and predictions-<split>.csv; returns record and logits.

    `data` describes the images where they are others than the run's (see `records.EvaluatedData`).
    """
    logits = logits_of(model, batches_of(subset, device), card.to_input(device), device)
    assert logits is not None
    refuse_nonfinite_logits(logits)
    record = evaluation(subset.labels, logits, card.classes) | ({"data": data} if data else {})
    rows = prediction_rows(subset.ids, logits, card.classes, subset.labels)
    write_text(run.predictions(split), as_csv(rows))
    records.write(run.evaluation(split), records.Evaluation, record)
    return record, logits


@explain_memory_errors("in the evaluation")
def evaluate(
    run: RunDir,
    split: str,
    command: str,
    device: str = "auto",
    source: Source | None = None,
    module: nn.Module | None = None,
) -> dict[str, Any]:
    """Evaluate a run on a split; returns the record of evaluation-<split>.json.

    Before the test split is opened, `command` is recorded. Raises UserError if the run has no such split, or if its
    data has changed or is not available any more.
    """
    open_run(run.path).refuse_links()
    config, splits = read_run_config(run.config), records.read(run.splits, records.Splits)["splits"]
    _refuse_other_split(run, splits, split)
    set_threads(config.train.threads)
    return _evaluate_own(run, run_dataset(run, source), split, command, device, module)


def _refuse_other_split(run: RunDir, splits: Mapping[str, Sequence[str]], split: str) -> None:
    """Raise UserError if a run with these `splits` has no images of `split` to evaluate."""
    available = [name for name in ("val", "test") if splits.get(name)]
    if split not in available:
        others = f"Splits: {', '.join(available)}" if available else "Name other images: --data OTHER"
        raise UserError(f"run '{run.path}' has no {split} split to evaluate. {others}")


def _evaluate_own(
    run: RunDir, dataset: Dataset, split: str, command: str, device: str, module: nn.Module | None
) -> dict[str, Any]:
    """Evaluate a split of the run's own data, `dataset`; only here is the test split opened."""
    model, card = load_model(run.model, where := select_device(device), module)
    with explain_os_errors(f"run '{run.path}'"):
        if split == "test":
            run.record_test_access(command)
        subset = unseal_test(dataset) if split == "test" else dataset.val
        return evaluate_split(model, card, subset, where, run, split)[0]


@explain_memory_errors("in the evaluation")
def evaluate_other(
    run: RunDir,
    data: DataConfig,
    split: str | None,
    command: str,
    device: str = "auto",
    source: Source | None = None,
    module: nn.Module | None = None,
    listener: Listener = nobody,
) -> dict[str, Any]:
    """Evaluate a run on other labelled images: those of `data` (or arrays, `source`), or one of its own splits.

    Writes evaluation-<name>.json, predictions-<name>.csv and figures/confusion-<name>.png, where the name is that of
    the data, and returns the record. If these are the data that the run was trained with, wherever they lie now,
    `split` is that of the run, and the result that of `evaluate`. Raises UserError for classes that the model does not
    have, for images of the sealed test split, and for a split that does not exist.
    """
    open_run(run.path).refuse_links()
    config, known = read_run_config(run.config), records.read(run.splits, records.Splits)
    set_threads(config.train.threads)
    data = data.model_copy(update={"cache": data.cache or config.data.cache})
    progress = counter(listener, "decoding")
    card = read_card(run.model)
    data, source = with_absolute_paths(data), source_for(data, card, source)
    if (own := _own_dataset(run, source, progress)) is not None:
        if split is None:
            raise UserError(
                f"{data.title} holds the data that run '{run.path}' was trained with: choose one of its splits, "
                "--split val or --split test"
            )
        _refuse_other_split(run, known["splits"], split)
        return _evaluate_own(run, own, split, command, device, module)
    other = open_other(data, source, card, progress)
    images = other.split(split)
    refuse_sealed(run, config.data, known["splits"].get("test", ()), other, images)
    if alike := named_alike(config.data, known["splits"], other.config, images):
        listener(Note(alike))
    name = name_of(run, other, split)
    model, card = load_model(run.model, where := select_device(device), module)
    described: dict[str, Any] = {
        "name": name,
        "source": other.config.title,
        "split": split,
        "hash": other.hash,
        "skipped": other.skipped,
    }
    with explain_os_errors(f"run '{run.path}'"):
        record = evaluate_split(model, card, images, where, run, name, described)[0]
        run.figures.mkdir(exist_ok=True)
        save(evaluation_figure(record), run.confusion(name))
    return record


def _own_dataset(run: RunDir, source: Source, progress: Progress) -> Dataset | None:
    """The data of the run if these are the images that it was trained with, as they were."""
    try:
        return run_dataset(run, source, progress)
    except UserError:
        return None


def run_dataset(run: RunDir, source: Source | None = None, progress: Progress | None = None) -> Dataset:
    """The data of a run, with the splits of its training; UserError if it has changed or is not available any more.

    `source` holds the same images where they are arrays, or have moved (`moved_source`).
    """
    open_run(run.path, run.splits.name)
    config, splits = read_run_config(run.config).data, records.read(run.splits, records.Splits)
    if source is None:
        refuse_lost(config, run)
        return open_dataset(config, trained=True).as_recorded(splits, str(run.path))
    # What kept images together is in the splits already, and its file may not have moved with the images.
    config = config.model_copy(update={"groups": None})
    known = {name for ids in splits["splits"].values() for name in ids}
    dataset = None
    if known.issubset(source.ids):
        dataset = open_dataset(config, progress, source, trained=True).of_hash(splits["hash"])
    if dataset is None:
        raise UserError(f"{source.name} does not hold the images that run '{run.path}' was trained with, as they were")
    return dataset.as_recorded(splits, str(run.path))


def refuse_lost(config: DataConfig, run: RunDir, fix: str = "name their new place with --data") -> None:
    """Raise UserError, which ends with `fix`, if the files of the run's data are not where its config says."""
    if lost := [name for name in config.sources if os.path.isabs(name) and not os.path.exists(folder_of(name))]:
        raise UserError(f"the data of run '{run.path}' are not at '{lost[0]}' any more: {fix}")


def moved_source(run: RunDir, data: DataConfig) -> Source:
    """What `data` names in place of the run's own source, read in the same way but for the keys that `data` sets."""
    if run.alone:
        return open_source(data)
    given = {key: getattr(data, key) for key in data.model_fields_set}
    return open_source(read_run_config(run.config).data.model_copy(update=given))


def use_threads(run: RunDir) -> None:
    """Compute with the threads of the run's training, on which the last bits depend; any number for a model alone."""
    set_threads(None if run.alone else read_run_config(run.config).train.threads)
