"""Which two or three experiments a diagnosis suggests, as commands, and what the evidence book measured for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.config import RunConfig
from convsmith.data.config import DataConfig
from convsmith.data.sources import ARRAYS
from convsmith.errors import command
from convsmith.nets.config import MODELS
from convsmith.report.diagnosis import NO_FAULT, TOO_SHORT, Finding
from convsmith.studies import book, text
from convsmith.studies.config import DIVISION

MOST = 3
KEEPS_ITS_CLASS = ("cifar10", "cifar100", "fashion-mnist")  # named sets in which a mirrored image is of the same class
MIRRORED_DIFFERS = ("digits", "mnist", "svhn")  # a mirrored digit is no digit
#: train images a class up to which pretrained weights are proposed -> the study that measured them
FEW = {22: "transfer-10", 112: "transfer-50", 500: "transfer-250"}

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """The keys to change, why, and the (study, arm) of the evidence book that tried the same thing."""

    changes: Mapping[str, Any]
    reason: str
    measured_in: tuple[str, str] | None = None


@dataclass(frozen=True)
class Proposal:
    """An experiment as the command to type; `measured` is the book's effect in words, "" where it has none."""

    command: str
    reason: str
    measured: str


def results() -> Results:
    """The evidence book's records by study; none where the book has not been measured."""
    try:
        return book.results()
    except FileNotFoundError:
        return {}


def proposals(
    findings: Sequence[Finding], config: RunConfig, config_file: Path, images_per_class: float, records: Results
) -> list[Proposal]:
    """The next experiments after `findings`, for the run of this `config`, which lies in `config_file`.

    What the book found to hurt is left out, what it found to help goes first; before all, where images are few,
    pretrained weights.
    """
    ranked: list[tuple[int, Experiment]] = []
    seen: set[str] = set()
    for finding in findings:
        for experiment in SUGGESTIONS[finding.name](config):
            verdict = (_arm(experiment.measured_in, records) or {}).get("verdict")
            names = json.dumps(sorted(experiment.changes))
            if verdict != "hurts" and names not in seen:
                seen.add(names)
                ranked.append((0 if verdict == "helps" else 1, experiment))
    ranked.sort(key=lambda pair: pair[0])
    chosen = [
        Proposal(_command("train", config_file, one.changes), one.reason, measured(one, records))
        for _, one in ranked[:MOST]
    ]
    if findings[0].name == NO_FAULT:
        folds = Proposal(
            _command("crossval", config_file, {}) + " --folds 5",
            "how far the result depends on which images were held out: five folds give an interval",
            "",
        )
        chosen = [folds, *chosen]
    return [*_pretrained(config, images_per_class, records), *chosen][:MOST]


def _pretrained(config: RunConfig, images_per_class: float, records: Results) -> Iterator[Proposal]:
    """Finetuning instead of random weights, where the book's arm `from scratch` was worse on about as many images."""
    study = next((study for most, study in FEW.items() if images_per_class <= most), "")
    arm = _arm((study, "from scratch"), records)
    if config.transfer.weights != "none" or config.data.source in (*MIRRORED_DIFFERS, ARRAYS):
        return
    if not arm or arm["verdict"] != "hurts":
        return
    low, high = arm["ci95"]
    finetuned = {
        "name": "base (against from scratch)",
        "difference": -arm["difference"],
        "ci95": [-high, -low],
        "verdict": "helps",
    }
    words = ["train", "--preset", "finetune", "--model", "torchvision/resnet18"]
    data, usual = config.data.model_dump(mode="json"), DataConfig().model_dump(mode="json")
    for key in DIVISION:
        if data[key] != usual[key]:
            words += [f"--data.{key}", str(data[key])]
    yield Proposal(
        command(*words),
        f"about {images_per_class:.0f} train images a class are few: start from pretrained weights",
        _words(finetuned, study, records),
    )


def measured(experiment: Experiment, records: Results) -> str:
    """The effect that the evidence book measured for the arm which tried the same, with its interval and conditions."""
    arm = _arm(experiment.measured_in, records)
    if arm is None or experiment.measured_in is None or arm["difference"] is None:
        return ""
    return _words(arm, experiment.measured_in[0], records)


def _words(arm: Mapping[str, Any], study: str, records: Results) -> str:
    record = records[study]
    unit = text.unit(record["metric"])
    interval = f" (95% interval {unit.interval(arm['ci95'])})" if arm["ci95"] else ""
    return (
        f"{unit.difference(arm['difference'])} {unit.written_out} of {record['metric']}{interval}: {arm['verdict']}. "
        f"Study {study}, arm {arm['name']}: {record['n_images']:,} images of {record['data']}, "
        f"{record['folds']} folds, base of {record['epochs']} epochs."
    )


def _arm(measured_in: tuple[str, str] | None, records: Results) -> Mapping[str, Any] | None:
    if measured_in is None:
        return None
    study, name = measured_in
    arms: list[Mapping[str, Any]] = records.get(study, {}).get("arms", [])
    return next((arm for arm in arms if arm["name"] == name), None)


