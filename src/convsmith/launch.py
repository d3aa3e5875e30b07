"""What torchrun tells each process that it starts: which one of how many it is. Starts nothing, imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from convsmith.errors import UserError


@dataclass(frozen=True)
class Place:
    """The place of a process among those that train together, as PyTorch's environment variables give it.

    `rank` of `size` processes in all; `local_rank` of `local_size` on this machine. `restarts` counts how often
    torchrun has started all of them again.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0

    @property
    def speaks(self) -> bool:
        """Whether the process tells the errors that all processes of its machine make alike."""
        return self.local_rank == 0

    @property
    def label(self) -> str:
        """What stands before a line of the process on a terminal that several share."""
        return f"rank {self.rank}: " if self.rank else ""


def place() -> Place:
    """The place of this process; alone, where it was not started by torchrun. UserError for impossible values."""
    size = _number("WORLD_SIZE", 1, least=1)
    if size == 1:
        return Place(restarts=_number("TORCHELASTIC_RESTART_COUNT", 0))
    rank = _number("RANK", None)
    found = Place(
        rank,
        size,
        _number("LOCAL_RANK", rank),
        _number("LOCAL_WORLD_SIZE", size, least=1),
        _number("TORCHELASTIC_RESTART_COUNT", 0),
    )
    if found.rank >= size or found.local_rank >= found.local_size:
        raise UserError(
            f"RANK {rank} of WORLD_SIZE {size}, LOCAL_RANK {found.local_rank} of LOCAL_WORLD_SIZE {found.local_size}: "
            "ranks are counted from 0; start the processes with torchrun, which sets these variables"
        )
    return found


def _number(variable: str, default: int | None, least: int = 0) -> int:
    text = os.environ.get(variable, "" if default is None else str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(
            f"the environment variable {variable} must be a number from {least} on, but is '{text}': start the "
            "processes with torchrun, which sets it, or unset WORLD_SIZE"
        )
    return int(text)
