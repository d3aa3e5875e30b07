"""The tracker of a run without W&B. It records nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NullTracker:
    """Ignores all values. It keeps only the W&B run id, so that a later resume can still use it."""

    where: str | None = None

    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id

    def log(self, values: Mapping[str, Any], step: int) -> None:
        pass

    def close(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        pass
