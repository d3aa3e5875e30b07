"""Resuming a study of any kind. What each kind does is in its own module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convsmith.events import Listener, nobody
from convsmith.rundir import RunDir
from convsmith.studies import ablation, auto, crossval, tuning
from convsmith.studies.ablation import AblationResult
from convsmith.studies.auto import AutoResult
from convsmith.studies.crossval import CrossvalResult
from convsmith.studies.study import read_spec, refuse_jobs
from convsmith.studies.tuning import TuningResult
from convsmith.training.own import NO_PARTS, Parts

Result = CrossvalResult | AblationResult | TuningResult | AutoResult

RESUMED_BY: dict[str, Callable[..., Result]] = {
    "crossval": crossval.resume,
    "ablate": ablation.resume,
    "tune": tuning.resume,
    "auto": auto.resume,
}


def resume(
    directory: str | Path,
    parts: Parts = NO_PARTS,
    *,
    jobs: int = 1,
    backend: str = "local",
    listener: Listener = nobody,
) -> Result:
    """Resume a study that was stopped, or read the results of one that is done.

    `parts` are the objects that were passed in when it was started. Raises UserError where the directory is not a
    study, where its files were changed, or where parts are missing, and Stopped where a signal ended the study after
    everything was saved.
    """
    refuse_jobs(jobs, backend)
    run = RunDir(Path(directory))
    run.refuse_links()
    return RESUMED_BY[read_spec(run)["kind"]](run, parts, jobs=jobs, backend=backend, listener=listener)
