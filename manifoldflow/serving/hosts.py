"""Who may ask: the names that a server goes by, the pages of other origins, and headers that every answer carries."""

import ipaddress
import json
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "*.localhost")
"""Names of this machine that no foreign name server can give away; its addresses are taken besides."""


class KnownHosts:
    """Refuses requests to names that are not this server's.

    A page of a foreign site may give its own name the address of this machine (DNS rebinding), and its scripts would then ask
    the server as if they were its own. Their requests still name the foreign host, which is refused.

    Args:
        app: that gets the rest.
        hosts: names besides those of this machine and the address that the client connected to; ``*.example.org`` for all
            below a name, ``*`` for any.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self.app, self.hosts = app, [host.lower().rstrip(".") for host in (*LOOPBACK, *hosts)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name == b"host"]
            # Without a host (HTTP/1.0) it is no browser.
            if len(given) > 1 or (given and not self.knows(given[0].decode("latin-1"), scope.get("server"))):
                return await _answer(send, 400, "this server does not go by the name in the Host header; see --hosts")
        return await self.app(scope, receive, send)

    def knows(self, host: str, server: tuple[str, int | None] | None = None) -> bool:
        """Whether a Host header is one of this server's.

        Args:
            host: the header.
            server: address and port that the client connected to.
        """
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            pass
        else:
            if address.is_loopback or (server is not None and name == server[0]):
                return True
        return any(
            name == host or host == "*" or (host.startswith("*.") and name.endswith(host[1:])) for host in self.hosts
        )


class Headers:
    """Adds headers to every answer that does not set them itself.

    Args:
        app: that answers.
        headers: names and values.
    """

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self.app = app
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", [])}
                more = [(name, value) for name, value in self.headers if name not in present]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


class Prefix:
    """Takes requests behind a proxy alike whether it passes on the prefix under which it shows this server or strips it.

    Args:
        app: that gets them with the prefix in the path and as its ``root_path``.
        prefix: such as ``/designer``.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            path = scope["path"]
            has_prefix = path == self.prefix or path.startswith(self.prefix + "/")
            scope = {**scope, "root_path": self.prefix, "path": path if has_prefix else self.prefix + path}
        await self.app(scope, receive, send)


def check_origins(origins: Sequence[str]) -> list[str]:
    """Origins as browsers send them.

    Raises:
        ValueError: one that is none, such as an address with a path.
    """
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?", origin):
            raise ValueError(f"an origin is such as https://example.org or http://localhost:8888, got {origin!r}")
    return list(origins)


def page_policy(origins: Sequence[str] = ()) -> str:
    """The Content-Security-Policy of pages: everything from here, shown in frames of nobody but these origins."""
    frames = " ".join(["'self'", *origins])
    return (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
        f"base-uri 'self'; form-action 'self'; frame-ancestors {frames}"
    )


async def _answer(send: Send, status: int, detail: str) -> None:
    text = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
