"""Hostile clients among honest ones: how many honest uploads `convsmith serve` answers, how fast, and its memory.

    python benchmarks/serve_attack.py [--hostile 1000] [--honest 200] [--concurrency 20] [--only SCENARIO ...]

A model of the digits is trained for an epoch and served by the real command, with at most 1,024 open files, as most
systems have it. For each scenario the hostile clients hold their connections (one that is closed or answered comes back
after a second) while the honest ones upload a photograph of 640 x 480 pixels each. Who is told when to try again
(Retry-After) does so, and gives up where there is no answer within a minute; the times include these tries.

All clients are on this machine. Where a server can tell clients apart, by their addresses, it does; so each scenario
says whose address the hostile ones have: that of the honest ones (`same`), one of their own (`other`), or each its own
(`each`). Writes docs/results/serve_attack.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import itertools
import json
import os
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "serve_attack.json"
KINDS = ("idle", "half a head", "slow head", "stalled", "slow body", "cut short", "oversized", "noise", "no image")
KINDS += ("many parts", "costly image")
#: What the hostile clients do, and whose address they have.
SCENARIOS = [
    ("none", "same"),
    *(("connections", address) for address in ("same", "other", "each")),
    *(("everything", address) for address in ("same", "other", "each")),
    *((kind, "other") for kind in KINDS),
]
#: Clients that only hold what they have, and do not make the server work.
HOLDING = ("idle", "half a head", "slow head", "stalled", "slow body")
PAUSE = 1.0  # seconds until a hostile client comes back
PATIENCE = 60.0  # seconds that an honest client waits for its answer, all tries together


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def photograph() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return encoded(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC), "JPEG", quality=95)


def request(size: int, kind: str = "image/png") -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode()


def attacks() -> dict[str, tuple[bytes, bytes]]:
    """What each kind of hostile client sends at once, and what then byte by byte, one a second."""
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
    parts = part * (2**20 // len(part)) + b"--x--\r\n"
    costly = encoded(Image.new("RGBA", (5000, 5000), (1, 2, 3, 128)), "PNG", compress_level=1)
    noise = random.Random(0).randbytes(100_000)
    return {
        "idle": (b"", b""),
        "half a head": (b"POST /predict HTTP/1.1\r\nHost: loc", b""),
        "slow head": (b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"x" * 10_000),
        "stalled": (request(100_000) + noise[:50_000], b""),
        "slow body": (request(100_000) + noise[:100], noise),
        "cut short": (request(100_000) + noise[:50_000], b"\0"),  # and then it goes away
        "oversized": (request(2**26) + bytes(2**24), b""),
        "noise": (noise[:10_000], b""),
        "no image": (request(len(noise)) + noise, b""),
        "many parts": (request(len(parts), "multipart/form-data; boundary=x") + parts, b""),
        "costly image": (request(len(costly)) + costly, b""),
    }


async def hostile(port: int, kind: str, sent: tuple[bytes, bytes], address: str) -> None:
    """One hostile client: it holds a connection for ever, and comes back where it is closed."""
    while True:
        writer = None
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            gone = asyncio.ensure_future(reader.read())
            writer.write(sent[0])
            for byte in sent[1]:
                if gone.done() or (byte == 0 and kind == "cut short"):
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(1)
            if kind == "cut short":
                gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
        if writer is not None:
            writer.close()
        await asyncio.sleep(PAUSE)


async def attack(port: int, scenario: str, address: str, count: int) -> None:
    mixed = {"everything": KINDS, "connections": HOLDING}.get(scenario, (scenario,))
    sent = attacks()
    of = {"same": lambda number: "127.0.0.1", "other": lambda number: "127.0.0.2"}
    own = lambda number: f"127.1.{number // 250}.{number % 250 + 1}"  # noqa: E731
    clients = zip(range(count), itertools.cycle(mixed), strict=False)
    await asyncio.gather(*(hostile(port, kind, sent[kind], of.get(address, own)(at)) for at, kind in clients))


class Upload(NamedTuple):
    """What became of it: the last status, or the error's name; the seconds that it took, and how often it was sent."""

    said: str
    seconds: float
    tries: int


def honest(port: int, body: bytes) -> Upload:
    began = time.perf_counter()
    for tries in itertools.count(1):
        said, retry_after = send(port, body, PATIENCE - (time.perf_counter() - began))
        seconds = time.perf_counter() - began
        if retry_after is None or seconds + retry_after >= PATIENCE:
            return Upload(said, seconds, tries)
        time.sleep(retry_after)
    raise AssertionError


