"""The `transfer` section. Knows no networks; `unfreezing` and `weights` implement it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from convsmith.contracts import Section

ALL_BUT_HEAD = "all-but-head"
NO_WEIGHTS, LIBRARY_WEIGHTS, AUTO_WEIGHTS = WORDS = "none", "default", "auto"


class UnfreezeConfig(Section):
    """When frozen stages are unfrozen, from the last one before the head towards the stem."""

    after: int = Field(ge=1, description="epochs before the first stages are unfrozen")
    every: int = Field(1, ge=1, description="epochs between two unfreezings")
    stages: int = Field(1, ge=1, description="number of stages that are unfrozen at once")
    most: int | None = Field(None, ge=1, description="total number of stages to unfreeze; none: all")


class TransferConfig(Section):
    weights: str = Field(
        AUTO_WEIGHTS,
        description="auto (pretrained for networks of torchvision and timm), none (random), default (those of the "
        "library), a .safetensors or .pth file, or a run directory",
    )
    freeze: tuple[str, ...] = Field(
        (), description=f"none, {ALL_BUT_HEAD}, or a list of stages and patterns of parameter names, '[stem, \"*bn*\"]'"
    )
    unfreeze: UnfreezeConfig | None = Field(
        None,
        description="'{after: 2}' trains the head for 2 epochs, and then unfreezes one more stage each epoch",
    )
    freeze_statistics: bool = Field(
        False, description="batch norm keeps the pretrained statistics, also in stages that are trained"
    )
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate from each stage to the one before it, starting at the head",
    )
    backbone_lr: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate of all stages, that is, of everything but the head"
    )
    head_l2: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="start from the head that logistic regression with this L2 penalty finds on the features of the "
        "frozen backbone; none: from a random one",
    )
    cache_features: bool = Field(True, description="compute the features of a frozen backbone once, not every epoch")
    feature_views: int = Field(
        4, ge=1, le=1000, description="with augmentation: number of views of each image whose features are computed"
    )
    cache_stages: bool = Field(
        False,
        description="where some stages are never unfrozen, keep what they compute of each view: all epochs train on it",
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None or value == "none":
            return ()
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _something_to_unfreeze(self) -> TransferConfig:
        if self.unfreeze is not None and not self.freeze:
            raise ValueError(
                f"unfreeze has nothing to unfreeze: set --transfer.freeze as well, for example to {ALL_BUT_HEAD}"
            )
        return self

    @model_validator(mode="after")
    def _features_for_the_head(self) -> TransferConfig:
        if self.head_l2 is not None and (self.freeze != (ALL_BUT_HEAD,) or not self.cache_features):
            raise ValueError(
                f"head_l2 solves the head on kept features: it needs transfer.freeze {ALL_BUT_HEAD} and "
                "transfer.cache_features true"
            )
        return self

    @property
    def method(self) -> str | None:
        """What is done with pretrained weights, by the name of the preset that does it; None for random weights."""
        if self.weights == NO_WEIGHTS:
            return None
        return "linear-probe" if self.freeze == (ALL_BUT_HEAD,) and self.unfreeze is None else "finetune"

    @property
    def finetunes(self) -> bool:
        """Whether parameters are treated differently from each other."""
        return bool(self.freeze) or self.freeze_statistics or self.lr_decay < 1 or self.backbone_lr < 1
