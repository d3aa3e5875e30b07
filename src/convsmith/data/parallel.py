"""Map a function over a stream in threads: results in order, memory bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 32  # items a task: enough that handing out tasks costs nothing beside decoding


def thread_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order.

    `items` is consumed in the caller's thread, at most a few chunks ahead of what was yielded, so it
    need neither fit into memory nor be safe in threads. Pillow releases the GIL while it decodes.
    """

    def work(chunk: list[Item]) -> list[Result]:
        return [function(item) for item in chunk]

    workers = os.cpu_count() or 1
    stream = iter(items)
    pending: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="convsmith-decode")
    try:
        while chunk := list(islice(stream, CHUNK)):
            pending.append(pool.submit(work, chunk))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
