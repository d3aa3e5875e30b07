"""Resolves the config of a run: a pure function of the config and of facts, which `setup` gathers. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convsmith.config import RunConfig
from convsmith.contracts import OWN
from convsmith.data.config import DataConfig
from convsmith.nets.config import ModelConfig
from convsmith.optim.config import OPTIMIZERS, OptimConfig
from convsmith.training.config import AUTO, TrainConfig
from convsmith.transfer.config import NO_WEIGHTS

#: (up to this many train images, batch size, epochs), the defaults for finetuning: few images get about as many steps
SIZES = ((1_000, 16, 12), (10_000, 32, 10), (None, 64, 6))


@dataclass(frozen=True)
class Facts:
    """What data, machine and weights determine. `batch_size` (of train.batch_size auto), `layout`, `precision` and
    `compile` are None until they have been found; the latter three are measured last.

    `data` is the section with all values that depend on the images, `model` the network of `transfer.weights` if they
    are those of a run, `weights` their absolute path. `own_module` and `own_optimizer` are the names of the user's
    own classes.
    """

    data: DataConfig
    train_images: int
    val_images: int
    device: str
    threads: int
    model: ModelConfig | None = None
    weights: str | None = None
    own_module: str | None = None
    own_optimizer: str | None = None
    batch_size: int | None = None
    layout: str | None = None
    precision: str | None = None
    compile: str | None = None


def resolve(config: RunConfig, facts: Facts) -> RunConfig:
    """Fill in everything that `config` leaves open; a resolved config does not change."""
    train: dict[str, Any] = {"device": facts.device, "threads": facts.threads}
    if facts.layout is not None:
        train["layout"] = facts.layout
    if facts.precision is not None:
        train["precision"] = facts.precision
    if facts.compile is not None:
        train["compile"] = facts.compile
    if config.transfer.weights != NO_WEIGHTS:
        batch_size, epochs = next((b, e) for most, b, e in SIZES if most is None or facts.train_images <= most)
        sizes = {"batch_size": batch_size, "epochs": epochs}
        train |= {key: value for key, value in sizes.items() if key not in config.train.model_fields_set}
    else:
        batch_size = TrainConfig().batch
    if not facts.val_images:  # nothing can choose an epoch
        train |= {"keep": "last", "patience": None, "min_delta": 0.0}
    if config.train.batch_size == AUTO:
        train["batch_size"] = facts.batch_size or batch_size
    optim: dict[str, Any] = {}
    if not config.optim.is_own and config.optim.lr is None:
        optim["lr"] = OPTIMIZERS[config.optim.name].lr
    resolved = config.with_values(
        data=facts.data.model_dump(mode="json"),
        model={"name": OWN + facts.own_module} if facts.own_module else {},
        optim=optim,
        transfer={"weights": facts.weights} if facts.weights else {},
        train=train,
    )
    if facts.model is not None:
        resolved = resolved.model_copy(update={"model": facts.model})
    if facts.own_optimizer is not None:  # then no other key of the section has an effect
        resolved = resolved.model_copy(update={"optim": OptimConfig(name=OWN + facts.own_optimizer)})
    return resolved
