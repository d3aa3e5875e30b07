"""How studies handle a network, an optimiser or arrays of the user's own: runs take place in this process, in turn."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from convsmith.config import RunConfig, differences
from convsmith.contracts import own_name
from convsmith.errors import UserError, command
from convsmith.events import Listener, Note
from convsmith.optim.optimizers import keep_base_rates, parameter_groups
from convsmith.training.own import NO_PARTS, Parts, own_optimizer, own_settings

SAME = "pass in the one that it was started with"


def has_own(parts: Parts) -> bool:
    return parts != NO_PARTS


def fresh(parts: Parts) -> Parts:
    """The parts for one training: it trains a copy of the network, from the weights that were passed in."""
    return replace(parts, module=copy.deepcopy(parts.module))


def workers(jobs: int, backend: str, parts: Parts, listener: Listener) -> int:
    """The number of runs at a time: `jobs`, or 1 where the parts cannot be sent to another process."""
    if not has_own(parts):
        return jobs
    if jobs > 1 or backend != "local":
        listener(
            Note(
                "a network, an optimiser or arrays of your own cannot be sent to another process: the runs take place "
                "in this one, one at a time"
            )
        )
    return 1


def named(config: RunConfig, parts: Parts) -> RunConfig:
    """The config with the names of the objects that were passed in, so that another network makes another study."""
    if parts.module is not None:
        config = config.with_values(model={"name": own_name(parts.module)})
    if parts.source is not None:
        config = config.with_values(data={"source": parts.source.name})
    return config


def optimizer_of(parts: Parts) -> dict[str, Any]:
    """What study.yaml says of an optimiser of the user's own: its class and the settings of its groups."""
    if parts.optimizer is None:
        return {}
    optimizer = keep_base_rates(own_optimizer(parts.optimizer, parameter_groups(nn.Linear(1, 1))))
    return {"own_optimizer": {"name": type(optimizer).__name__, "groups": own_settings(optimizer)}}


def note_weights(parts: Parts, listener: Listener) -> None:
    """Send a note that says from which weights each run of a study with the user's own network starts."""
    if parts.module is not None:
        listener(Note(f"each run starts from the weights that {type(parts.module).__name__} had when it was passed in"))


def refuse_other(config: RunConfig, spec: Mapping[str, Any], parts: Parts, directory: Path) -> None:
    """A UserError for a study that was started with parts that are not passed in again, or differ now.

    `spec` is what its study.yaml holds.
    """
    for absent, what, example in (
        (config.model.is_own and parts.module is None, "network", "model=..."),
        (config.optim.is_own and parts.optimizer is None, "optimiser", "optimizer=..."),
        (config.data.is_own and parts.source is None, "data", "data=(images, labels)"),
    ):
        if absent:
            raise UserError(
                f"the {what} of study '{directory}' came from Python: pass it in again, "
                f"convsmith.resume({str(directory)!r}, {example})"
            )
    if parts.module is not None and (given := own_name(parts.module)) != config.model.name:
        raise UserError(f"the network of study '{directory}' is {config.model.name}, not {given}: {SAME}")
    before = {"own_optimizer": spec.get("own_optimizer", {})}
    if changed := differences([before, optimizer_of(parts)]) if before["own_optimizer"] else []:
        what = "; ".join(f"{key} was {then}, is {now}" for key, (then, now) in changed)
        raise UserError(f"the optimiser of study '{directory}' has changed ({what}): {SAME}")


def refuse_unused(keys: Iterable[str], parts: Parts, where: str) -> None:
    """A UserError for a key, varied in `where` (an arm, the space), that has no effect on the user's own part."""
    for key in keys:
        for section, part, what in (("model", parts.module, "network"), ("optim", parts.optimizer, "optimiser")):
            if part is not None and key.startswith(f"{section}."):
                raise UserError(f"{where}: {key} has no effect, since the {what} is your own: leave it out")


def how_to_resume(directory: Path, parts: Parts) -> str:
    """The command, or the call from Python, that resumes a study."""
    if not has_own(parts):
        return command("resume", directory)
    given = (("model", parts.module), ("optimizer", parts.optimizer), ("data", parts.source))
    return f"convsmith.resume({str(directory)!r}, {', '.join(f'{key}=...' for key, part in given if part is not None)})"