def _overfitting(config: RunConfig) -> Iterator[Experiment]:
    augment, regularize = config.augment, config.regularize
    if not augment.shift and not augment.random_resized_crop:
        yield Experiment({"augment.shift": 0.125}, "images moved a little are new images", ("augmentation", "shift"))
    if not augment.hflip and config.data.source not in MIRRORED_DIFFERS:
        caution = "" if config.data.source in KEEPS_ITS_CLASS else ", if a mirrored image keeps its class in your data"
        yield Experiment({"augment.hflip": True}, f"mirrored images double the data{caution}", ("augmentation", "flip"))
    if config.model.name == "simple-cnn" and config.model.hidden_dropout < 0.5:
        more = 0.3 if config.model.hidden_dropout < 0.3 else 0.5
        reason = "more dropout keeps neurons from relying on each other"
        yield Experiment({"model.hidden_dropout": more}, reason, ("dropout", f"dropout {more:g}"))
    if not regularize.l2:
        yield Experiment({"regularize.l2": 0.001}, "a penalty holds the weights small", ("penalties", "l2 0.001"))
    if config.train.patience is None:
        stopped = ("epochs", "10 epochs stopped early")
        yield Experiment({"train.patience": 3}, "stops when validation no longer improves", stopped)


def _underfitting(config: RunConfig) -> Iterator[Experiment]:
    model = config.model
    if model.name == "simple-cnn":
        unused = {
            f"model.{key}": field.default
            for key, field in type(model).model_fields.items()
            if key not in MODELS["small-resnet"].uses and getattr(model, key) != field.default
        }
        yield Experiment(unused | {"model.name": "small-resnet"}, "a deeper net, with residual connections")
    elif model.name == "small-resnet":
        yield Experiment({"model.width": 2 * model.width}, "twice as many channels")
    if model.hidden_dropout and model.name == "simple-cnn":
        yield Experiment({"model.hidden_dropout": 0.0}, "no dropout: it holds back a net that does not fit")
    yield _longer(config, "more steps")
    yield _rate(config, 3, "larger steps get further in as many epochs")


def _still_improving(config: RunConfig) -> Iterator[Experiment]:
    yield _longer(config, "it had not finished learning")
    if config.schedule.name == "constant":
        yield _cosine("a falling rate lets it settle at the end")
    yield _rate(config, 3, "larger steps get further in as many epochs")


def _unstable(config: RunConfig) -> Iterator[Experiment]:
    yield _rate(config, 1 / 3, "smaller steps overshoot less")
    if config.schedule.name == "constant":
        yield _cosine("a falling rate calms the last epochs")
    if not config.train.ema:
        yield Experiment({"train.ema": 0.99}, "averaged weights do not follow each step")
    doubled = 2 * config.train.batch_size
    arm = ("batch-sizes", f"batch {doubled}")
    yield Experiment({"train.batch_size": doubled}, "gradients of larger batches are less noisy", arm)


def _rate_too_high(config: RunConfig) -> Iterator[Experiment]:
    yield _rate(config, 0.1, "the steps overshoot: a tenth of the learning rate")
    if not config.schedule.warmup_epochs and config.train.epochs > 1:
        new = "weights are" if config.transfer.weights == "none" else "head is"
        yield Experiment({"schedule.warmup_epochs": 1}, f"small steps first, while the {new} still random")
    if not config.regularize.clip_norm:
        yield Experiment({"regularize.clip_norm": 1}, "no single batch can throw the weights far")


def _no_fault(config: RunConfig) -> Iterator[Experiment]:
    yield from _overfitting(config)
    yield _longer(config, "whether more training still pays")


def _too_short(config: RunConfig) -> Iterator[Experiment]:
    yield Experiment({"train.epochs": max(10, 2 * config.train.epochs)}, "enough epochs for curves that can be read")


#: what the evidence book tried beside its base's learning rate with Adam: factor on that -> arm
BOOK_LR = 0.002
RATES = {3: "lr 0.006", 0.1: "lr 0.0002"}

#: finding -> what to try about it, the most promising first
SUGGESTIONS = {
    "overfitting": _overfitting,
    "underfitting": _underfitting,
    "still improving": _still_improving,
    "unstable": _unstable,
    "learning rate too high": _rate_too_high,
    NO_FAULT: _no_fault,
    TOO_SHORT: _too_short,
}


def _longer(config: RunConfig, reason: str) -> Experiment:
    return Experiment({"train.epochs": 2 * config.train.epochs}, f"twice the epochs: {reason}", ("epochs", "10 epochs"))


def _cosine(reason: str) -> Experiment:
    return Experiment({"schedule.name": "cosine"}, reason, ("schedules", "cosine"))


def _rate(config: RunConfig, factor: float, reason: str) -> Experiment:
    lr = config.optim.lr
    assert lr is not None, "a resolved config names its learning rate"
    other = min(float(f"{lr * factor:.2g}"), 100.0)
    tried = RATES.get(factor) if (config.optim.name, lr) == ("adam", BOOK_LR) else None
    return Experiment({"optim.lr": other}, reason, ("learning-rates", tried) if tried else None)


def _command(verb: str, config_file: Path, changes: Mapping[str, Any]) -> str:
    words = [verb, str(config_file)]
    for key, value in changes.items():
        word = str(value).lower() if isinstance(value, bool) else str(value)
        words += [f"--{key}", "none" if value is None else word]
    return command(*words)
