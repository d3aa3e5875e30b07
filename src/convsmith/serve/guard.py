"""Refusal of requests by their host and origin, and the headers of all answers. No bodies are read here."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
    "Connection": "close",  # so that the deadline of connections.Connection is that of every request
}


def own_names(host: str) -> frozenset[str]:
    """The names, besides IP addresses, under which a server that listens on `host` may be reached, in lower case."""
    names = {"localhost", host}
    if not is_loopback(host):
        names |= {socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn()}
    return frozenset(name.lower() for name in names)


def is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class Guard:
    """Refuses requests for other hosts and from other sites, and puts HEADERS on every answer.

    DNS rebinding needs one of the attacker's names in the Host header, so only IP addresses and `names` are accepted.
    A page of another site could send images here, but its Origin header gives it away.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin")
        app = self.app
        name = urlsplit(f"//{host}").hostname if host.count("[") == host.count("]") else None
        if name is None or not (_is_address(name) or name in self.names):
            app = _refusal(421, "this server does not answer to that name: open it by its IP address")
        elif origin is not None and urlsplit(origin).netloc != host:
            app = _refusal(403, "requests from other sites are refused")
        await app(scope, receive, send_with_headers)


def _refusal(status: int, message: str) -> ASGIApp:
    return JSONResponse({"error": message}, status)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
