"""The `optim`, `schedule` and `regularize` sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from convsmith.contracts import Section

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"]
ScheduleName = Literal["constant", "step", "exponential", "plateau", "cosine", "one-cycle"]
Beta = Annotated[float, Field(ge=0, lt=1)]

#: Learning rates where none is given: the values that the optimisers' own papers and torch start from.
DEFAULT_LR: dict[OptimizerName, float] = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "adagrad": 1e-2}


class OptimConfig(Section):
    name: OptimizerName = "adam"
    lr: float | None = Field(None, gt=0, le=100, description="learning rate; none: the optimiser's usual one")
    bias_lr_factor: float = Field(
        1.0, gt=0, le=1000, description="learning rate of biases and norm parameters, as a multiple of lr"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd and rmsprop")
    nesterov: bool = Field(False, description="sgd: Nesterov's momentum")
    dampening: float = Field(0.0, ge=0, le=1, description="sgd: dampening of the momentum")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adam and adamw")
    eps: float = Field(1e-8, gt=0, le=1, description="adam, adamw, rmsprop, adagrad")
    alpha: float = Field(0.99, ge=0, lt=1, description="rmsprop: smoothing of the squared gradient")


class ScheduleConfig(Section):
    name: ScheduleName = "constant"
    warmup_epochs: float = Field(0.0, ge=0, le=1000, description="linear rise from 0 before the schedule")
    step_epochs: int = Field(5, ge=1, description="step: epochs between two cuts")
    gamma: float = Field(0.1, gt=0, le=1, description="step: factor of a cut; exponential: factor of an epoch")
    patience: int = Field(2, ge=0, description="plateau: epochs without a better val_loss before a cut")
    factor: float = Field(0.1, gt=0, lt=1, description="plateau: factor of a cut")
    threshold: float = Field(1e-4, ge=0, lt=1, description="plateau: relative improvement that counts as better")
    final: float = Field(0.0, ge=0, le=1, description="cosine and one-cycle: last learning rate as a share of lr")
    start: float = Field(0.04, ge=0, le=1, description="one-cycle: first learning rate as a share of lr")
    peak: float = Field(0.3, gt=0, lt=1, description="one-cycle: share of the run at which lr is reached")
    anneal: Literal["cosine", "linear"] = Field("cosine", description="one-cycle: shape of rise and fall")


class RegularizeConfig(Section):
    l2: float = Field(0.0, ge=0, le=10, description="strength of the L2 penalty (weight decay)")
    l2_mode: Literal["coupled", "decoupled"] = Field(
        "coupled", description="coupled: added to the gradient; decoupled: weights shrunk by lr x l2 (AdamW)"
    )
    l1: float = Field(0.0, ge=0, le=10, description="strength of the L1 penalty on weights (not biases, not norms)")
    l1_mode: Literal["subgradient", "proximal"] = Field(
        "subgradient", description="subgradient: in the loss; proximal: soft threshold after the step (exact zeros)"
    )
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the whole gradient; 0: no clipping")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
