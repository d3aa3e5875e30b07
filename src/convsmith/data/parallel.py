"""Maps a function over a stream in threads, with results in order and bounded memory. Knows nothing of images."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 32  # items per task, so that the overhead of a task is negligible beside decoding


Progress = Callable[[int, int], None]


def thread_map(
    function: Callable[[Item], Result], items: Iterable[Item], progress: Progress | None = None, total: int = 0
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, and call ``progress(done, total)`` from time to time.

    `items` is consumed in the caller's thread, at most a few chunks ahead of the results, so it need neither fit
    into memory nor be thread-safe. Pillow releases the GIL while it decodes.
    """

    def work(chunk: list[Item]) -> list[Result]:
        return [function(item) for item in chunk]

    workers = os.cpu_count() or 1
    stream = iter(items)
    pending: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="convsmith-decode")
    done = 0
    try:
        while (chunk := list(islice(stream, CHUNK))) or pending:
            if chunk:
                pending.append(pool.submit(work, chunk))
            if not chunk or len(pending) > 2 * workers:
                for result in pending.popleft().result():
                    yield result
                    done += 1
                    if progress and (done % 256 == 0 or done == total):
                        progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
