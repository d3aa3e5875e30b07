"""Arrays that a thread brings to the device: order, bound, errors and the end of the thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convsmith.data.ahead import AHEAD, ahead

CPU = torch.device("cpu")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("convsmith-ahead")]


def numbered(count: int, gathered: list[int]) -> Iterator[NDArray[np.int64]]:
    for number in range(count):
        gathered.append(number)
        yield np.full(3, number)


def eventually_no_thread() -> bool:
    end = time.monotonic() + 5
    while threads() and time.monotonic() < end:
        time.sleep(0.001)
    return not threads()


@pytest.mark.parametrize("most", [1, 2, 5])
def test_all_come_in_order_and_few_wait(most: int) -> None:
    gathered: list[int] = []
    for number, tensor in enumerate(ahead(numbered(20, gathered), CPU, most)):
        assert tensor.tolist() == [number] * 3
        assert gathered == list(range(len(gathered)))
        assert len(gathered) <= number + 1 + most
    assert number == 19
    assert eventually_no_thread()


def test_they_are_gathered_while_the_caller_computes() -> None:
    gathered: list[int] = []
    arrays = ahead(numbered(20, gathered), CPU)
    next(arrays)
    end = time.monotonic() + 5
    while len(gathered) < 1 + AHEAD and time.monotonic() < end:
        time.sleep(0.001)
    assert len(gathered) == 1 + AHEAD


def test_an_error_reaches_the_caller_at_its_place() -> None:
    def broken() -> Iterator[NDArray[np.int64]]:
        yield np.zeros(1, np.int64)
        raise OSError("the disk is gone")

    arrays = ahead(broken(), CPU)
    next(arrays)
    with pytest.raises(OSError, match="the disk is gone"):
        next(arrays)
    assert eventually_no_thread()


def test_who_leaves_early_ends_the_thread() -> None:
    gathered: list[int] = []
    arrays = ahead(numbered(10**9, gathered), CPU)
    next(arrays)
    arrays.close()  # type: ignore[attr-defined]
    assert eventually_no_thread()
    assert len(gathered) <= 2 + AHEAD


def test_none_at_all() -> None:
    assert list(ahead(iter(()), CPU)) == []
