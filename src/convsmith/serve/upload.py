"""Reading the body of a request into memory, under limits. What it contains is read by `form`."""

from __future__ import annotations

from starlette.requests import Request

from convsmith.serve.form import MAX_BYTES, MAX_FORM, Refused

MAX_DRAIN = 4 * MAX_BYTES  # read and thrown away, so that a refusal reaches who only listens after sending


async def receive(request: Request) -> bytearray:
    """The body of a request; raises Refused (413) where it is larger than MAX_FORM."""
    body = bytearray()
    announced = int(request.headers.get("content-length", 0))  # h11 lets only digits pass
    async for chunk in request.stream():
        body += chunk
        if max(len(body), announced) > MAX_FORM:
            most = MAX_DRAIN - len(body)
            body.clear()
            await _drain(request, most)
            raise Refused(413, f"the upload is larger than {MAX_BYTES // 2**20} MB: send a smaller image")
    return body


async def _drain(request: Request, most: int) -> None:
    """Read and discard the rest of a body; a client that sends more than `most` bytes is cut off."""
    async for chunk in request.stream():
        most -= len(chunk)
        if most < 0:
            return
