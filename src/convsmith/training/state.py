"""TrainState: everything that changes during a run, and therefore everything that an exact resume needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.contracts import Batch
from convsmith.errors import UserError
from convsmith.nets.tensors import below, load_strictly
from convsmith.optim.optimizers import NO_DECAY
from convsmith.optim.schedules import Schedule
from convsmith.precision import FLOAT16
from convsmith.records import is_better
from convsmith.training.config import TrainConfig
from convsmith.training.loadable import refuse_unfit
from convsmith.training.ranks import ALONE, Ranks
from convsmith.transfer.unfreezing import Finetuning, Phase

Tensors = dict[str, Tensor]


class WeightAverage:
    """Exponential moving average of weights and float buffers (Polyak and Juditsky 1992).

    The decay of update t is min(decay, (1 + t) / (10 + t)), so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        rate = 1 - min(self.decay, (1 + updates) / (10 + updates))
        present = model.state_dict()
        for name, mean in self.model.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(present[name], rate)
            else:
                mean.copy_(present[name])


@dataclass(frozen=True)
class EarlyStopping:
    """The best epoch by `monitor`, and the number of epochs without an improvement by `min_delta`.

    `best` is the best epoch's value and `best_loss` its val_loss, which breaks ties. `reference` is the value that
    an epoch must improve on by `min_delta`, and `bad_epochs` counts the epochs since the last one that did.
    """

    monitor: str
    patience: int | None
    min_delta: float
    best: float | None = None
    best_epoch: int = 0
    reference: float | None = None
    bad_epochs: int = 0
    best_loss: float | None = None  # also None in checkpoints of the first edition, which keeps the first of ties
    keep: str = "best"  # or "last": then each epoch counts as the best so far

    def after(self, row: Mapping[str, Any]) -> EarlyStopping:
        """The state after an epoch with this row of metrics.csv; without val images, the last epoch is kept."""
        if self.monitor not in row:
            return replace(self, best_epoch=row["epoch"])
        result = self
        if is_better(self.monitor, row, self._row(self.reference), self.min_delta):
            result = replace(result, reference=row[self.monitor], bad_epochs=0)
        else:
            result = replace(result, bad_epochs=self.bad_epochs + 1)
        if self.keep == "last" or is_better(self.monitor, row, self._row(self.best)):
            result = replace(result, best=row[self.monitor], best_epoch=row["epoch"], best_loss=row["val_loss"])
        return result

    def _row(self, value: float | None) -> dict[str, float] | None:
        """An earlier epoch to compare with. Ties matter only without `min_delta`, where the reference is the best."""
        if value is None:
            return None
        return {"val_loss": -math.inf if self.best_loss is None else self.best_loss, self.monitor: value}

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.bad_epochs >= self.patience


class RunningMetrics:
    """The running sums of an epoch, kept on the device, so that no step waits for a transfer."""

    def __init__(self, device: torch.device) -> None:
        # MPS has no float64, so the sums are in float32 there, like the losses.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.loss = torch.zeros((), dtype=wide, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, step: int, images: int | None = None) -> None:
        """Add a batch. Of a part of one, `loss` is its share of the mean loss, and `images` the size of the whole."""
        self.loss += loss * (images or len(labels))
        self.correct += (logits.argmax(1) == labels).sum()
        self.seen += len(labels)
        first_bad = (self.bad_step < 0) & ~torch.isfinite(loss)
        self.bad_step.masked_fill_(first_bad, step)

    def tensors(self) -> Tensors:
        return {"loss": self.loss, "correct": self.correct, "seen": self.seen, "bad_step": self.bad_step}

    def read(self, ranks: Ranks = ALONE) -> tuple[float, float, int, int]:
        """Mean loss, accuracy, images seen, first step with a loss that is not finite (or -1), in one transfer.

        They are those of all ranks; from then on the first one holds the sums, which its checkpoints contain.
        """
        sums = torch.stack([value.to(self.loss.dtype) for value in self.tensors().values()]).tolist()
        if not ranks.alone:
            *columns, bad = zip(*ranks.every(sums), strict=True)
            sums = [*map(sum, columns), min((step for step in bad if step >= 0), default=-1)]
            for tensor, value, nothing in zip(self.tensors().values(), sums, (0, 0, 0, -1), strict=True):
                tensor.fill_(value if ranks.first else nothing)
        loss, correct, seen, bad_step = sums
        return loss / max(seen, 1), correct / max(seen, 1), int(seen), int(bad_step)


