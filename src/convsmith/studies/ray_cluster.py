"""Jobs on a Ray cluster (extra `[cluster]`): the same jobs as elsewhere, each as a Ray task.

All machines must see the data and the run directories under the same paths. If a worker dies, Ray gives its task to
another one, where the job continues from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from convsmith.errors import UserError, first_line, missing_extra
from convsmith.runtime import Interrupts
from convsmith.studies import worker
from convsmith.studies.runner import Answer, Job

RETRIES = 3  # of a task whose worker or machine dies


def connect() -> Any:
    """The `ray` module, connected to the cluster that RAY_ADDRESS names, or else to the one on this machine."""
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "cluster") from None
    address = os.environ.get("RAY_ADDRESS", "auto")
    if not ray.is_initialized():
        _refuse_silent(address)
        variables = {name: os.environ[name] for name in ("CONVSMITH_CACHE",) if name in os.environ}
        try:
            ray.init(
                address=address, log_to_driver=False, runtime_env={"env_vars": variables}, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, first_line(error)) from None
    return ray


def _refuse_silent(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try it for minutes, and print messages."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # "auto", "local"
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, reason: str) -> UserError:
    return UserError(
        f"no Ray cluster answers at '{address}' ({reason}): start one with `ray start --head`, or set RAY_ADDRESS to "
        "the host:port of the one that you mean"
    )


def run_jobs(jobs: Sequence[Job], max_workers: int, log: Path, interrupts: Interrupts) -> Iterator[Answer]:
    """Like `runner.run_jobs`, on the cluster: `max_workers` tasks at a time, each with `train.threads` cores."""
    ray = connect()
    perform = ray.remote(max_retries=RETRIES)(_task)
    waiting = list(enumerate(jobs))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max_workers and not interrupts:
                index, job = waiting.pop(0)
                task = perform.options(num_cpus=job.threads, name=job.name).remote(job.message())
                running[task] = index
            if interrupts and not running:
                return
            finished, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            if interrupts:
                for task in running:
                    ray.cancel(task, force=False)
                return
            for task in finished:
                index = running.pop(task)
                try:
                    answer = ray.get(task)
                except ray.exceptions.RayError as error:
                    answer = {"failed": f"on the cluster: {first_line(error)}"}
                if "interrupted" in answer:  # by whoever ended its process
                    waiting.append((index, jobs[index]))
                else:
                    yield Answer(index, record=answer.get("done"), failed=answer.get("failed"))
    finally:
        ray.shutdown()


def _task(message: dict[str, Any]) -> dict[str, Any]:
    with Interrupts() as interrupts:
        *_, answer = worker.perform(message, interrupts)
    return answer
