"""Which settings a race decides itself, so that neither its verb nor its function takes them. Imports nothing heavy."""

from __future__ import annotations

from convsmith.config import fields

_SECTIONS = ("model", "optim", "schedule", "regularize", "augment", "transfer", "train")
_LEFT_TO_THE_USER = ("train.seed", "train.device", "train.threads")


def decided() -> list[str]:
    """The keys ``section.key`` that the race decides."""
    return [key for key, _ in fields() if key.partition(".")[0] in _SECTIONS and key not in _LEFT_TO_THE_USER]
