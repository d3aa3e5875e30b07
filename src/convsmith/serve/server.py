"""A listening server for a run."""

from __future__ import annotations

import asyncio
import errno
import socket

import h11
import numpy as np
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from convsmith.config import read_run_config
from convsmith.data.preprocess import InputPixels
from convsmith.display import Display
from convsmith.errors import UserError
from convsmith.prediction.evaluate import run_dataset
from convsmith.prediction.predictor import Predictor, load_predictor
from convsmith.rundir import RunDir
from convsmith.runtime import set_threads
from convsmith.serve.answers import Answers
from convsmith.serve.app import UPLOAD_SECONDS, make_app
from convsmith.serve.guard import is_loopback, own_names
from convsmith.serve.neighbours import Neighbours

MAX_CONNECTIONS = 200


class Prompt(H11Protocol):
    """Hangs up on who has not sent the head of a request in time: held open, it would keep others out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(UPLOAD_SECONDS, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one. UserError where the host or the port cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except socket.gaierror:
        raise UserError(f"--host '{host}' is no address of this machine: give 127.0.0.1, or 0.0.0.0 for all") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use: stop what listens there, or choose --port") from None
        if error.errno == errno.EACCES:
            raise UserError(f"port {port} needs more rights: choose a --port of 1024 or more") from None
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    return listener


def serve(run: RunDir, listener: socket.socket, host: str, device: str, display: Display) -> None:
    """Answer requests until the process is interrupted."""
    set_threads(read_run_config(run.config).train.threads)
    predictor = load_predictor(run.path, device)
    answers = Answers(predictor, _neighbours(run, predictor, display))
    side, channels = predictor.card.preprocessing.working_size, predictor.card.preprocessing.channels
    # The first answer imports and allocates much: let it be this one.
    missing = answers.explain_pixels(InputPixels(np.zeros((1, side, side, channels), np.uint8))).get("heat_map_missing")
    if missing:
        display.line(f"warning: no heat maps: {missing}")
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    if not is_loopback(host):
        display.line(f"warning: whoever reaches this machine on port {port} can use this page; it asks for no password")
    display.line(f"page     http://{shown}:{port}/")
    display.line(f"programs curl --form image=@FILE http://{shown}:{port}/predict")
    display.line("Ctrl-C ends it. Nothing that is sent is kept.")
    app = make_app(answers, run.name, own_names(host))
    config = uvicorn.Config(
        app,
        http=Prompt,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _neighbours(run: RunDir, predictor: Predictor, display: Display) -> Neighbours | None:
    try:
        train = run_dataset(run).train
    except UserError as error:
        display.line(f"warning: no nearest training images: {error}")
        return None
    return Neighbours(predictor, train, display.counting("indexing training"))
