"""A listening server for a run: its socket, its processes, uvicorn. The routes are in `app`."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
import uvicorn
from torch import nn

from convsmith.data.preprocess import InputPixels
from convsmith.data.sources import Source
from convsmith.errors import UserError
from convsmith.events import Listener, Note, Serving, counter, nobody
from convsmith.prediction.evaluate import run_dataset, use_threads
from convsmith.prediction.predictor import Predictor, load_predictor
from convsmith.rundir import RunDir
from convsmith.runtime import ending_signals
from convsmith.serve.answers import Answers
from convsmith.serve.app import make_app
from convsmith.serve.connections import Connections
from convsmith.serve.decoder import Decoder
from convsmith.serve.guard import is_loopback, own_names
from convsmith.serve.neighbours import Neighbours

BACKLOG = 1024  # connections that the system completes until they are accepted
AT_ONCE = 64  # that are accepted before what the open ones have sent is read
GRACE = 1  # seconds for answers that are on their way when the server is ended


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one. UserError where the host or the port cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except socket.gaierror:
        raise UserError(
            f"--host '{host}' is not an address of this machine: give 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use: stop the program that listens there, or choose another --port"
            ) from None
        if error.errno == errno.EACCES:
            raise UserError(f"port {port} needs more privileges: choose a --port of 1024 or more") from None
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    return listener


def serve(
    run: RunDir,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    module: nn.Module | None = None,
    source: Source | None = None,
    listener: Listener = nobody,
) -> None:
    """Answer requests for predictions of `run` until the process is interrupted; the listener gets `Serving` first.

    `module` and `source` are the user's own network and data, if the run was trained with such. Raises UserError where
    the host or the port cannot be used.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port must be from 0 to 65535, but got {port}")
    with listen(host, port) as listening:
        use_threads(run)
        predictor = load_predictor(run.path, device, module)
        rules = predictor.card.preprocessing
        with Decoder(rules) as decoder:
            answers = Answers(predictor, _neighbours(run, predictor, source, listener))
            blank = np.zeros((1, *rules.prepared_shape), np.uint8)
            # The first answer is slow, since it imports and allocates much: this is it.
            if missing := answers.explain(InputPixels(blank)).get("heat_map_missing"):
                listener(Note(f"warning: no heat maps: {missing}"))
            port = listening.getsockname()[1]
            shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
            listener(Serving(f"http://{shown}:{port}/", port, is_loopback(host)))
            config = uvicorn.Config(
                make_app(answers, decoder, run.name, own_names(host)),
                http=Connections(),  # type: ignore[arg-type]  # it makes the protocols that uvicorn takes a class for
                ws="none",
                lifespan="off",
                log_level="error",  # a line for each malformed request would fill a disk
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=AT_ONCE,
                timeout_graceful_shutdown=GRACE,
            )
            server = _Server(config)
            with _ended_by_hangup(server):
                server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server whose waiting connections are as many as BACKLOG says: asyncio has one number for both."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(BACKLOG)


@contextmanager
def _ended_by_hangup(server: uvicorn.Server) -> Iterator[None]:
    """SIGHUP ends the server in good order, as uvicorn has SIGINT and SIGTERM do, and is raised again afterwards."""
    hangup = set(ending_signals()) - {signal.SIGINT, signal.SIGTERM}
    if threading.current_thread() is not threading.main_thread() or not hangup:
        yield
        return
    number = hangup.pop()
    before, received = signal.getsignal(number), []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        server.should_exit = True

    signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, before)
    if received:
        signal.raise_signal(number)


def _neighbours(run: RunDir, predictor: Predictor, source: Source | None, listener: Listener) -> Neighbours | None:
    try:
        train = run_dataset(run, source).train
    except UserError as error:
        listener(Note(f"warning: no nearest training images: {error}"))
        return None
    return Neighbours(predictor, train, counter(listener, "indexing"))
