"""Running many independent jobs, in worker processes or in this process; `ray_cluster` runs them on Ray."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Protocol

from convsmith.files import open_to_append
from convsmith.runtime import Interrupts
from convsmith.studies import nursery
from convsmith.studies.worker import perform

ATTEMPTS = 3  # how often a job is started whose worker dies (out of memory, killed)


class Job(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def preemptible(self) -> bool:
        """Whether a job that was stopped on its way continues from there when it is started again."""

    def message(self) -> dict[str, Any]:
        """The job as JSON, with its `kind` (see `worker.KINDS`)."""


@dataclass(frozen=True)
class Answer:
    """A message from a job: at its end the `record`, or the error message with which it `failed`.

    Before that, its `progress`: the `epoch` reached (2.5 is half-way through the third) and the number of `epochs`, or
    the number of images whose `features` it is computing.
    """

    index: int  # of the job
    progress: dict[str, Any] | None = None
    record: dict[str, Any] | None = None
    failed: str | None = None


def run_jobs(jobs: Sequence[Job], max_workers: int, log: Path, interrupts: Interrupts) -> Iterator[Answer]:
    """Run `jobs`, `max_workers` at a time, each in a worker process; a signal makes it save all and return early.

    The output of the workers goes to `log`. A job whose worker dies continues in a new one, from its last checkpoint.
    Jobs start in order, except that those of `shares_first` come first.
    """
    first = shares_first(len(jobs), max_workers) if all(job.preemptible for job in jobs) else {}
    waiting = deque(sorted(enumerate(jobs), key=lambda numbered: numbered[0] not in first))
    attempts = [0] * len(jobs)
    messages: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
    count = min(max_workers, len(jobs))
    workers = [_Worker(messages, log, forked=count > 1) for _ in range(count)]
    stopping = False
    try:
        while True:
            if interrupts and not stopping:
                stopping = True
                for worker in workers:
                    worker.stop()
            for number, worker in enumerate(workers):
                if waiting and worker.job is None and not stopping:
                    if worker.dead:
                        worker.close()
                        workers[number] = worker = _Worker(messages, log, forked=count > 1)
                    worker.give(waiting.popleft())
            if all(worker.job is None for worker in workers):
                return
            try:
                worker, message = messages.get(timeout=0.2)
            except Empty:
                continue
            worker.dead = message is None
            if worker.job is None:  # it had answered already and has now ended
                continue
            index, job = worker.job
            if message is not None and "progress" in message:
                progress = message["progress"]
                yield Answer(index, progress=progress)
                done, of = progress.get("epoch", 0), progress.get("epochs", 0)
                if waiting and first.get(index, 1.0) * of <= done < of:
                    del first[index]
                    worker.stop()
                continue
            worker.job = None
            if message is None:
                attempts[index] += 1
                if attempts[index] < ATTEMPTS:
                    waiting.appendleft((index, job))
                elif not stopping:
                    yield Answer(index, failed=f"its worker died {ATTEMPTS} times; {log} holds its output")
            elif "done" in message:
                yield Answer(index, record=message["done"])
            elif "failed" in message:
                yield Answer(index, failed=message["failed"])
            else:  # stopped on its way: by us, or by whoever ended its process
                waiting.append((index, job))
    finally:
        for worker in workers:
            worker.close()
        nursery.close()


def run_here(
    jobs: Sequence[Job], max_workers: int, log: Path, interrupts: Interrupts, parts: Any = None
) -> Iterator[Answer]:
    """Like `run_jobs`, but in this process: one job after the other, each with the `parts` that cannot leave it."""
    for index, job in enumerate(jobs):
        for message in perform(job.message(), interrupts, parts):
            if "interrupted" in message:
                return
            yield Answer(index, message.get("progress"), message.get("done"), message.get("failed"))


def shares_first(jobs: int, max_workers: int) -> dict[int, float]:
    """Which of `jobs` jobs of about equal length to divide: index -> the share to run first; the rest is run last.

    Where the number of jobs is not a multiple of `max_workers`, workers would be idle while the last jobs run: 5 jobs,
    two at a time, would take as long as 6. If one is started first, stopped half-way and finished last, they take 2.5
    times as long as one: the wrap-around rule (McNaughton 1959, "Scheduling with deadlines and loss functions",
    Management Science 6). It is the last jobs that are divided.
    """
    if jobs <= max_workers:
        return {}
    ends = [Fraction(jobs * worker, max_workers) for worker in range(1, max_workers)]
    shares = [float(math.ceil(end) - end) for end in ends if end.denominator > 1]
    return {jobs - 1 - number: share for number, share in enumerate(shares)}


class _Worker:
    """A worker process, and a thread that puts its messages (None at its end) into the queue `messages`.

    Several share their start: with `forked`, it is a copy of a process that has imported everything.
    """

    def __init__(self, messages: Queue[tuple[_Worker, dict[str, Any] | None]], log: Path, forked: bool) -> None:
        self.job: tuple[int, Job] | None = None
        self.dead = False
        with open_to_append(log) as errors:
            self._process = nursery.start(errors, forked)
        self._listener = threading.Thread(target=self._listen, args=(messages,), daemon=True)
        self._listener.start()

    def give(self, job: tuple[int, Job]) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it died between two jobs; the listener reports that
            self._process.stdin.write(json.dumps(job[1].message()) + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        self._process.terminate()

    def close(self) -> None:
        """End the process; if it is in the middle of a job, it saves that first."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._listener.join()  # until it has received the last message
        self._process.stdout.close()

    def _listen(self, messages: Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        for line in self._process.stdout:
            messages.put((self, json.loads(line)))
        messages.put((self, None))
