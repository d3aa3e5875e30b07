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
QUEUE_BYTES = 4 * MAX_BYTES  # of all that wait

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

    How many uploads a client has in the line, and how long each takes, therefore keeps no other client waiting. Of
    clients that have had the same time, and of the uploads of one client, the smallest is next: it is likely to cost
    the others least. An upload without an image that can be read counts as one that took longest: who floods the line
    sends such. It is fair queueing by virtual time (Demers, Keshav and Shenker 1989, "Analysis and simulation of a fair
    queueing algorithm"). It is used in one event loop; only `compute` runs in a thread of its own.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "answers")
        self._waiting: list[Place] = []
        self._is_busy = False
        self._now = 0.0  # virtual time: the seconds that each client in the line could have had by now
        self._had: dict[str, float] = {}  # seconds, of clients that had more

    def enter(self, client: str, size: int, compute: Callable[[], Answer]) -> asyncio.Future[Answer]:
        """Queue an upload for its answer: the result or exception of `compute`, or Refused where the line is full.

        A full line loses the place of whoever fills it, or else that which would be last. Cancelling the answer gives
        the place up.
        """
        place = Place(client, size, compute, asyncio.get_running_loop().create_future())
        place.answer.add_done_callback(lambda _: self._leave(place))
        self._waiting.append(place)
        while len(self._waiting) > QUEUE or sum(one.size for one in self._waiting) > QUEUE_BYTES:
            last = self._last()
            self._waiting.remove(last)
            if not last.answer.done():  # a cancelled answer leaves the line only in the loop's next turn
                last.answer.set_exception(Refused.for_now("the server is busy"))
        self._start_next()
        return place.answer

    def _turn(self, place: Place) -> tuple[float, int]:
        """Sorts by whose turn it is: the client that has had least time, and then what is likely to take least."""
        return max(self._now, self._had.get(place.client, 0.0)), place.size

    def _last(self) -> Place:
        """The last place of a client that has most of the line, or else of all; the newest of equals."""
        counts = Counter(place.client for place in self._waiting)

        def order(number: int) -> tuple[bool, tuple[float, int], int, int]:
            place = self._waiting[number]
            places = counts[place.client]
            return places > len(self._waiting) / 2, self._turn(place), places, number

        return self._waiting[max(range(len(self._waiting)), key=order)]

    def _leave(self, place: Place) -> None:
        if place in self._waiting:
            self._waiting.remove(place)

    def _start_next(self) -> None:
        if self._is_busy or not self._waiting:
            return
        place = min(self._waiting, key=self._turn)
        self._waiting.remove(place)
        self._now, self._is_busy = self._turn(place)[0], True
        loop = asyncio.get_running_loop()
        began = loop.time()
        running = loop.run_in_executor(self._thread, place.compute)
        running.add_done_callback(lambda done: self._finish(place, loop.time() - began, done))

    def _finish(self, place: Place, seconds: float, done: asyncio.Future[Answer]) -> None:
        self._is_busy = False
        error = done.exception()  # asked for even if nobody waits any more, or asyncio complains
        is_at_fault = isinstance(error, Refused) and error.status < 500
        self._had[place.client] = self._now + (SECONDS if is_at_fault else seconds)
        self._had = {client: had for client, had in self._had.items() if had > self._now}
        if not place.answer.done():
            if error is None:
                place.answer.set_result(done.result())
            else:
                place.answer.set_exception(error)
        self._start_next()
