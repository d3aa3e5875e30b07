"""The open connections of the server: who is closed where there are too many. Requests are handled in `app`.

A client that does not end what it began costs a connection and the bytes that it sent. Refusing newcomers would let a
few such clients keep all others out, so newcomers are let in, and the slowest unfinished one makes room.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from convsmith.runtime import return_freed_memory
from convsmith.serve.form import MAX_BYTES, MAX_FORM

MAX_CONNECTIONS = 500  # that wait for their client; most systems allow a process 1,024 open files
MAX_UNFINISHED = 16 * MAX_BYTES  # bytes of all bodies that have not arrived completely
FAIR = 0.25  # of either; a client (IP address) with more is the first to lose some
ROOM = 0.1  # of either that is made at once, so that not every newcomer starts a search
UPLOAD_SECONDS = 30.0
CREDIT = 2**16  # bytes that each connection counts as having sent in its first second, before it could send any


class Connections:
    """The open connections; with more than `most` unfinished uploads, or more of their bytes, some are closed.

    The slowest are, and before them those of a client that has more than its fair part. Who holds fewer bytes than
    others do on average is closed for bytes last, since that would make little room.
    """

    def __init__(self, most: int = MAX_CONNECTIONS, most_bytes: int = MAX_UNFINISHED) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._open: set[Connection] = set()
        self._bytes = 0  # of the requests of all open connections
        self._passed = 0  # bytes since memory was returned
        self._is_flood = False

    def __call__(self, *arguments: Any, **settings: Any) -> Connection:
        """A new connection, for uvicorn."""
        return Connection(self, *arguments, **settings)

    def add(self, connection: Connection) -> None:
        self._open.add(connection)
        if len(self._open) > self._most:
            self._make_room(lambda other: 1, self._most)

    def remove(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._bytes -= connection.size
        if self._passed > self._most_bytes or (self._is_flood and not self._open):
            self._passed, self._is_flood = 0, bool(self._open)
            connection.loop.call_later(1, return_freed_memory)  # when what was sent has been freed

    def count(self, more: int) -> None:
        """Note bytes that have arrived, and close uploads until those of the unfinished ones are below the bound."""
        self._bytes += more
        self._passed += more
        if self._bytes > self._most_bytes:
            self._make_room(lambda other: other.size, self._most_bytes)

    def _make_room(self, cost: Callable[[Connection], int], most: int) -> None:
        """Close unfinished connections until ROOM is made, if the sum of their costs is larger than `most`."""
        costs = {other: cost(other) for other in self._open if other.unfinished}
        if (total := sum(costs.values())) <= most:
            return
        by_client: Counter[str] = Counter()
        for connection, part in costs.items():
            by_client[connection.host] += part
        average = total / len(costs)

        def order(other: Connection) -> tuple[bool, bool, float]:
            return by_client[other.host] <= FAIR * most, costs[other] < average, other.rate

        for victim in sorted(costs, key=order):
            if total <= most - int(ROOM * most):
                return
            total -= costs[victim]
            self.remove(victim)
            victim.transport.abort()


class Connection(H11Protocol):
    """A connection that knows how fast it sends. If the head of a request takes too long, it is closed."""

    def __init__(self, connections: Connections, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._all = connections
        self.size = 0  # bytes of the request so far, as far as they are kept

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.host = self.client[0] if self.client else ""
        self._since = self.loop.time()
        self._deadline = self.loop.call_later(UPLOAD_SECONDS, self._hang_up)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before, self.size = self.size, min(self.size + len(data), MAX_FORM)
        super().data_received(data)
        self._all.count(self.size - before)

    def shutdown(self) -> None:
        """The server ends: it waits for answers, but not for those who have not even asked."""
        if self.unfinished:
            self.transport.abort()
        else:
            super().shutdown()

    @property
    def unfinished(self) -> bool:
        """Whether the client has not sent its whole request, or has been answered and has not gone."""
        sending = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return sending or self.cycle is None or self.cycle.response_complete

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return (self.size + CREDIT) / (self.loop.time() - self._since + 1)

    def _hang_up(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.close()
