from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from convsmith.data.parallel import CHUNK, thread_map


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
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("convsmith-decode")]


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(thread_map(lambda number: 1 / (number - 50), range(100)))