@dataclass
class TrainState:
    """`epoch` counts finished epochs, `position` the batches done in the current one, `step` all updates.

    `phase` is an index into the phases of `finetuning` (0 if there is none), which defines the trained parameters;
    all others are frozen.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    stopping: EarlyStopping
    generator: torch.Generator
    device: torch.device
    average: WeightAverage | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cuda", enabled=False))
    finetuning: Finetuning | None = None
    phase: int = 0
    epoch: int = 0
    position: int = 0
    step: int = 0
    seconds: float = 0.0  # training time in the current epoch
    total_seconds: float = 0.0  # time of all finished epochs, including validation
    compiled: Callable[[Tensor], Tensor] | None = None  # what steps on images call in place of the model
    metrics: RunningMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = RunningMetrics(self.device)

    def training_mode(self, rest: nn.Module | None = None) -> None:
        """Set training mode, except for frozen modules: their batch norm must not drift, their dropout stays off.

        `rest` is what is run of the model, where the outputs of its frozen stages are kept.
        """
        for network in (self.model, rest):
            if network is not None:
                network.train()
                if self.finetuning:
                    self.finetuning.frozen_to_eval(network)

    def enter_phase(self) -> Phase | None:
        """Unfreeze the stages that are trained from the current epoch on; returns the phase if a new one starts."""
        if self.finetuning is None or (number := self.finetuning.number_at(self.epoch)) == self.phase:
            return None
        self.phase = number
        self.stopping = replace(self.stopping, bad_epochs=0)  # a new phase has the full patience
        return self._freeze()

    def _freeze(self) -> Phase | None:
        return self.finetuning.apply(self.model, self.phase) if self.finetuning else None

    @property
    def head_alone(self) -> bool:
        """Whether only the head is trained at present, so that features are constant."""
        return self.finetuning is not None and self.finetuning.phases[self.phase].head_alone

    @property
    def exhausted(self) -> bool:
        """Whether to stop early; false while stages remain to be unfrozen."""
        return self.ends_with(self.stopping)

    def ends_with(self, stopping: EarlyStopping) -> bool:
        """Whether the run would stop early if `stopping` were its current state."""
        last = self.finetuning is None or self.phase == len(self.finetuning.phases) - 1
        return last and stopping.exhausted

    @property
    def trained_parameters(self) -> int:
        """The number of parameters that are trained at present."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def logits(self, batch: Batch) -> Tensor:
        """Logits float [B, K], from images or from features."""
        logits: Tensor = (batch.rest or self.compiled or self.model)(batch.images)
        return logits

    @property
    def evaluated(self) -> nn.Module:
        """The network that validation, prediction and export use: the average, if there is one."""
        return self.average.model if self.average else self.model

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last update; before the first update, that of the first.

        It is the rate for weights; biases and norms may have another one (optim.bias_lr_factor).
        """
        return self._largest("lr")

    @property
    def base_rate(self) -> float:
        """The learning rate for weights, before the schedule multiplies it."""
        return self._largest("base_lr")

    def _largest(self, rate: str) -> float:
        groups = self.optimizer.param_groups
        return float(max(group[rate] for group in groups if group.get("name") != NO_DECAY or len(groups) == 1))

    def close_epoch(self, seconds: float) -> None:
        self.epoch += 1
        self.position = 0
        self.total_seconds += seconds
        self.seconds = 0.0
        self.metrics = RunningMetrics(self.device)

    def tensors(self) -> Tensors:
        """All tensors by name, with the prefixes model., average., optimizer., counts. and rng."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average.{name}": value for name, value in self.average.model.state_dict().items()}
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                if value is not None:
                    if not isinstance(value, Tensor):
                        raise UserError(
                            f"{type(self.optimizer).__name__} stores {key} as {type(value).__name__}, but only tensors "
                            "can be saved and resumed exactly: use an optimiser that stores tensors"
                        )
                    tensors[f"optimizer.{names[parameter]}:{key}"] = value
        tensors |= {f"counts.{name}": value for name, value in self.metrics.tensors().items()}
        tensors["rng.augment"] = self.generator.get_state()
        tensors |= {f"rng.{name}": value for name, value in _global_rng(self.device).items()}
        return tensors

    def metadata(self) -> dict[str, Any]:
        """The parts of the state that are not tensors, as JSON values."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "phase": self.phase,
            "schedule": self.schedule.state(),
            "stopper": asdict(self.stopping),
            "scaling": self._scaling(),
        }

    def _scaling(self) -> dict[str, Any] | None:
        """The factor on the loss that float16 needs, and the steps since its last change; None for no factor."""
        if not self.scaler.is_enabled():
            return None
        known = self.scaler.state_dict()
        return {"factor": known["scale"], "good_steps": known["_growth_tracker"]}

    def load(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Load a checkpoint of which all fits, or nothing: a UserError names what does not fit."""
        refuse_unfit(self, tensors, metadata)
        load_strictly(self.model, below(tensors, "model."), "the checkpoint")
        if self.average:
            load_strictly(self.average.model, below(tensors, "average."), "the checkpoint's average")
        self._load_optimizer(below(tensors, "optimizer."), metadata["rates"])
        for name, value in below(tensors, "counts.").items():
            self.metrics.tensors()[name].copy_(value)
        self.generator.set_state(tensors["rng.augment"])
        _set_global_rng(below(tensors, "rng."), self.device)
        for name in ("epoch", "position", "step", "seconds", "total_seconds", "phase"):
            setattr(self, name, metadata[name])
        self.schedule.load_state(metadata["schedule"])
        self.stopping = EarlyStopping(**metadata["stopper"])
        if (scaling := metadata.get("scaling")) is not None and self.scaler.is_enabled():
            known = {"scale": scaling["factor"], "_growth_tracker": scaling["good_steps"]}
            self.scaler.load_state_dict(self.scaler.state_dict() | known)
        self._freeze()

    def _load_optimizer(self, tensors: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for name, value in tensors.items():
            owner, key = name.rsplit(":", 1)
            parameter = parameters[owner]
            if value.shape == parameter.shape:
                # Fused optimisers work on raw memory, so the state must have the parameter's strides.
                value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
            elif self.optimizer.defaults.get("fused"):
                value = value.to(parameter.device)
            self.optimizer.state[parameter][key] = value
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def new_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    config: TrainConfig,
    device: torch.device,
    finetuning: Finetuning | None = None,
) -> TrainState:
    """The state before step 1. The generator for augmentation is seeded with the run's seed."""
    if finetuning:
        finetuning.apply(model, 0)
    return TrainState(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        stopping=EarlyStopping(config.monitor, config.patience, config.min_delta, keep=config.keep),
        generator=torch.Generator(device).manual_seed(config.seed),
        device=device,
        average=WeightAverage(model, config.ema) if config.ema else None,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == FLOAT16),
        finetuning=finetuning,
    )


def evaluated_weights(tensors: Mapping[str, Tensor]) -> Tensors:
    """The weights in a checkpoint that validation, prediction and export use: the average where there is one."""
    return below(tensors, "average.") or below(tensors, "model.")


def kept_epoch(facts: Mapping[str, Any]) -> int:
    """The best epoch so far, from the facts of a checkpoint; 0 before the first one has ended."""
    return int(facts["stopper"]["best_epoch"])


def _global_rng(device: torch.device) -> Tensors:
    """The states of torch's global generators, which dropout uses."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_global_rng(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
