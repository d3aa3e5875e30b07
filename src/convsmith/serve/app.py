"""The routes of the server: a page for people, JSON for programs. `queue` says whose turn it is, `answers` computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from convsmith.data.preprocess import InputPixels
from convsmith.errors import OutOfMemory, RunFailed
from convsmith.serve.answers import Answers
from convsmith.serve.connections import UPLOAD_SECONDS
from convsmith.serve.decoder import Decoder
from convsmith.serve.decoder_process import MAX_PIXELS
from convsmith.serve.form import MAX_BYTES, RETRY_SECONDS, Refused
from convsmith.serve.guard import Guard
from convsmith.serve.queue import QUEUE, RequestQueue
from convsmith.serve.upload import receive

ANSWER_SECONDS = 60.0  # including the wait in the line

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

Work = Callable[[InputPixels], dict[str, Any]]


async def _answered(request: Request, queue: RequestQueue, decoder: Decoder, work: Work) -> dict[str, Any]:
    """The result of `work` for the image of a request, which enters the line when it has arrived completely.

    Raises Refused on a timeout, without an image or where the line is full, and ClientDisconnect.
    """
    try:
        body = await asyncio.wait_for(receive(request), UPLOAD_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        raise Refused(408, f"the upload took longer than {UPLOAD_SECONDS:.0f} seconds: send a smaller image") from None
    kind = request.headers.get("content-type", "")
    client = request.client.host if request.client else ""
    answer = queue.enter(client, len(body), lambda: work(decoder.pixels(body, kind)))
    gone = asyncio.ensure_future(_disconnect(request))
    waiting: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(waiting, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if gone.done():
            raise ClientDisconnect
    finally:
        for one in waiting:
            one.cancel()
    raise Refused(504, f"there was no answer within {ANSWER_SECONDS:.0f} seconds: try a smaller image")


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(answers: Answers, decoder: Decoder, name: str, names: frozenset[str]) -> Starlette:
    """The application for the run called `name`; it accepts requests to the hosts `names` and to IP addresses."""
    queue = RequestQueue()
    limits = {"bytes": MAX_BYTES, "pixels": MAX_PIXELS, "waiting": QUEUE}
    health = {"status": "ok", "run": name, "classes": answers.classes, "limits": limits}

    async def state(request: Request) -> Response:
        return JSONResponse(health)

    async def predict(request: Request) -> Response:
        return JSONResponse(await _answered(request, queue, decoder, answers.predict))

    async def explain(request: Request) -> Response:
        return JSONResponse(await _answered(request, queue, decoder, answers.explain))

    routes = [Route(path, _page(file, kind)) for path, (file, kind) in PAGE.items()]
    routes += [
        Route("/health", state),
        Route("/predict", predict, methods=["POST"]),
        Route("/explain", explain, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        Refused: _refused,
        RunFailed: _failed,
        ClientDisconnect: _gone,
        HTTPException: _no_route,
        Exception: _internal,
    }
    return Starlette(routes=routes, middleware=[Middleware(Guard, names=names)], exception_handlers=handlers)


def _page(file: str, kind: str) -> Callable[[Request], Any]:
    content = (resources.files("convsmith.serve") / "page" / file).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=kind)

    return page


async def _refused(request: Request, error: Refused) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _failed(request: Request, error: RunFailed) -> Response:
    if isinstance(error, OutOfMemory):  # which others may use at present
        return await _refused(request, Refused(503, str(error), RETRY_SECONDS))
    return JSONResponse({"error": str(error)}, 500)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # the client is gone and will not read it


async def _no_route(request: Request, error: HTTPException) -> Response:
    routes = "GET /, GET /health, POST /predict, POST /explain"
    return JSONResponse({"error": f"{error.detail}: there are {routes}"}, error.status_code, error.headers)


async def _internal(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed: see its log"}, 500)
