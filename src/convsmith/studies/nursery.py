"""A process that has imported all that a worker needs, and forks workers, which start at once and share its pages.

It computes nothing itself, since a process whose OpenMP threads have worked cannot be forked. Where no fork is safe
(macOS, Windows), each worker is a fresh process. Imports nothing heavy, so that a verb can start it before all else.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from typing import IO, Protocol

from convsmith.processes import python, python_module

WORKER = "convsmith.studies.worker"
CAN_FORK = sys.platform == "linux"


class Process(Protocol):
    """A worker: jobs go to `stdin`, messages come from `stdout`."""

    stdin: IO[str]
    stdout: IO[str]

    def terminate(self) -> None: ...

    def wait(self) -> object: ...


class _Forked:
    """A worker that the nursery has forked. Its end is the end of its `stdout`."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        self._pid, self.stdin, self.stdout = pid, stdin, stdout

    def terminate(self) -> None:
        with suppress(ProcessLookupError):  # the nursery, which leaves its number in use, has ended
            os.kill(self._pid, signal.SIGTERM)

    def wait(self) -> None:
        """Nothing: whoever reads `stdout` to its end has waited."""


class Nursery:
    """The process, from its start to `close`, or to the end of this one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            code = f"from convsmith.studies import nursery; nursery.serve({theirs.fileno()})"
            self._process = subprocess.Popen(
                python(code),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, errors: IO[bytes]) -> Process | None:
        """A worker whose output goes to `errors`; None if the nursery has died."""
        jobs, stdin = os.pipe()
        stdout, answers = os.pipe()
        try:
            socket.send_fds(self._socket, [b"w"], [jobs, answers, errors.fileno()])
            pid = int.from_bytes(self._socket.recv(8), "little")
        except OSError:
            pid = 0
        finally:
            os.close(jobs)
            os.close(answers)
        if not pid:
            os.close(stdin)
            os.close(stdout)
            return None
        return _Forked(pid, os.fdopen(stdin, "w", encoding="utf-8"), os.fdopen(stdout, encoding="utf-8"))

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def _nursery() -> Nursery:
    """The nursery of this process, started by the first call after the last `close`."""
    return Nursery()


def close() -> None:
    """End the nursery, if there is one; its workers go on until they have ended."""
    if _nursery.cache_info().currsize:
        _nursery().close()
        _nursery.cache_clear()


def prepare(jobs: int, backend: str) -> None:
    """Start the nursery, if a study of `jobs` runs at a time will fork workers: the earlier, the sooner it is ready."""
    if CAN_FORK and jobs > 1 and backend == "local":
        _nursery()


def start(errors: IO[bytes], forked: bool) -> Process:
    """A new worker, whose output goes to the file `errors`; with `forked`, from the nursery if there can be one."""
    if forked and CAN_FORK and (worker := _nursery().fork(errors)) is not None:
        return worker
    # In a session of its own: Ctrl-C in the terminal reaches only the parent, which stops its workers.
    return subprocess.Popen(  # type: ignore[return-value]
        python_module(WORKER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def serve(descriptor: int) -> None:
    """Import what a worker needs, then fork one for each request, until the other end of the socket is closed.

    Workers that have ended are not waited for, so that their numbers are not given to other processes meanwhile.
    """
    import matplotlib.figure  # noqa: F401 (which a training imports late)

    from convsmith.studies import worker

    with socket.socket(fileno=descriptor) as requests:
        while True:
            request, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
            if not request:
                return
            if (pid := os.fork()) == 0:
                break
            for one in descriptors:
                os.close(one)
            requests.send(pid.to_bytes(8, "little"))
    os.setsid()
    for number, one in enumerate(descriptors):
        os.dup2(one, number)
        os.close(one)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
    worker.main_as_process()
