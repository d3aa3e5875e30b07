from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from convsmith.data.parallel import CHUNK, CHUNK_BYTES, IN_FLIGHT, thread_map


def test_results_come_in_order_whatever_takes_longest() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.001 if number < CHUNK else 0)
        return number * number

    assert list(thread_map(slow_at_first, range(300))) == [number * number for number in range(300)]
    assert list(thread_map(slow_at_first, [])) == []


def test_the_stream_is_read_in_the_callers_thread_a_bounded_way_ahead() -> None:
    taken: list[int] = []

    def stream() -> Iterator[int]:
        for number in range(100_000):
            assert threading.current_thread() is threading.main_thread()
            taken.append(number)
            yield number

    results = thread_map(str, stream())
    assert next(results) == "0"
    assert len(taken) < 100_000 / 10
    results.close()  # type: ignore[attr-defined]


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(thread_map(lambda number: 1 / (number - 50), range(100)))


def test_whoever_leaves_early_waits_for_no_thread() -> None:
    free = threading.Event()
    begun: list[int] = []

    def stuck(number: int) -> int:
        begun.append(number)
        if number >= CHUNK:
            free.wait()
        return number

    results = thread_map(stuck, range(10 * CHUNK))
    try:
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
    finally:
        free.set()
    for thread in threading.enumerate():
        if thread.name.startswith("convsmith-decode"):
            thread.join()
    assert len(begun) <= CHUNK + (os.cpu_count() or 1) * CHUNK
    assert len([number for number in begun if number >= CHUNK]) <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("item", "result_bytes"), [(bytes(2**20), 0), (b"", 2**20)])
def test_few_large_items_and_results_are_in_flight(item: bytes, result_bytes: int) -> None:
    taken = 0

    def stream() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield item

    results = thread_map(len, stream(), result_bytes=result_bytes)
    next(results)
    assert taken <= (IN_FLIGHT + CHUNK_BYTES) / 2**20
    results.close()  # type: ignore[attr-defined]
