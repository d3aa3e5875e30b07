"""Decoding in a process of its own, which is ended where it takes too long. What it does is in `decoder_process`."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import numpy as np

from convsmith.data.config import DecodeRules
from convsmith.data.preprocess import InputPixels
from convsmith.processes import python_module
from convsmith.serve.decoder_process import HEAD, READY, SECONDS
from convsmith.serve.form import Refused

START_SECONDS = 60.0  # that a process may take until it is ready, on a busy machine
PATIENCE = 4  # times the seconds of the processor that an image may take: for machines that are busy, or have no timer


class Decoder:
    """A process that decodes by `rules`; a new one takes the place of one that was ended. For one thread at a time."""

    def __init__(self, rules: DecodeRules, seconds: float = SECONDS) -> None:
        self._rules, self._seconds = DecodeRules.of(rules), seconds
        self._closed = self._is_ready = False
        self._process = self._start()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._end()

    def pixels(self, body: bytes | bytearray, content_type: str) -> InputPixels:
        """The image in a request, prepared; Refused where it cannot be read, or not within `seconds`."""
        if not self._is_ready and not self._becomes_ready():  # which is not the image's fault
            self._replace()
            raise Refused.for_now("the server cannot start its decoder at present")
        with self._ended_after(PATIENCE * self._seconds) as late:
            try:
                answer, content = self._ask(body, content_type)
            except (OSError, ValueError, EOFError):  # it has ended
                ended_by = self._replace()
                is_slow = late.is_set() or ended_by == -getattr(signal, "SIGPROF", 0)
                why = f"it takes longer than {self._seconds:g} seconds" if is_slow else "its decoder failed"
                raise Refused(422, f"the image cannot be read ({why}): send another one") from None
        if "refused" in answer:
            raise Refused(*answer["refused"])
        return InputPixels(np.frombuffer(content, np.uint8).reshape(1, *answer["shape"]))

    def _becomes_ready(self) -> bool:
        """Wait for the process to have started; whether it has, within START_SECONDS."""
        with self._ended_after(START_SECONDS), suppress(OSError, ValueError):
            self._is_ready = self._answers.readline() == READY
        return self._is_ready

    @contextmanager
    def _ended_after(self, seconds: float) -> Iterator[threading.Event]:
        """End the present process, not one that takes its place, after `seconds`; the event says that it was."""
        process, late = self._process, threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def _ask(self, body: bytes | bytearray, content_type: str) -> tuple[dict[str, Any], bytes]:
        kind = content_type.encode("latin-1")
        self._requests.write(HEAD.pack(len(kind), len(body)) + kind)
        self._requests.write(body)
        self._requests.flush()
        answer = json.loads(self._answers.readline())
        content = self._answers.read(size := math.prod(answer.get("shape", [0])))
        if len(content) < size:
            raise EOFError
        return answer, content

    def _start(self) -> subprocess.Popen[bytes]:
        # In a session of its own: Ctrl-C in the terminal reaches only the server, which then ends it.
        process = subprocess.Popen(
            [*python_module("convsmith.serve.decoder_process"), self._rules.model_dump_json(), str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin
        assert process.stdout
        self._requests, self._answers, self._is_ready = process.stdin, process.stdout, False
        return process

    def _replace(self) -> int:
        """End the process as `_end` does, and start another one; Refused where the server ends.

        Where none can be started, the next request tries again: the pipes of the old one are closed.
        """
        ended_by = self._end()
        if self._closed:
            raise Refused(503, "the server ends: try again later") from None
        with suppress(OSError):
            self._process = self._start()
        return ended_by

    def _end(self) -> int:
        """End the process; returns its exit code, which is -N if signal N had ended it before."""
        self._process.kill()
        with suppress(BrokenPipeError):  # it was ended before it had read all
            self._requests.close()
        self._answers.close()
        self._is_ready = False
        return self._process.wait()
