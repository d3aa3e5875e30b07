"""A process that runs jobs one after the other: ``python -m convsmith.studies.worker``. `runner` schedules them.

It reads one job per line (JSON) from stdin and writes JSON lines to stdout: ``{"progress": {...}}``, then one of
``{"done": record}``, ``{"failed": message}``, ``{"interrupted": true}``. SIGTERM saves the running job and stops it.
The end of stdin does the same and ends the worker, so that none outlives the process that feeds it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import Any, NoReturn

from convsmith.errors import RunFailed, UserError
from convsmith.memory import explain_memory_errors
from convsmith.runtime import Interrupts
from convsmith.studies import fold_job, trial_job

#: kind of job -> what runs it, given message and interrupts and, in the user's own process, parts
KINDS: dict[str, Callable[..., Generator[dict[str, Any], None, dict[str, Any] | None]]] = {
    "fold": fold_job.perform,
    "trials": trial_job.perform,
}


def perform(message: dict[str, Any], interrupts: Interrupts, parts: Any = None) -> Iterator[dict[str, Any]]:
    """Run a job; yields its progress and finally how it ended. A failure of the job itself is an answer, not an error.

    `parts` are the objects that the user passed in, for jobs in the user's own process.
    """
    try:
        with explain_memory_errors("in this run of the study"):
            record = yield from KINDS[message["kind"]](message, interrupts, *([parts] if parts else []))
    except (RunFailed, UserError) as error:
        yield {"failed": str(error)}
    else:
        yield {"interrupted": True} if record is None else {"done": record}


def main() -> None:
    # The output of libraries must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while line := lines.get():
        with Interrupts() as interrupts:
            for answer in perform(json.loads(line), interrupts):
                send(answer)


def main_as_process() -> NoReturn:
    """`main` as all that a process does, which then ends at once, as `cli.run` does."""
    code = 1
    try:
        main()
        code = 0
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def _listen(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put("")  # ends the loop if no job is running
    os.kill(os.getpid(), signal.SIGTERM)  # stops the running job, if there is one


if __name__ == "__main__":
    main_as_process()
