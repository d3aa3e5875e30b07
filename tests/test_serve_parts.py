"""The parts of the server alone: the line, the connections and the process that decodes."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from convsmith.data.config import DecodeRules
from convsmith.data.faults import decode_errors
from convsmith.processes import python_module

for package in ("starlette", "uvicorn", "python_multipart"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'convsmith[serve]'")

from convsmith.serve import decoder as decoding  # noqa: E402
from convsmith.serve import decoder_process  # noqa: E402
from convsmith.serve import queue as line  # noqa: E402
from convsmith.serve.connections import CREDIT, Connections  # noqa: E402
from convsmith.serve.decoder import Decoder  # noqa: E402
from convsmith.serve.form import Refused, image_of  # noqa: E402

RULES = DecodeRules(working_size=4, channels=1)


@dataclass(eq=False)
class Sender:
    """A connection of the client `host`."""

    host: str
    size: int = 0
    seconds: float = 1.0
    unfinished: bool = True
    transport: Any = None
    loop: Any = field(default_factory=Mock)
    closed: bool = field(default=False)

    def __post_init__(self) -> None:
        self.transport = self

    def abort(self) -> None:
        self.closed = True

    @property
    def rate(self) -> float:
        return (self.size + CREDIT) / (self.seconds + 1)


def closed(connections: Connections, senders: list[Sender]) -> list[int]:
    """Which of the senders are closed when they connect and send one after the other."""
    for sender in senders:
        size, sender.size = sender.size, 0
        connections.add(sender)  # type: ignore[arg-type]
        sender.size = size
        connections.count(size)
    return [number for number, sender in enumerate(senders) if sender.closed]


def test_the_slowest_unfinished_connection_makes_room() -> None:
    slow, honest, newcomer = Sender("a", 10, 20.0), Sender("b", 10**6, 20.0), Sender("c", 0, 0.0)
    assert closed(Connections(most=2), [honest, slow, newcomer]) == [1]
    complete = [Sender("a", 10, 60.0, unfinished=False)] * 3
    assert closed(Connections(most=2), [*complete, Sender("b", 0, 9.0), Sender("c", 0, 0.0)]) == []


def test_room_is_made_for_several_at_once() -> None:
    senders = [Sender(str(number), 0, 100.0 - number) for number in range(21)]
    assert closed(Connections(most=20), senders) == [0, 1, 2]


def test_a_client_with_more_than_its_part_loses_its_own() -> None:
    slow = [Sender(str(number), 10, 25.0 + number) for number in range(6)]
    many = [Sender("many", 10**6, 1.0 + number) for number in range(3)]
    assert closed(Connections(most=8), [*slow, *many]) == [8]
    few = [Sender("few", 10**6, 1.0 + number) for number in range(2)]
    assert closed(Connections(most=8), [*slow, *few, Sender("new", 0, 0.0)]) == [5]


def test_the_bytes_of_unfinished_uploads_are_bounded() -> None:
    senders = [Sender(host, 40, seconds) for host, seconds in (("a", 1.0), ("b", 2.0), ("b", 3.0))]
    connections = Connections(most_bytes=100)
    assert closed(connections, senders) == [2]
    small = [Sender("a", 5, 9.0), *(Sender(str(number), 20, 2.0 + number) for number in range(5))]
    assert closed(Connections(most_bytes=100), small) == [5], "the slowest of those that are large"
    complete = [Sender("a", 90, unfinished=False), Sender("a", 90, unfinished=False), Sender("b", 90)]
    assert closed(Connections(most_bytes=100), complete) == []


def test_memory_is_returned_in_a_flood_and_after_it() -> None:
    connections, loop = Connections(most_bytes=100), Mock()
    for sizes, times in (([90], 0), ([90, 90], 2), ([90], 2)):
        senders = [Sender("a", size, unfinished=False, loop=loop) for size in sizes]
        closed(connections, senders)
        for sender in senders:
            connections.remove(sender)  # type: ignore[arg-type]
        assert loop.call_later.call_count == times


async def answered(
    queue: line.RequestQueue, clients: str, seconds: dict[str, float], done: list[str], size: int = 2
) -> list[Any]:
    """One answer, or error, for each letter of `clients`, who enter while the worker is busy with another one.

    Each upload has 2 bytes, but those of "b" have `size`.
    """
    clock, loop = [0.0], asyncio.get_running_loop()
    released = threading.Event()
    loop.time = lambda: clock[0]  # type: ignore[method-assign]

    def work(name: str) -> dict[str, Any]:
        clock[0] += seconds[name[0]]
        done.append(name)
        if name[0] == "x":
            raise Refused(422, "no image")
        if name[0] == "y":
            raise Refused.for_now("no memory")
        return {}

    queue.enter("first", 1, lambda: {"": released.wait()})
    answers = [
        queue.enter(client, size if client == "b" else 2, lambda name=client + str(at): work(name))  # type: ignore[misc]
        for at, client in enumerate(clients)
    ]
    released.set()
    return await asyncio.gather(*answers, return_exceptions=True)


def test_clients_share_the_time_evenly() -> None:
    done: list[str] = []
    asyncio.run(answered(line.RequestQueue(), "aaaabcab", {"a": 1.0, "b": 1.0, "c": 1.0}, done))
    assert done == ["a0", "b4", "c5", "a1", "b7", "a2", "a3", "a6"]
    done.clear()
    asyncio.run(answered(line.RequestQueue(), "aabbbbb", {"a": 3.0, "b": 1.0}, done))
    assert done == ["a0", "b2", "b3", "b4", "a1", "b5", "b6"], "three quick ones take as long as a slow one"
    done.clear()
    asyncio.run(answered(line.RequestQueue(), "xxaaaa", {"x": 0.1, "a": 1.0}, done))
    assert done == ["x0", "a2", "a3", "a4", "a5", "x1"], "no image counts as the slowest one"
    done.clear()
    asyncio.run(answered(line.RequestQueue(), "yyaa", {"y": 0.1, "a": 1.0}, done))
    assert done == ["y0", "a2", "y1", "a3"], "what the server lacks is nobody's fault"


def test_of_equals_the_smallest_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    asyncio.run(answered(line.RequestQueue(), "acb", {"a": 1.0, "b": 1.0, "c": 1.0}, done, size=1))
    assert done == ["b2", "a0", "c1"]
    done.clear()
    monkeypatch.setattr(line, "QUEUE", 2)
    asyncio.run(answered(line.RequestQueue(), "bac", {"a": 1.0, "b": 1.0, "c": 1.0}, done, size=3))
    assert done == ["a1", "c2"], "a full line loses the largest"


@pytest.mark.parametrize("bound", ["QUEUE", "QUEUE_BYTES"])
def test_a_full_line_loses_the_last_place_of_who_has_many(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, bound, {"QUEUE": 3, "QUEUE_BYTES": 6}[bound])
    done: list[str] = []
    answers = asyncio.run(answered(line.RequestQueue(), "aaabb", {"a": 1.0, "b": 1.0}, done))
    assert done == ["a0", "b3", "a1"]
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert [(one.status, one.retry_after) for one in refused] == [(503, 2), (503, 2)]


def test_who_goes_away_leaves_the_line_and_an_error_is_an_answer() -> None:
    async def ask() -> list[str]:
        queue, done = line.RequestQueue(), list[str]()
        busy = queue.enter("x", 1, lambda: time.sleep(0.02) or {})  # type: ignore[func-returns-value]
        queue.enter("a", 1, lambda: {"": done.append("a")}).cancel()  # type: ignore[func-returns-value]
        failing = queue.enter("b", 1, lambda: {"": 1 / 0})
        await busy
        with pytest.raises(ZeroDivisionError):
            await failing
        assert await queue.enter("c", 1, lambda: {"still": "there"}) == {"still": "there"}
        return done

    assert asyncio.run(ask()) == []


def test_a_full_line_takes_the_place_of_who_has_just_gone_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "QUEUE", 2)

    async def ask() -> list[dict[str, Any]]:
        queue = line.RequestQueue()
        queue.enter("x", 1, dict)
        stays = queue.enter("a", 1, lambda: {"client": "a"})
        queue.enter("a", 1, dict).cancel()
        return [await queue.enter("b", 1, lambda: {"client": "b"}), await stays]

    assert asyncio.run(ask()) == [{"client": "b"}, {"client": "a"}]


def test_a_form_of_many_parts_is_refused_before_it_is_read_to_its_end() -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
    began = time.process_time()
    with pytest.raises(Refused, match="more than 20 parts"):
        image_of(part * 200_000, "multipart/form-data; boundary=x")
    assert time.process_time() - began < 1


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, 7).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(RULES) as decoder:
        yield decoder


def test_what_the_process_decodes_is_what_decode_returns(decoder: Decoder) -> None:
    assert decoder.pixels(png((9, 9)), "image/png").array.tolist() == [[[[7]] * 4] * 4]
    with pytest.raises(Refused, match="not-an-image") as refused:
        decoder.pixels(b"text", "")
    assert refused.value.status == 422


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="needs a timer of the processor's time")
def test_a_process_that_takes_too_long_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PATIENCE", 10_000)
    with Decoder(RULES, seconds=0.01) as decoder:
        before = decoder._process
        with pytest.raises(Refused, match=r"it takes longer than 0\.01 seconds") as refused:
            decoder.pixels(png((5000, 5000)), "")
        assert refused.value.status == 422
        assert before.returncode == -signal.SIGPROF
        assert decoder.pixels(png((9, 9)), "").array.shape == (1, 4, 4, 1)
        os.kill(decoder._process.pid, signal.SIGKILL)
        with pytest.raises(Refused, match="its decoder failed"):
            decoder.pixels(png((9, 9)), "")
    assert decoder._process.poll() is not None
    with pytest.raises(Refused, match="the server ends"):
        decoder.pixels(png((9, 9)), "")


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "import time; time.sleep(60)"], ids=["ends", "hangs"])
def test_a_process_that_does_not_start_is_not_the_fault_of_the_image(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "START_SECONDS", 0.2)
    monkeypatch.setattr(decoding, "python_module", lambda name: [sys.executable, "-ISc", program])
    with Decoder(RULES) as decoder:
        for _ in range(2):
            with pytest.raises(Refused, match="cannot start its decoder at present: try again in 2 sec") as refused:
                decoder.pixels(png((9, 9)), "")
            assert (refused.value.status, refused.value.retry_after) == (503, 2)


def test_who_is_late_ends_no_process_but_his_own() -> None:
    with Decoder(RULES) as decoder:
        with decoder._process as own, decoder._ended_after(0.05) as late:
            decoder._process = replacement = decoder._start()
            assert late.wait(5)
        assert own.returncode != 0
        assert replacement.poll() is None


@pytest.mark.parametrize("function", ["image_of", "read_header", "decode"])
def test_lack_of_memory_is_not_the_fault_of_the_image(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: object) -> None:
        with decode_errors(b"") if function != "image_of" else nullcontext():
            raise MemoryError

    monkeypatch.setattr(decoder_process, function, lacks)
    with pytest.raises(Refused, match="too little memory at present: try again in 2 seconds") as refused:
        decoder_process.pixels_of(png((9, 9)), "image/png", RULES)
    assert (refused.value.status, refused.value.retry_after) == (503, 2)


def test_the_process_ends_with_the_server_that_was_killed() -> None:
    command = [*python_module("convsmith.serve.decoder_process"), RULES.model_dump_json(), "5"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _, _ = process.communicate(b"")  # which closes its stdin, as the end of the other process does
    assert process.returncode == 0
