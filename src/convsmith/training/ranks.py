"""The processes of one training, each of which computes a share of every batch. Knows neither runs nor configs.

A process alone is the group of one rank: nothing is sent, and every function returns what it was given.

Gradients are summed by one reduction of one flat tensor after the backward pass, not by DistributedDataParallel.
That one knows the parameters that are trained when it is built and the forward pass that it wraps: it would have to be
built anew whenever a stage is unfrozen, would not see the head that is trained alone on kept features, divides by the
number of processes although the last shares are smaller, and puts a prefix before the names in checkpoints. What it
gains, reductions that run during the backward pass, costs less than that: the reduction takes 4 bytes per parameter.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from convsmith.errors import EndedElsewhere, RunFailed, UserError
from convsmith.launch import Place, place

WAIT = timedelta(days=2)  # while the first rank of a machine decodes the images, the others wait
Value = TypeVar("Value")


class Ranks:
    """The processes that train together, seen from one of them, at `place`.

    What is not on the device (counts, words, decisions, logits of val images) goes over `_host`, a group of its own.
    All methods but `share` are collective: each rank must call them, in the same order. A rank that has ended makes
    the others' next call fail, with RunFailed on the first rank and EndedElsewhere on the others.
    """

    def __init__(self, place: Place, host: dist.ProcessGroup | None = None) -> None:
        self.place = place
        self._host = host
        assert self.alone == (host is None)

    @property
    def alone(self) -> bool:
        return self.place.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, tracks, shows and decides."""
        return self.place.rank == 0

    @property
    def size(self) -> int:
        return self.place.size

    def share(self, values: NDArray[Any]) -> NDArray[Any]:
        """This rank's part of an array: the parts follow each other, and their lengths differ by at most one."""
        return values if self.alone else np.array_split(values, self.size)[self.place.rank]

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over all ranks, which all train the same parameters."""
        if self.alone:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.sum(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """Replace a tensor on the device by its sum over all ranks, which has the same bits on each of them."""
        if not self.alone:
            with self._connected():
                dist.all_reduce(values)
        return values

    @torch.no_grad()
    def average_buffers(self, models: Sequence[nn.Module]) -> None:
        """Replace each float buffer, such as the running statistics of batch norm, by its mean over all ranks.

        The sums are in double precision, in which the mean of equal values is that value: frozen ones do not drift.
        """
        buffers = [value for model in models for value in model.buffers() if value.is_floating_point()]
        if self.alone or not buffers:
            return
        flat = torch.cat([value.flatten().double() for value in buffers])
        parts = self.sum(flat).div_(self.size).split([value.numel() for value in buffers])
        for value, part in zip(buffers, parts, strict=True):
            value.copy_(part.view_as(value))

    def seed(self, key: Sequence[int], generator: torch.Generator) -> None:
        """Seed the generator, and torch's global ones, which dropout uses, for one step, differently on each rank.

        So a resumed run needs no generator of any rank but the first.
        """
        if not self.alone:
            seed = int(np.random.SeedSequence([*key, self.place.rank]).generate_state(1, np.uint64)[0] >> 1)
            generator.manual_seed(seed)
            torch.manual_seed(seed)

    @torch.no_grad()
    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on the device by those of the first rank."""
        if self.alone:
            return
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            with self._connected():
                dist.broadcast(sent, 0)
            tensor.copy_(sent)

    def every(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of each rank, in the order of ranks."""
        own = torch.tensor(numbers, dtype=torch.float64)
        if self.alone:
            return [own.tolist()]
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._connected():
            dist.all_gather(found, own, group=self._host)
        return [values.tolist() for values in found]

    def every_value(self, value: Any) -> list[Any]:
        """A JSON value of each rank, in the order of ranks."""
        if self.alone:
            return [value]
        own = _encoded(value)
        lengths = [int(length) for (length,) in self.every([len(own)])]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with self._connected():
            dist.all_gather(found, padded, group=self._host)
        return [_decoded(one[:length]) for one, length in zip(found, lengths, strict=True)]

    def told(self, compute: Callable[[], Value]) -> Value:
        """What the first rank computes, a JSON value, on every rank."""
        value = compute() if self.first else None
        if self.alone:
            assert value is not None
            return value
        sent = self.told_bytes(_encoded(value) if self.first else None)
        return value if self.first else _decoded(sent)  # type: ignore[return-value]

    def told_bytes(self, data: Tensor | None) -> Tensor:
        """Bytes uint8 [N] of the first rank, on every rank."""
        length = torch.tensor([0 if data is None else len(data)], dtype=torch.int64)
        with self._connected():
            dist.broadcast(length, 0, group=self._host)
            data = torch.empty(int(length), dtype=torch.uint8) if data is None else data
            dist.broadcast(data, 0, group=self._host)
        return data

    def joined_rows(self, rows: NDArray[np.float32], total: int) -> NDArray[np.float32]:
        """The rows [n, K] of all ranks, each of which has its `share` of `total` of them; on the first rank alone."""
        if self.alone:
            return rows
        lengths = [len(part) for part in np.array_split(np.empty(total), self.size)]
        padded = torch.zeros(max(lengths), rows.shape[1])
        padded[: len(rows)] = torch.from_numpy(rows)
        found = [torch.empty_like(padded) for _ in lengths] if self.first else None
        with self._connected():
            dist.gather(padded, found, 0, group=self._host)
        return np.concatenate([one[:length].numpy() for one, length in zip(found or [padded], lengths, strict=False)])

    def agreed(self, received: signal.Signals | None) -> signal.Signals | None:
        """The signal that some rank has received, so that all of them stop at the same step; None if none has."""
        if self.alone:
            return received
        largest = max(number for (number,) in self.every([float(received or 0)]))
        return signal.Signals(int(largest)) if largest else None

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that each rank runs for itself. If one fails, all end, and the first rank says why."""
        if self.alone:
            yield
            return
        error: UserError | RunFailed | None = None
        try:
            yield
        except (UserError, RunFailed) as found:
            error = found
        texts = self.every_value(str(error) if error else None)
        failed = [(rank, text) for rank, text in enumerate(texts) if text is not None]
        if not failed:
            return
        if self.first:
            rank, text = failed[0]
            raise error or UserError(f"rank {rank} of {self.size}: {text}")
        raise EndedElsewhere

    def one_by_one(self) -> AbstractContextManager[None]:
        """A block that the first rank of each machine runs before the others of that machine do."""
        return nullcontext() if self.alone else self._one_by_one()

    @contextmanager
    def _one_by_one(self) -> Iterator[None]:
        if self.place.local_rank:
            self._wait()
        try:
            yield
        finally:
            if not self.place.local_rank:
                self._wait()

    def _wait(self) -> None:
        with self._connected():
            dist.barrier(group=self._host)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """A context in which a lost connection ends this process with a line of the first rank."""
        try:
            yield
        except RuntimeError as error:
            if not self.first:
                raise EndedElsewhere from error
            raise RunFailed(
                "another process of this training has ended or cannot be reached; the last checkpoint is kept. "
                "torchrun --max-restarts N starts all of them again, and they go on from it"
            ) from error


ALONE = Ranks(Place())


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun has started, connected; `ALONE` where there is one process. UserError if they fail to be.

    Over gloo on the CPU, and over NCCL between CUDA devices, of which each rank takes the one of its local rank.
    """
    here = place()
    if here.size == 1:
        yield Ranks(here)
        return
    if not dist.is_available():
        raise UserError("this PyTorch was built without torch.distributed: train in one process, without torchrun")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=dist.default_pg_timeout))  # type: ignore[attr-defined]
        if here.size == here.local_size:
            # The store outlives a restart, and knows where the processes of before could be reached. On several
            # machines, whose agents count restarts apart, the c10d rendezvous makes a new one each time.
            store = dist.PrefixStore(f"attempt {here.restarts}", store)  # type: ignore[attr-defined]
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
        host = dist.new_group(backend="gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"rank {here.rank} cannot reach the others at {where} ({str(error).splitlines()[0]})") from None
    try:
        assert isinstance(host, dist.ProcessGroup)
        yield Ranks(here, host)
    finally:
        dist.destroy_process_group()


def _encoded(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(data: Tensor) -> Any:
    return json.loads(data.numpy().tobytes())
