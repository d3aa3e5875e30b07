"""Commands in copies of a process that has imported everything: such a start takes 20 ms, a fresh one 3 to 6 s.

For tests of what a command does, where it may be killed. What the start itself does (imports, `python -m`, what lies in
the working folder) is for tests that start a real one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

#: One request a line on stdin: the answers are the child's process id, and then its exit code.
SERVER = """
import json, os, signal, sys, traceback
import cleanlab, matplotlib.figure, sklearn.datasets, torch._dynamo  # what a training imports late
import convsmith.report.run, convsmith.run, convsmith.studies.ablation, convsmith.studies.crossval
from convsmith import cli

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for pytest
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(job["seconds"])
    os.environ.clear()
    os.environ.update(job["environ"])
    os.chdir(job["folder"])
    for number, path in enumerate([os.devnull, job["out"], job["err"]]):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.argv[:] = ["convsmith", *job["arguments"]]
    try:
        exec(job["before"], {"__name__": "before"})
        cli.run()
    except BaseException:
        traceback.print_exc()
    os._exit(1)
"""

#: Patches that end the process at a moment.
KILLER = """
import os, signal
from convsmith.training import loop, checkpoint
moment = {moment!r}
if moment.isdigit():
    original = loop.step
    def step(state, batch, recipe):
        if state.step == int(moment):
            os.kill(os.getpid(), {number})
        original(state, batch, recipe)
    loop.step = step
elif moment.startswith("share"):
    number, original = int(moment[5:]), checkpoint._share
    def share(source, target):
        global number
        number -= 1
        original(source, target)
        if number == 0:
            os.kill(os.getpid(), {number})
    checkpoint._share = share
"""


def kill_at(moment: str, number: int = signal.SIGKILL) -> str:
    """Code by which a process sends itself a signal: before a step, or while checkpoints are exchanged (`share2`)."""
    return KILLER.format(moment=moment, number=int(number))


@dataclasses.dataclass
class Command:
    """A command that runs; its output is read from files, since nobody empties a pipe meanwhile."""

    pid: int
    out: Path
    err: Path
    answers: IO[str]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its end; a command that exceeded its time was ended by SIGALRM."""
        code = int(self.answers.readline())
        said = [path.read_text(encoding="utf-8", errors="replace") for path in (self.out, self.err)]
        assert code != -signal.SIGALRM, f"it took too long\n{said[0]}\n{said[1]}"
        return subprocess.CompletedProcess([], code, *said)


class Commands:
    """A server of copies. One command runs at a time; those that it starts itself are real processes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="convsmith-tests-")
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
        )
        self._number = 0

    def start(self, folder: Path, arguments: Sequence[str | Path], *, before: str = "", seconds: int = 300) -> Command:
        """Start `convsmith ARGUMENTS` in `folder`, after Python has run the code `before` in the new process."""
        self._number += 1
        out, err = (Path(self._folder.name, f"{self._number}.{name}") for name in ("out", "err"))
        job = {
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "before": before,
            "seconds": seconds,
            "environ": dict(os.environ),
            "out": str(out),
            "err": str(err),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(job), file=self._server.stdin, flush=True)
        return Command(int(self._server.stdout.readline()), out, err, self._server.stdout)

    def run(self, folder: Path, arguments: Sequence[str | Path], before: str = "") -> subprocess.CompletedProcess[str]:
        return self.start(folder, arguments, before=before).wait()

    def close(self) -> None:
        with self._server:
            self._server.kill()  # unloading torch would take it seconds
        self._folder.cleanup()
