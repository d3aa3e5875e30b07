"""Finds a training that was started with the same settings and interrupted. Resumes nothing."""

from __future__ import annotations

from pathlib import Path

from convsmith import records, rundir
from convsmith.config import RunConfig, differences, validate_asked
from convsmith.data.sources import with_absolute_paths
from convsmith.errors import UserError
from convsmith.events import Note
from convsmith.rundir import RunDir


def find(runs_dir: Path, config: RunConfig) -> RunDir | None:
    """The training in `runs_dir` of the same config that is neither finished nor running and was changed last."""

    def is_same(run: RunDir) -> bool:
        if run.summary.exists() or run.study.exists() or not run.checkpoints.is_dir():
            return False
        asked = asked_for(run)
        return asked is not None and not changes(asked, config)

    return rundir.stopped_in(runs_dir, is_same)


def going_on(run: RunDir, what: str) -> Note:
    """Says that a run or a study, `what`, was found and is continued, and how to start a new one."""
    return Note(
        f"going on with '{run.path}', which the same settings began and which was interrupted; a new {what} has a name "
        "of its own: --name NEW"
    )


def refuse_other(run: RunDir, config: RunConfig) -> bool:
    """Raise UserError if the training `run` was started with settings other than `config`.

    False if the run has not recorded the settings that it was started with, so that nothing could be compared.
    """
    asked = asked_for(run)
    if asked is not None and (changed := changes(asked, config)):
        raise UserError(
            f"run '{run.path}' was started with other settings ({'; '.join(changed)}): choose another --name, or give "
            "the same settings again to resume it"
        )
    return asked is not None


def at_its_place(config: RunConfig) -> RunConfig:
    """The config with the absolute paths of its data: a relative one names other data in another folder."""
    return config.with_values(data={"source": with_absolute_paths(config.data).source})


def asked_for(run: RunDir) -> RunConfig | None:
    """The config that the training was started with, before anything was chosen; None if it has not recorded it."""
    asked = records.read(run.environment, records.Environment).get("asked")
    return validate_asked(asked) if asked else None


def changes(before: RunConfig, now: RunConfig) -> list[str]:
    """The settings that differ, for a sentence."""
    configs = [config.model_dump(mode="json") for config in (before, now)]
    return [f"{key} was {then}, is {value}" for key, (then, value) in differences(configs)]
