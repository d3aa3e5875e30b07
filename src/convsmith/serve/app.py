"""The routes of the server: a page for people, JSON for programs, a queue with one worker. `answers` computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from convsmith.errors import RunFailed
from convsmith.serve.answers import MAX_PIXELS, Answers
from convsmith.serve.guard import Guard
from convsmith.serve.upload import MAX_BYTES, Refused, drain, image_of, receive

QUEUE = 8  # uploads in memory that wait for the one being processed
UPLOAD_SECONDS = 30.0
ANSWER_SECONDS = 60.0  # including the wait in the queue
RETRY_SECONDS = 2

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

Work = Callable[[bytes], dict[str, Any]]


class RequestQueue:
    """One worker thread, and at most QUEUE uploads that wait for it; further ones are refused before they are read."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "answers")
        self._inside = 0

    async def answer(self, request: Request, work: Work) -> dict[str, Any]:
        """The result of `work` for the image of a request. Raises Refused if the queue is full, on a timeout, or
        without an image."""
        if self._inside > QUEUE:
            await _timely(drain(request))
            raise Refused(503, f"the server is busy: try again in {RETRY_SECONDS} seconds", RETRY_SECONDS)
        self._inside += 1
        try:
            body = await _timely(receive(request))
            kind = request.headers.get("content-type", "")
            job = self._thread.submit(lambda: work(image_of(body, kind)))
        except BaseException:
            self._leave()
            raise
        # Work that takes too long cannot be stopped: it keeps its slot until it is done.
        loop = asyncio.get_running_loop()
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), ANSWER_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(
                504, f"there was no answer within {ANSWER_SECONDS:.0f} seconds: try a smaller image"
            ) from None

    def _leave(self) -> None:
        self._inside -= 1


async def _timely(reading: Any) -> Any:
    try:
        return await asyncio.wait_for(reading, UPLOAD_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        raise Refused(408, f"the upload took longer than {UPLOAD_SECONDS:.0f} seconds: send a smaller image") from None


def make_app(answers: Answers, name: str, names: frozenset[str]) -> Starlette:
    """The application for the run called `name`; it accepts requests to the hosts `names` and to IP addresses."""
    queue = RequestQueue()
    limits = {"bytes": MAX_BYTES, "pixels": MAX_PIXELS, "waiting": QUEUE}
    health = {"status": "ok", "run": name, "classes": answers.classes, "limits": limits}

    async def state(request: Request) -> Response:
        return JSONResponse(health)

    async def predict(request: Request) -> Response:
        return JSONResponse(await queue.answer(request, answers.predict))

    async def explain(request: Request) -> Response:
        return JSONResponse(await queue.answer(request, answers.explain))

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
    return JSONResponse({"error": str(error)}, 500)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # the client is gone and will not read it


async def _no_route(request: Request, error: HTTPException) -> Response:
    routes = "GET /, GET /health, POST /predict, POST /explain"
    return JSONResponse({"error": f"{error.detail}: there are {routes}"}, error.status_code, error.headers)


async def _internal(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed: see its log"}, 500)
