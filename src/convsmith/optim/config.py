"""The `optim`, `schedule`, `regularize` and `transfer` sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

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


ALL_BUT_HEAD = "all-but-head"


class UnfreezeConfig(Section):
    """Which frozen stages train from which epoch on, from the last one before the head towards the stem."""

    after: int = Field(ge=1, description="epochs before the first stages are thawed")
    every: int = Field(1, ge=1, description="epochs from one thaw to the next")
    stages: int = Field(1, ge=1, description="stages of each thaw")
    most: int | None = Field(None, ge=1, description="stages thawed in all; none: every one")


class TransferConfig(Section):
    weights: str = Field(
        "none", description="none, default (the library's own), a .safetensors or .pth file, or a run directory"
    )
    freeze: tuple[str, ...] = Field(
        (), description=f"none, {ALL_BUT_HEAD}, or a list of stages and patterns of parameter names, '[stem, \"*bn*\"]'"
    )
    unfreeze: UnfreezeConfig | None = Field(
        None, description="thaw stages by and by: '{after: 2}' the head for 2 epochs, then one stage more each epoch"
    )
    freeze_statistics: bool = Field(
        False, description="batch norm keeps the statistics of the weights in stages that train, too"
    )
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate from each stage to the one before it, from the head on",
    )
    backbone_lr: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate of all stages: of everything but the head"
    )
    cache_features: bool = Field(True, description="compute the features of a frozen backbone once, not every epoch")
    feature_views: int = Field(
        4, ge=1, le=1000, description="with augmentation: views of each image whose features are computed once"
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None or value == "none":
            return ()
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _something_to_thaw(self) -> TransferConfig:
        if self.unfreeze is not None and not self.freeze:
            raise ValueError(f"unfreeze has nothing to thaw: set transfer.freeze, such as {ALL_BUT_HEAD}")
        return self

    @property
    def finetunes(self) -> bool:
        """Whether some parameters are treated unlike others."""
        return bool(self.freeze) or self.freeze_statistics or self.lr_decay < 1 or self.backbone_lr < 1