def send(port: int, body: bytes, patience: float) -> tuple[str, float | None]:
    """The status of one try, or the error's name, and the seconds after which to try again, if the server says so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
        reply = connection.getresponse()
        reply.read()
        retry_after = reply.headers["Retry-After"]
        return str(reply.status), None if retry_after is None else float(retry_after)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, None
    finally:
        connection.close()


def family(process: int) -> list[int]:
    """The server and the process that decodes for it."""
    return [process, *map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]


def megabytes(processes: list[int], name: str) -> float:
    """Their memory together, in 10^6 bytes: VmRSS now, VmHWM at most."""
    total = 0
    for one in processes:
        with contextlib.suppress(OSError, TypeError):  # it is being replaced
            total += 1024 * int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{one}/status").read_text())[1])
    return round(total / 1e6, 1)


@contextlib.contextmanager
def serving(run: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The real command, with at most 1,024 open files."""
    command = [sys.executable, "-m", "convsmith.cli", "serve", str(run), "--port", "0", "--device", "cpu"]

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=few_files)
    try:
        while not (found := re.search(r"page +http://127\.0\.0\.1:(\d+)/", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()


def measure(run: Path, log: Path, scenario: str, address: str, args: argparse.Namespace) -> dict[str, Any]:
    body = photograph()
    with serving(run, log) as (server, port), ThreadPoolExecutor(args.concurrency) as pool:
        assert honest(port, body).said == "200"
        before, attacker = megabytes(family(server.pid), "VmRSS"), None
        if scenario != "none":
            words = ["--attack", scenario, address, str(port), "--hostile", str(args.hostile)]
            attacker = subprocess.Popen([sys.executable, __file__, *words])
            time.sleep(args.warm_up)
        began = time.perf_counter()
        uploads = list(pool.map(lambda _: honest(port, body), range(args.honest)))
        seconds = time.perf_counter() - began
        during = megabytes(family(server.pid), "VmRSS")
        if attacker:
            attacker.kill()
            attacker.wait()
        left = time.perf_counter()
        while honest(port, body).said != "200":
            time.sleep(0.2)
        recovered = time.perf_counter() - left
        time.sleep(3)
        processes = family(server.pid)
        after, most = megabytes(processes, "VmRSS"), megabytes(processes, "VmHWM")
        decoder = megabytes(processes[1:], "VmHWM")
        began_to_end = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=30)
        ended = time.perf_counter() - began_to_end
        time.sleep(0.2)
        orphans = [one for one in processes if Path(f"/proc/{one}").exists()]
    said = Counter(upload.said for upload in uploads)
    times = sorted(1000 * upload.seconds for upload in uploads if upload.said == "200") or [float("nan")]
    return {
        "hostile": scenario,
        "address": address,
        "answered": said["200"],
        "otherwise": {status: count for status, count in said.items() if status != "200"},
        "tried_again": sum(upload.tries > 1 for upload in uploads),
        "p50_ms": round(times[len(times) // 2], 1),
        "p99_ms": round(times[min(len(times) - 1, int(0.99 * len(times)))], 1),
        "seconds": round(seconds, 1),
        "memory_mb": {"before": before, "during": during, "after": after, "most": most, "most_of_decoder": decoder},
        "seconds_until_an_answer_afterwards": round(recovered, 1),
        "sigterm": {"code": code, "seconds": round(ended, 2), "processes_left": len(orphans)},
        "lines_logged": len(log.read_text().splitlines()),
    }


def machine() -> dict[str, Any]:
    """The processor, and how busy the machine was at the end, which others may have used at the same time."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hostile", type=int, default=1000)
    parser.add_argument("--honest", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds of the attack before the honest ones come")
    parser.add_argument(
        "--only", nargs="+", metavar="SCENARIO", help="only these (also: everything/each); nothing is written"
    )
    parser.add_argument("--run", type=Path, help="serve this run instead of training one")
    parser.add_argument("--attack", nargs=3, metavar=("SCENARIO", "ADDRESS", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        scenario, address, port = args.attack
        asyncio.run(attack(int(port), scenario, address, args.hostile))
    with tempfile.TemporaryDirectory() as folder:
        run = args.run
        if run is None:
            import convsmith

            convsmith.train("digits", epochs=1, name="digits", runs_dir=folder, track={"wandb": "off"}, show=False)
            run = Path(folder, "digits")
        found = []
        for scenario, address in SCENARIOS:
            if args.only is None or {scenario, f"{scenario}/{address}"} & set(args.only):
                found.append(measure(run, Path(folder, "log.txt"), scenario, address, args))
                print(json.dumps(found[-1]), flush=True)
    if args.only is None:
        settings = {name: getattr(args, name) for name in ("hostile", "honest", "concurrency")}
        RESULT.write_text(json.dumps({**settings, "machine": machine(), "scenarios": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
