"""A limit on the size of request bodies, and on the time they may take to arrive."""

import asyncio
import contextlib
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 256 * 1024
MOST_SECONDS = 15.0
DISCARD_BYTES, DISCARD_SECONDS = 64 * 1024 * 1024, 10.0
"""How much of a refused body is read and thrown away. A client that is cut off while it sends would not see the answer."""


class BodyLimit:
    """Reads the body before anything else sees the request, and refuses it as soon as it is too long.

    Args:
        app: that gets the requests with a body within the limits.
        most: bytes; more is answered with 413.
        seconds: for the whole body; slower ones are answered with 408.
    """

    def __init__(self, app: ASGIApp, most: int = MOST_BYTES, seconds: float = MOST_SECONDS) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"")
        if stated.isdigit() and int(stated) > self.most:
            return await self._refuse(
                receive, send, 413, f"the body has {int(stated)} bytes, at most {self.most} are taken"
            )
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.seconds):
                is_more, size = True, 0
                while is_more:
                    message = await receive()
                    if message["type"] != "http.request":  # the client has gone
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.most:
                        return await self._refuse(receive, send, 413, f"the body has more than {self.most} bytes")
                    is_more = message.get("more_body", False)
        except TimeoutError:
            return await self._refuse(receive, send, 408, f"the body did not arrive within {self.seconds:g} s")
        body: bytes | None = b"".join(parts)

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        return await self.app(scope, replay, send)

    async def _refuse(self, receive: Receive, send: Send, status: int, detail: str) -> None:
        text = json.dumps({"detail": detail}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(text)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text, "more_body": True})
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while size < DISCARD_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):  # also where the client has gone
                        break
        await send({"type": "http.response.body", "body": b""})
