"""The backends of a study (worker processes, this process, Ray) and its folds run on them. No results are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from convsmith.errors import Stopped, choose
from convsmith.events import FeatureExtractionProgress, JobDone, JobProgress, JobsStarted, Listener
from convsmith.rundir import RunDir
from convsmith.runtime import Interrupts
from convsmith.studies import own, ray_cluster, runner
from convsmith.studies.fold_job import FoldJob
from convsmith.studies.runner import Answer, Job
from convsmith.training.own import NO_PARTS, Parts

Backend = Callable[[Sequence[Job], int, Path, Interrupts], Iterator[Answer]]
BACKENDS: dict[str, Backend] = {"local": runner.run_jobs, "ray": ray_cluster.run_jobs}


def runner_for(name: str, parts: Parts = NO_PARTS) -> Backend:
    """The function that runs jobs: in this process where they need `parts`, else by the backend of this name.

    UserError for an unknown name, a missing package or a cluster that does not answer.
    """
    if name not in BACKENDS:
        raise choose("backend", name, BACKENDS)
    if own.has_own(parts):
        return partial(runner.run_here, parts=parts)
    if name == "ray":
        ray_cluster.connect()
    return BACKENDS[name]


def run_folds(
    run: RunDir, jobs: Sequence[FoldJob], max_workers: int, runner: Backend, how_to_resume: str, listener: Listener
) -> dict[str, str]:
    """Run the fold jobs that are not done; returns why jobs failed, by name. Raises Stopped where a signal came."""
    waiting = [job for job in jobs if not job.done]
    listener(JobsStarted(len(jobs), len(jobs) - len(waiting)))
    failed: dict[str, str] = {}
    shared = False
    with Interrupts() as interrupts:
        for answer in runner(waiting, max_workers, run.path / "workers.log", interrupts) if waiting else ():
            job = waiting[answer.index]
            if answer.progress:
                if "epoch" in answer.progress:
                    listener(JobProgress(answer.index, answer.progress["epoch"] / answer.progress["epochs"]))
                elif not shared:  # all runs with a frozen backbone use the same features
                    shared = True
                    listener(FeatureExtractionProgress(0, answer.progress["features"]))
                continue
            listener(JobDone(answer.index, job.name, answer.record, answer.failed))
            if answer.record is None:
                failed[job.name] = answer.failed or ""
            run.log(f"{job.name} {'done' if answer.record else f'failed: {answer.failed}'}")
        stop_if(interrupts, how_to_resume)
    return failed


def stop_if(interrupts: Interrupts, how_to_resume: str) -> None:
    """Raise Stopped where a signal has come; everything must have been saved."""
    if interrupts.received:
        raise Stopped(interrupts.received, f"stopped and saved; resume with: {how_to_resume}")
