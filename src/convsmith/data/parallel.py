"""Maps a function over a stream in threads, with results in order and bounded memory. Knows nothing of images."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 32  # items per task, so that the overhead of a task is negligible beside decoding
CHUNK_BYTES = 2**22  # of items and results of a task, roughly
IN_FLIGHT = 2**26  # bytes of items and results that wait, beyond which no task is begun


Progress = Callable[[int, int], None]


def thread_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    progress: Progress | None = None,
    total: int = 0,
    result_bytes: int = 0,
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, and call ``progress(done, total)`` from time to time.

    `items` is consumed in the caller's thread, at most a few chunks ahead of the results, so it need neither fit
    into memory nor be thread-safe; fewer where items are long bytes, or results have many `result_bytes`. Pillow
    releases the GIL while it decodes. Whoever leaves early, as a signal makes one do, does not wait for the threads:
    they end with the items that they have begun.
    """
    left = threading.Event()

    def work(chunk: list[Item]) -> list[Result]:
        return [function(item) for item in chunk if not left.is_set()]

    workers = os.cpu_count() or 1
    pending: deque[tuple[Future[list[Result]], int]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="convsmith-decode")
    done = waiting = 0
    tasks = chunks(items, result_bytes)
    try:
        while (chunk := next(tasks, None)) or pending:
            if chunk:
                pending.append((pool.submit(work, chunk[0]), chunk[1]))
                waiting += chunk[1]
            while pending and (not chunk or len(pending) > 2 * workers or waiting > IN_FLIGHT):
                future, size = pending.popleft()
                for result in future.result():
                    yield result
                    done += 1
                    if progress and (done % 256 == 0 or done == total):
                        progress(done, total)
                waiting -= size
    finally:
        left.set()
        pool.shutdown(wait=False, cancel_futures=True)


def chunks(items: Iterable[Item], result_bytes: int) -> Iterator[tuple[list[Item], int]]:
    """The items in lists, each with the bytes that it and its results take."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += result_bytes + (len(item) if isinstance(item, bytes) else 0)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size
