"""The `track` section: whether and where W&B follows a run. Imports no wandb."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from convsmith.contracts import Section


class TrackConfig(Section):
    wandb: Literal["auto", "online", "offline", "off"] = Field(
        "auto", description="auto: online if you are logged in, else offline (in the run directory)"
    )
    project: str = Field("convsmith", min_length=1, max_length=128, description="W&B project")
    group: str | None = Field(None, description="W&B group")
    every_steps: bool = Field(False, description="log every train.log_every steps as well, not only every epoch")
    images: int = Field(16, ge=0, le=256, description="number of sample predictions logged at the end")
