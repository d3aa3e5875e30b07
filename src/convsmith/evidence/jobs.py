"""Many independent jobs at once: worker processes on this machine, or a Ray cluster (`cluster.py`)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Protocol

from convsmith.runtime import Interrupts

ATTEMPTS = 3  # a job whose worker dies (out of memory, killed) is given to a new worker this often


class Job(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def message(self) -> dict[str, Any]:
        """The job as JSON, with its `kind` (see `worker.KINDS`)."""


@dataclass(frozen=True)
class Answer:
    """What a job has to say: `progress` on its way; at its end `record`, or the message with which it `failed`."""

    index: int  # of the job
    progress: dict[str, Any] | None = None
    record: dict[str, Any] | None = None
    failed: str | None = None


def run_jobs(jobs: Sequence[Job], at_once: int, log: Path, interrupts: Interrupts) -> Iterator[Answer]:
    """Run `jobs` in order, `at_once` at a time, each in a worker process; ends early, all saved, on a signal.

    What workers print goes to `log`. A job whose worker dies goes on in a new one, from its last checkpoint.
    """
    waiting = deque(enumerate(jobs))
    attempts = [0] * len(jobs)
    heard: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
    workers = [_Worker(heard, log) for _ in range(min(at_once, len(jobs)))]
    stopping = False
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while any(worker.job is not None for worker in workers):
            if interrupts and not stopping:
                stopping = True
                for worker in workers:
                    worker.stop()
            try:
                worker, message = heard.get(timeout=0.2)
            except Empty:
                continue
            if worker.job is None:  # it has answered already and now ended
                continue
            index, job = worker.job
            if message is not None and "progress" in message:
                yield Answer(index, progress=message["progress"])
                continue
            worker.job = None
            if message is None:  # the worker is dead
                attempts[index] += 1
                if stopping:
                    continue
                if attempts[index] < ATTEMPTS:
                    waiting.appendleft((index, job))
                else:
                    yield Answer(index, failed=f"its worker died {ATTEMPTS} times; {log} has what it said")
                workers[workers.index(worker)] = worker = _Worker(heard, log)
            elif "done" in message:
                yield Answer(index, record=message["done"])
            elif "failed" in message:
                yield Answer(index, failed=message["failed"])
            if waiting and not stopping:
                worker.give(waiting.popleft())
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A worker process, and a thread that puts what it says (None at its end) into `heard`."""

    def __init__(self, heard: Queue[tuple[_Worker, dict[str, Any] | None]], log: Path) -> None:
        self.job: tuple[int, Job] | None = None
        with log.open("ab") as errors:
            # A session of its own: Ctrl-C in the terminal reaches the parent alone, which stops its workers.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "convsmith.evidence.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    def give(self, job: tuple[int, Job]) -> None:
        self.job = job
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it died between two jobs; the listener says so
            self._process.stdin.write(json.dumps(job[1].message()) + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        self._process.terminate()

    def close(self) -> None:
        """End the process; one that is in the middle of a job saves it first."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _listen(self, heard: Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            heard.put((self, json.loads(line)))
        heard.put((self, None))
