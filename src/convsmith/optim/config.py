"""The `optim`, `schedule` and `regularize` sections, and the tables of optimisers and schedules. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, ValidatorFunctionWrapHandler, field_serializer, field_validator

from convsmith.contracts import OWN, Section

Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class OptimizerEntry:
    """The description of an optimiser, without torch; `optimizers.BUILDERS` builds it.

    `lr` is the default learning rate, as its paper or torch recommends. `uses` names the
    keys of the section that it uses besides `lr` and `bias_lr_factor`. `state_per_parameter` is the largest number of
    values that it keeps for each parameter. `applies` names the modes of L2 that it implements itself; penalties.py
    applies the others.
    """

    description: str
    lr: float
    uses: tuple[str, ...]
    state_per_parameter: int
    applies: tuple[str, ...] = ("coupled",)


BOTH = ("coupled", "decoupled")

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry("stochastic gradient descent with momentum", 0.05, ("momentum", "nesterov", "dampening"), 1),
    "adam": OptimizerEntry("adaptive step sizes (Kingma and Ba 2015)", 1e-3, ("betas", "eps"), 2, BOTH),
    "adamw": OptimizerEntry(
        "adam, always with decoupled L2 (Loshchilov and Hutter 2019)", 1e-3, ("betas", "eps"), 2, BOTH
    ),
    "rmsprop": OptimizerEntry("step sizes by the running squared gradient", 1e-3, ("momentum", "alpha", "eps"), 2),
    "adagrad": OptimizerEntry("step sizes by the sum of squared gradients (Duchi et al. 2011)", 1e-2, ("eps",), 1),
    "muon": OptimizerEntry(
        "orthogonalised momentum for hidden weights, adamw for the rest (Jordan 2024)",
        0.1,  # Jordan uses 0.02 for language models and 0.24 for a network with batch norm on CIFAR-10
        ("betas", "eps", "muon_momentum", "muon_normalize", "muon_steps", "adamw_lr_factor"),
        2,
        ("decoupled",),
    ),
}


@dataclass(frozen=True)
class ScheduleEntry:
    """The description of a schedule, whose factor `schedules.SHAPES` computes; `uses` is as for an optimiser."""

    description: str
    uses: tuple[str, ...]


SCHEDULES: dict[str, ScheduleEntry] = {
    "constant": ScheduleEntry("always lr", ()),
    "step": ScheduleEntry("reduced every step_epochs", ("step_epochs", "gamma")),
    "exponential": ScheduleEntry("reduced every epoch", ("gamma",)),
    "plateau": ScheduleEntry("reduced when val_loss stops falling", ("patience", "factor", "threshold")),
    "cosine": ScheduleEntry("half a cosine from lr down to final", ("final",)),
    "one-cycle": ScheduleEntry("up to lr until peak, then down to final", ("start", "peak", "final", "anneal")),
}

if TYPE_CHECKING:
    OptimizerName: TypeAlias = str
    ScheduleName: TypeAlias = str
else:  # the tables are the only place that lists the names
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    ScheduleName = Literal[tuple(SCHEDULES)]


def _described(table: Mapping[str, OptimizerEntry] | Mapping[str, ScheduleEntry]) -> str:
    return "; ".join(f"{name}: {entry.description}" for name, entry in table.items())


def _users(table: Mapping[str, OptimizerEntry] | Mapping[str, ScheduleEntry], key: str) -> str:
    return ", ".join(name for name, entry in table.items() if key in entry.uses)


class OptimConfig(Section):
    uses: ClassVar = {"name": {name: entry.uses for name, entry in OPTIMIZERS.items()}}

    name: OptimizerName = Field("adam", description=_described(OPTIMIZERS))
    lr: float | None = Field(None, gt=0, le=100, description="learning rate; none: the optimiser's default")
    bias_lr_factor: float = Field(
        1.0, gt=0, le=1000, description="learning rate of biases and norm parameters, as a multiple of lr"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description=_users(OPTIMIZERS, "momentum"))
    nesterov: bool = Field(False, description=f"{_users(OPTIMIZERS, 'nesterov')}: Nesterov's momentum")
    dampening: float = Field(
        0.0, ge=0, le=1, description=f"{_users(OPTIMIZERS, 'dampening')}: dampening of the momentum"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description=_users(OPTIMIZERS, "betas"))
    eps: float = Field(1e-8, gt=0, le=1, description=_users(OPTIMIZERS, "eps"))
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="muon: momentum for the hidden weights")
    muon_normalize: bool = Field(
        False,
        description="muon: scale each hidden weight to the norm sqrt(rows) before it moves, so that lr is the relative "
        "size of a step; for networks whose norms make the scale of weights irrelevant",
    )
    muon_steps: int = Field(
        5, ge=1, le=20, description="muon: iterations of the orthogonalisation; fewer are faster and less exact"
    )
    adamw_lr_factor: float = Field(
        0.05, gt=0, le=1000, description="muon: learning rate of the parameters that adamw updates, as a multiple of lr"
    )
    alpha: float = Field(
        0.99, ge=0, lt=1, description=f"{_users(OPTIMIZERS, 'alpha')}: smoothing of the squared gradient"
    )

    @field_validator("eps")
    @classmethod
    def _above_zero_in_float32(cls, eps: float) -> float:
        if eps < 1e-37:  # a weight without a gradient would be updated by 0 / 0
            raise ValueError("must be at least 1e-37, since float32 rounds smaller values to 0")
        return eps

    @field_validator("name", mode="wrap")
    @classmethod
    def _or_own(cls, value: Any, choose: ValidatorFunctionWrapHandler) -> Any:
        return value if isinstance(value, str) and value.startswith(OWN) else choose(value)

    @field_serializer("name")
    def _as_text(self, name: str) -> str:
        return name

    @property
    def is_own(self) -> bool:
        """Whether the optimiser is the user's own, so that no other key of this section has an effect."""
        return self.name.startswith(OWN)


