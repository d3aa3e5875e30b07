"""Brings arrays to the device ahead of the step that needs them, from one thread. Knows no images and no epochs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

AHEAD = 2  # arrays that wait: one is ready while the next is gathered


def ahead(arrays: Iterable[NDArray[Any]], device: torch.device, most: int = AHEAD) -> Iterator[Tensor]:
    """Each of the arrays as a tensor on the device, in order, with at most `most` that wait.

    `arrays` is consumed in a thread of its own, so that it may gather lazily, and an error of it reaches the caller at
    its place in the order. Whoever leaves early does not wait for the thread, which ends with the array that it has
    begun. To CUDA the arrays go through pinned memory and by a stream of their own, beside the computation; torch keeps
    pinned memory until the copy has ended.
    """
    source, stream = iter(arrays), torch.cuda.Stream() if device.type == "cuda" else None
    pool = ThreadPoolExecutor(1, thread_name_prefix="convsmith-ahead")

    def following() -> tuple[Tensor, Any] | None:
        if (array := next(source, None)) is None:
            return None
        if stream is None:
            return torch.from_numpy(array).to(device), None
        with torch.cuda.stream(stream):  # and on its device, which a new thread would not know
            return torch.from_numpy(array).pin_memory().to(device, non_blocking=True), stream.record_event()

    waiting: deque[Future[tuple[Tensor, Any] | None]] = deque(pool.submit(following) for _ in range(most))
    try:
        while (found := waiting.popleft().result()) is not None:
            tensor, copied = found
            waiting.append(pool.submit(following))
            if stream is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(copied)
                tensor.record_stream(current)
            yield tensor
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on the device, for which neither the host nor the device's queue waits."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
