"""The experiments that a diagnosis suggests, as commands, and what the evidence book measured in a similar setting.

The learning curves are judged in `diagnosis`, not here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.config import RunConfig, word
from convsmith.data.config import DataConfig
from convsmith.errors import command
from convsmith.nets.config import MODELS
from convsmith.report.diagnosis import DIVERGED, NO_FAULT, ROOM, TOO_SHORT, Finding
from convsmith.studies import book, text
from convsmith.studies.config import DIVISION

MOST = 3
KEEPS_ITS_CLASS = ("cifar10", "cifar100", "fashion-mnist")  # named sets in which a mirrored image keeps its class
MIRRORED_DIFFERS = ("digits", "mnist", "svhn")  # a mirrored digit is not a digit
FEW = 500  # training images per class up to which pretrained weights are proposed
ALIKE = 2  # factor within which epochs, images per class and errors of a study and of a run are of one regime

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """The keys to change, why, and the (study, arm) of the evidence book that tried the same thing."""

    changes: Mapping[str, Any]
    reason: str
    measured_in: tuple[str, str] | None = None


@dataclass(frozen=True)
class Proposal:
    """An experiment as the command to type; `measured` is the evidence book's effect in words, "" if it has none.

    It is None for a command that changes nothing whose effect could be measured.
    """

    command: str
    reason: str
    measured: str | None


@dataclass(frozen=True)
class Setting:
    """What decides whether evidence from elsewhere applies to a run: its net, its images per class, its epochs.

    `room` is how much validation accuracy the run has left to gain.
    """

    config: RunConfig
    images_per_class: float
    room: float

    def resembles(self, study: Mapping[str, Any], arm: Mapping[str, Any]) -> bool:
        """Whether the study's result for `arm` may be quoted for this run.

        It may if the run is in the regime of the study: the nets are of one kind and start alike, and epochs, images
        per class and the share of images that are classified wrongly (by the run, by the study's base) differ by at
        most a factor of two. And the run must have at least as much left to gain as the arm gained.
        """
        base, config = study["base"], self.config
        gain = abs(arm["difference"] or 0.0)
        return (
            kind(base["model"]) == kind(config.model.name)
            and (base["weights"] == "none") == (config.transfer.weights == "none")
            and _near(study["epochs"], config.train.epochs)
            and _near(book.images_per_class(study), self.images_per_class)
            and _near(1 - base["accuracy"], self.room)
            and (arm["verdict"] != "helps" or gain <= self.room)
        )


def kind(model: str) -> str:
    """The kind of a net: plain convolutions, residual blocks, or a published architecture."""
    return {"simple-cnn": "plain", "convnet": "plain", "small-resnet": "residual"}.get(model, "published")


def results() -> Results:
    """The digest of the evidence book, by study."""
    return book.results()


def proposals(findings: Sequence[Finding], setting: Setting, config_file: Path, records: Results) -> list[Proposal]:
    """The next experiments after `findings`, for the run of this `setting`, whose config is in `config_file`.

    What the evidence book found to hurt in a similar setting is left out, and what it found to help goes first. Where
    images are few, pretrained weights come before everything else. Where the validation accuracy leaves no room, the
    only proposal is to measure how certain it is.
    """
    config = setting.config
    folds = Proposal(
        _command("crossval", config_file, {}) + " --folds 5",
        "five folds show how far the result depends on which images were held out",
        None,
    )
    if setting.room < ROOM:
        return [folds]
    ranked: list[tuple[int, Experiment]] = []
    seen: set[str] = set()
    for finding in findings:
        for experiment in SUGGESTIONS[finding.name](config):
            verdict = (_arm(experiment.measured_in, setting, records) or {}).get("verdict")
            names = json.dumps(sorted(experiment.changes))
            if verdict != "hurts" and names not in seen:
                seen.add(names)
                ranked.append((0 if verdict == "helps" else 1, experiment))
    ranked.sort(key=lambda pair: pair[0])
    chosen = [
        Proposal(_command("train", config_file, one.changes), one.reason, measured(one, setting, records))
        for _, one in ranked[:MOST]
    ]
    if findings[0].name == DIVERGED:  # before anything else, it must train at all
        return chosen
    if findings[0].name == NO_FAULT:
        chosen = [folds, *chosen]
    return [*_pretrained(setting, records), *chosen][:MOST]


def _pretrained(setting: Setting, records: Results) -> Iterator[Proposal]:
    """Propose finetuning instead of random weights where images are few and may be photographs."""
    config = setting.config
    if config.transfer.weights != "none" or config.data.is_own or config.data.title in MIRRORED_DIFFERS:
        return
    if setting.images_per_class > FEW:
        return
    words = ["train", "--preset", "finetune"]  # with the network whose weights are at hand
    data, usual = config.data.model_dump(mode="json"), DataConfig().model_dump(mode="json")
    for key in DIVISION:
        if data[key] != usual[key]:
            for value in data[key] if key == "source" and isinstance(data[key], list) else [data[key]]:
                words += [f"--data.{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
    yield Proposal(
        command(*words),
        f"about {setting.images_per_class:.0f} training images per class are few: pretrained weights probably help",
        _gain_of_pretraining(setting, records),
    )


def _gain_of_pretraining(setting: Setting, records: Results) -> str:
    """The loss of the studies' arms `from scratch`, with the sign reversed: those nets were trained as this run was."""
    for study, record in records.items():
        arm = next((arm for arm in record["arms"] if arm["name"] == "from scratch"), None)
        if arm is None or arm["verdict"] != "hurts":
            continue
        low, high = arm["ci95"]
        gained = {
            "name": "base (against from scratch)",
            "difference": -arm["difference"],
            "ci95": [-high, -low],
            "verdict": "helps",
        }
        accuracy = record["base"]["accuracy"] + arm["difference"]
        from_scratch = {**record, "base": {**record["base"], "weights": "none", "accuracy": accuracy}}
        if setting.resembles(from_scratch, gained):
            return _words(gained, study, record)
    return ""


def measured(experiment: Experiment, setting: Setting, records: Results) -> str:
    """The effect that the evidence book measured for the same change in a similar setting, or ""."""
    arm = _arm(experiment.measured_in, setting, records)
    if arm is None or experiment.measured_in is None or arm["difference"] is None:
        return ""
    study = experiment.measured_in[0]
    return _words(arm, study, records[study])


def _words(arm: Mapping[str, Any], study: str, record: Mapping[str, Any]) -> str:
    unit = text.unit(record["metric"])
    interval = f" (95% interval {unit.interval(arm['ci95'])})" if arm["ci95"] else ""
    return (
        f"{unit.words(unit.difference(arm['difference']))} of {record['metric']}{interval}: {arm['verdict']}. "
        f"Study {study}, arm {arm['name']}: {book.regime(record)}, {record['folds']} folds."
    )


def _arm(measured_in: tuple[str, str] | None, setting: Setting, records: Results) -> Mapping[str, Any] | None:
    """The arm in the evidence book, if its study was run in a similar setting."""
    if measured_in is None or measured_in[0] not in records:
        return None
    study, name = measured_in
    arm = next((arm for arm in records[study]["arms"] if arm["name"] == name), None)
    return arm if arm and setting.resembles(records[study], arm) else None


def _near(one: float, other: float) -> bool:
    return max(one, other) <= ALIKE * min(one, other)


def _overfitting(config: RunConfig) -> Iterator[Experiment]:
    augment, regularize = config.augment, config.regularize
    if not augment.shift and not augment.random_resized_crop:
        yield Experiment({"augment.shift": 0.125}, "slightly shifted images are new images", ("augmentation", "shift"))
    if not augment.hflip and config.data.title not in MIRRORED_DIFFERS:
        caution = "" if config.data.title in KEEPS_ITS_CLASS else ", if a mirrored image keeps its class in your data"
        yield Experiment({"augment.hflip": True}, f"mirrored images are new images{caution}", ("augmentation", "flip"))
    if config.model.name == "simple-cnn" and config.model.hidden_dropout < 0.5:
        more = 0.3 if config.model.hidden_dropout < 0.3 else 0.5
        reason = "more dropout keeps neurons from relying on each other"
        measured_in = None if config.model.hidden_dropout else ("dropout", f"dropout {more:g}")
        yield Experiment({"model.hidden_dropout": more}, reason, measured_in)
    if not regularize.l2:
        yield Experiment({"regularize.l2": 0.001}, "a penalty keeps the weights small", ("penalties", "l2 0.001"))
    if config.train.patience is None:
        yield Experiment({"train.patience": 3}, "training stops when validation no longer improves")


def _underfitting(config: RunConfig) -> Iterator[Experiment]:
    model = config.model
    if model.name == "simple-cnn":
        unused = {
            f"model.{key}": field.default
            for key, field in type(model).model_fields.items()
            if key not in MODELS["small-resnet"].uses and getattr(model, key) != field.default
        }
        yield Experiment(unused | {"model.name": "small-resnet"}, "a deeper net with residual connections can fit more")
    elif model.name == "small-resnet":
        yield Experiment({"model.width": 2 * model.width}, "twice as many channels give the net more capacity")
    if model.hidden_dropout and model.name == "simple-cnn":
        yield Experiment({"model.hidden_dropout": 0.0}, "dropout holds back a net that does not fit")
    for name in ("mixup", "cutmix"):
        if getattr(config.augment, name):
            yield Experiment({f"augment.{name}": 0.0}, f"{name} makes the training images harder to fit")
    yield _longer(config, "twice the epochs give the net more steps")
    yield from _rate(config, 3, "larger steps get further in the same number of epochs")


def _still_improving(config: RunConfig) -> Iterator[Experiment]:
    yield _longer(config, "the net had not finished learning after these epochs")
    if config.schedule.name == "constant":
        yield _cosine("a falling learning rate lets the weights settle at the end")
    yield from _rate(config, 3, "larger steps get further in the same number of epochs")


def _unstable(config: RunConfig) -> Iterator[Experiment]:
    yield from _rate(config, 1 / 3, "smaller steps overshoot less")
    if config.schedule.name == "constant":
        yield _cosine("a falling learning rate makes the last epochs steadier")
    if not config.train.ema:
        yield Experiment({"train.ema": 0.99}, "averaged weights do not follow every single step")
    doubled = 2 * config.train.batch
    yield Experiment({"train.batch_size": doubled}, "gradients of larger batches are less noisy")


def _rate_too_high(config: RunConfig) -> Iterator[Experiment]:
    yield from _rate(config, 0.1, "the steps overshoot, so try a tenth of the learning rate")
    if not config.schedule.warmup_epochs and config.train.epochs > 1:
        new = "weights are" if config.transfer.weights == "none" else "head is"
        yield Experiment({"schedule.warmup_epochs": 1}, f"warmup takes small steps while the {new} still random")
    if not config.regularize.clip_norm:
        yield Experiment({"regularize.clip_norm": 1}, "clipping keeps a single batch from moving the weights far")


def _no_fault(config: RunConfig) -> Iterator[Experiment]:
    yield from _overfitting(config)
    yield _longer(config, "twice the epochs show whether more training still helps")


def _too_short(config: RunConfig) -> Iterator[Experiment]:
    yield Experiment({"train.epochs": max(10, 2 * config.train.epochs)}, "more epochs give curves that can be read")


#: the other learning rates that the evidence book tried with Adam: factor on the base's rate -> arm
BOOK_LR = 0.002
RATES = {3: "lr 0.006", 0.1: "lr 0.0002"}

#: finding -> what to try about it, the most promising first
SUGGESTIONS = {
    DIVERGED: _rate_too_high,
    "overfitting": _overfitting,
    "underfitting": _underfitting,
    "still improving": _still_improving,
    "unstable": _unstable,
    "learning rate too high": _rate_too_high,
    NO_FAULT: _no_fault,
    TOO_SHORT: _too_short,
}


def _longer(config: RunConfig, reason: str) -> Experiment:
    return Experiment({"train.epochs": 2 * config.train.epochs}, reason, ("epochs", "10 epochs"))


def _cosine(reason: str) -> Experiment:
    return Experiment({"schedule.name": "cosine"}, reason, ("schedules", "cosine"))


def _rate(config: RunConfig, factor: float, reason: str) -> Iterator[Experiment]:
    lr = config.optim.lr
    if lr is None:  # the optimiser is the user's own, and its learning rate is set in their code
        return
    other = min(float(f"{lr * factor:.2g}"), 100.0)
    tried = RATES.get(factor) if (config.optim.name, lr) == ("adam", BOOK_LR) else None
    yield Experiment({"optim.lr": other}, reason, ("learning-rates", tried) if tried else None)


def _command(verb: str, config_file: Path, changes: Mapping[str, Any]) -> str:
    words = [verb, str(config_file)]
    for key, value in changes.items():
        words += [f"--{key}", word(value)]
    return command(*words)
