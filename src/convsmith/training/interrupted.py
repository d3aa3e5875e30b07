"""Finds a training that the same settings began and that was interrupted. Resumes nothing."""

from __future__ import annotations

from pathlib import Path

from convsmith import records, rundir
from convsmith.config import RunConfig, differences, validate
from convsmith.data.sources import with_absolute_paths
from convsmith.errors import UserError
from convsmith.rundir import RunDir


def find(runs_dir: Path, config: RunConfig) -> RunDir | None:
    """The training in `runs_dir` that the same config began, is neither finished nor running and was changed last."""
    if not runs_dir.is_dir():
        return None
    for run in rundir.runs_in(runs_dir):
        if run.summary.exists() or run.study.exists() or not run.checkpoints.is_dir():
            continue
        try:
            asked = asked_for(run)
            if asked is not None and not changes(asked, config) and rundir.state_of(run) == "stopped":
                return run
        except UserError:  # it is damaged, which `resume` says of the run that it is given
            continue
    return None


def refuse_other(run: RunDir, config: RunConfig) -> bool:
    """Raise UserError if the training `run` was begun with settings other than `config`.

    False if the run has not recorded its settings as they were asked for, so that nothing could be compared.
    """
    asked = asked_for(run)
    if asked is not None and (changed := changes(asked, config)):
        raise UserError(
            f"run '{run.path}' was started with other settings ({'; '.join(changed)}): choose another --name, or give "
            "the same settings again to resume it"
        )
    return asked is not None


def at_its_place(config: RunConfig) -> RunConfig:
    """The config with the absolute place of its data: data that are called the same elsewhere are others."""
    return config.with_values(data={"source": with_absolute_paths(config.data).source})


def asked_for(run: RunDir) -> RunConfig | None:
    """The config that the training was begun with, before anything was chosen; None if it has not recorded it."""
    asked = records.read(run.environment, records.Environment).get("asked")
    return validate(asked) if asked else None


def changes(before: RunConfig, now: RunConfig) -> list[str]:
    """The settings that differ, for a sentence."""
    configs = [config.model_dump(mode="json") for config in (before, now)]
    return [f"{key} was {then}, is {value}" for key, (then, value) in differences(configs)]
