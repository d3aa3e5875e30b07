"""The line of uploads that wait for an answer, and who is next in it. Computes nothing and reads no connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from convsmith.serve.form import MAX_BYTES, Refused

QUEUE = 32  # uploads that wait for the one being processed
QUEUE_BYTES = 8 * MAX_BYTES  # of all that wait
RETRY_SECONDS = 2

Answer = dict[str, Any]


@dataclass(eq=False)
class Place:
    """A complete upload of `size` bytes from `client`; `round` is how many others come before it at least."""

    client: str
    size: int
    round: int
    compute: Callable[[], Answer]
    answer: asyncio.Future[Answer]


class RequestQueue:
    """Computes one answer at a time. Clients take turns, however many uploads each of them has in the line.

    It is used in one event loop; only `compute` runs in a thread of its own.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "answers")
        self._waiting: list[Place] = []
        self._round = 0
        self._is_busy = False

    def enter(self, client: str, size: int, compute: Callable[[], Answer]) -> asyncio.Future[Answer]:
        """Queue an upload for its answer: the result or exception of `compute`, or Refused where the line is full.

        A full line loses the place that would be last: one of a client with many, if there is such a client.
        Cancelling the answer gives the place up.
        """
        ahead = sum(place.client == client for place in self._waiting)
        place = Place(client, size, self._round + ahead, compute, asyncio.get_running_loop().create_future())
        place.answer.add_done_callback(lambda _: self._leave(place))
        self._waiting.append(place)
        while len(self._waiting) > QUEUE or sum(one.size for one in self._waiting) > QUEUE_BYTES:
            last = max(enumerate(self._waiting), key=lambda numbered: (numbered[1].round, numbered[0]))[1]
            self._waiting.remove(last)
            busy = Refused(503, f"the server is busy: try again in {RETRY_SECONDS} seconds", RETRY_SECONDS)
            last.answer.set_exception(busy)
        self._start_next()
        return place.answer

    def _leave(self, place: Place) -> None:
        if place in self._waiting:
            self._waiting.remove(place)

    def _start_next(self) -> None:
        if self._is_busy or not self._waiting:
            return
        place = min(self._waiting, key=lambda one: one.round)
        self._waiting.remove(place)
        self._round, self._is_busy = place.round, True
        running = asyncio.get_running_loop().run_in_executor(self._thread, place.compute)
        running.add_done_callback(lambda done: self._finish(place, done))

    def _finish(self, place: Place, done: asyncio.Future[Answer]) -> None:
        self._is_busy = False
        if (error := done.exception()) is not None:  # even if nobody waits any more, it must be looked at
            if not place.answer.done():
                place.answer.set_exception(error)
        elif not place.answer.done():
            place.answer.set_result(done.result())
        self._start_next()
