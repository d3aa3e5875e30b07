"""The line of uploads that wait for an answer, and who is next in it. Computes nothing and reads no connection."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from convsmith.serve.decoder_process import SECONDS
from convsmith.serve.form import MAX_BYTES, Refused

QUEUE = 64  # uploads that wait for the one being processed
QUEUE_BYTES = 8 * MAX_BYTES  # of all that wait
RETRY_SECONDS = 2

Answer = dict[str, Any]


@dataclass(eq=False)
class Place:
    """A complete upload of `size` bytes from `client`."""

    client: str
    size: int
    compute: Callable[[], Answer]
    answer: asyncio.Future[Answer]


class RequestQueue:
    """Computes one answer at a time; the time that this takes is divided evenly between the clients in the line.

    How many uploads a client has in the line, and how long each takes, therefore keeps no other client waiting. An
    upload without an image that can be read counts as one that took longest: who floods the line sends such. It is
    fair queueing by virtual time (Demers, Keshav and Shenker 1989, "Analysis and simulation of a fair queueing
    algorithm"). It is used in one event loop; only `compute` runs in a thread of its own.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "answers")
        self._waiting: list[Place] = []
        self._is_busy = False
        self._now = 0.0  # virtual time: the seconds that each client in the line could have had by now
        self._had: dict[str, float] = {}  # seconds, of clients that had more

    def enter(self, client: str, size: int, compute: Callable[[], Answer]) -> asyncio.Future[Answer]:
        """Queue an upload for its answer: the result or exception of `compute`, or Refused where the line is full.

        A full line loses the place that would be last. Cancelling the answer gives the place up.
        """
        place = Place(client, size, compute, asyncio.get_running_loop().create_future())
        place.answer.add_done_callback(lambda _: self._leave(place))
        self._waiting.append(place)
        while len(self._waiting) > QUEUE or sum(one.size for one in self._waiting) > QUEUE_BYTES:
            last = self._last()
            self._waiting.remove(last)
            if not last.answer.done():  # a cancelled answer leaves the line only in the loop's next turn
                busy = Refused(503, f"the server is busy: try again in {RETRY_SECONDS} seconds", RETRY_SECONDS)
                last.answer.set_exception(busy)
        self._start_next()
        return place.answer

    def _start_of(self, place: Place) -> float:
        return max(self._now, self._had.get(place.client, 0.0))

    def _last(self) -> Place:
        """The newest place of a client that has most of the line, or else of the one that has had most time."""
        counts = Counter(place.client for place in self._waiting)

        def order(number: int) -> tuple[bool, float, int, int]:
            place = self._waiting[number]
            places = counts[place.client]
            return places > len(self._waiting) / 2, self._start_of(place), places, number

        return self._waiting[max(range(len(self._waiting)), key=order)]

    def _leave(self, place: Place) -> None:
        if place in self._waiting:
            self._waiting.remove(place)

    def _start_next(self) -> None:
        if self._is_busy or not self._waiting:
            return
        place = min(self._waiting, key=self._start_of)
        self._waiting.remove(place)
        self._now, self._is_busy = self._start_of(place), True
        loop = asyncio.get_running_loop()
        began = loop.time()
        running = loop.run_in_executor(self._thread, place.compute)
        running.add_done_callback(lambda done: self._finish(place, loop.time() - began, done))

    def _finish(self, place: Place, seconds: float, done: asyncio.Future[Answer]) -> None:
        self._is_busy = False
        error = done.exception()  # asked for even if nobody waits any more, or asyncio complains
        self._had[place.client] = self._now + (SECONDS if isinstance(error, Refused) else seconds)
        self._had = {client: had for client, had in self._had.items() if had > self._now}
        if not place.answer.done():
            if error is None:
                place.answer.set_result(done.result())
            else:
                place.answer.set_exception(error)
        self._start_next()