class ScheduleConfig(Section):
    uses: ClassVar = {"name": {name: entry.uses for name, entry in SCHEDULES.items()}}

    name: ScheduleName = Field("constant", description=_described(SCHEDULES))
    warmup_epochs: float = Field(0.0, ge=0, le=1000, description="linear rise from 0 before the schedule")
    step_epochs: int = Field(5, ge=1, description="step: epochs between two reductions")
    gamma: float = Field(0.1, gt=0, le=1, description="step and exponential: factor of each reduction")
    patience: int = Field(2, ge=0, description="plateau: epochs without a better val_loss before a reduction")
    factor: float = Field(0.1, gt=0, lt=1, description="plateau: factor of each reduction")
    threshold: float = Field(1e-4, ge=0, lt=1, description="plateau: relative improvement that counts as better")
    final: float = Field(0.0, ge=0, le=1, description="cosine and one-cycle: last learning rate as a fraction of lr")
    start: float = Field(0.04, ge=0, le=1, description="one-cycle: first learning rate as a fraction of lr")
    peak: float = Field(0.3, gt=0, lt=1, description="one-cycle: fraction of the run after which lr is reached")
    anneal: Literal["cosine", "linear"] = Field("cosine", description="one-cycle: shape of rise and fall")


class RegularizeConfig(Section):
    needs: ClassVar = {"l1_mode": "l1", "l2_mode": "l2"}

    l2: float = Field(0.0, ge=0, le=10, description="strength of the L2 penalty (weight decay)")
    l2_mode: Literal["coupled", "decoupled"] = Field(
        "coupled",
        description="coupled: added to the gradient; decoupled: weights are shrunk by lr x l2 (AdamW)",
    )
    l1: float = Field(0.0, ge=0, le=10, description="strength of the L1 penalty on weights (not on biases and norms)")
    l1_mode: Literal["subgradient", "proximal"] = Field(
        "subgradient", description="subgradient: in the loss; proximal: soft threshold after the step (exact zeros)"
    )
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradient of all parameters; 0: no clipping")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
