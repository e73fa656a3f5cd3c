"""The connections of a server: so many and no more, none that rests for long, and none cut off while it waits for its answer.

An HTTP server holds a descriptor for every connection, and anybody may open one and say nothing. When there are as many as
there may be, the one that has rested longest makes room; one that has asked keeps its place until it is answered.
"""

import asyncio
import contextlib
import errno
import os
import socket
import time
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 512
REST = 10.0
"""Seconds that a connection may stay without a complete request, however many bytes of one trickle in."""

READ = 60.0
"""Seconds that a client may take to read its answer."""

RESERVE = 64
"""Descriptors for everything else: pipes of the worker, files of the page, the loop's own."""

PROBE = 2.0
"""Seconds after which the server makes sure that a client which has stopped sending still listens."""

FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
CLOSE = (b"connection", b"close")

_WHY = b'{"detail": "too many connections; try again in 5 s"}'
TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_WHY), _WHY)
)


class Connections:
    """The open connections.

    Args:
        most: that there may be; fewer if the process may not open as many files.
        rest: seconds that one may stay without a complete request.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, most: int = MOST, rest: float = REST) -> None:
        if most < 1 or not rest > 0:
            raise ValueError(f"connections must be at least 1 and idle above 0 s, got {most} and {rest}")
        self.most, self.rest = min(most, max(8, descriptors() - RESERVE)), rest
        self.accepted, self.open = 0, set[GuardedProtocol]()
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self._timer: asyncio.TimerHandle | None = None

    def protocol(self) -> type[asyncio.Protocol]:
        """The protocol of connections that are kept here, for ``uvicorn.Config(http=...)``."""
        return type("Guarded", (GuardedProtocol,), {"guard": self})

    def add(self, one: "GuardedProtocol") -> None:
        """Keep a new connection."""
        self.open.add(one)
        if self._timer is None:
            self._timer = one.loop.call_later(1.0, self._sweep, one.loop)

    def remove(self, one: "GuardedProtocol") -> None:
        """Forget a connection that has ended."""
        self.open.discard(one)
        self.accepted -= 1

    def make_room(self) -> bool:
        """Have the connection that has rested longest end, which it does in the loop's next round; False if none rests."""
        if self.accepted > len(self.open):
            return True  # the loop has not shown us yet what has been accepted, and it may rest
        late = time.monotonic() - 5.0
        resting = [one for one in self.open if one.rests and not one.transport.is_closing()]
        # Where none rests: those that were answered a while ago, and whose client does not take the last of it.
        resting = resting or [one for one in self.open if one.rests and one.since < late]
        if not resting:
            return False
        min(resting, key=lambda one: one.since).transport.abort()
        return True

    def turn_away(self, listener: socket.socket) -> None:
        """Take one connection from the queue and close it, with the descriptor that was kept for this."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        with contextlib.suppress(OSError):
            connection, _ = socket.socket.accept(listener)
            with connection:
                connection.setblocking(False)
                connection.send(TURNED_AWAY)
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        for one in list(self.open):
            one.look(now, self.rest)
        self._timer = loop.call_later(1.0, self._sweep, loop) if self.open else None

    def close(self) -> None:
        """Give back the spare descriptor."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


class Listener(socket.socket):
    """A listening socket that hands out connections while there is room for them."""

    guard: Connections

    @classmethod
    def of(cls, plain: socket.socket, guard: Connections) -> "Listener":
        """A listener in place of a plain socket."""
        made = cls(fileno=plain.detach())
        made.guard = guard
        return made

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: none waits, or room is being made.
        """
        guard = self.guard
        if guard.accepted >= guard.most:
            if not guard.make_room():
                guard.turn_away(self)
            raise BlockingIOError(errno.EAGAIN, "room is being made")
        try:
            made = super().accept()
        except OSError as error:
            if error.errno not in FULL:
                raise
            # asyncio would try again at once for as often as connections may wait, with a line in the log for each.
            if not guard.make_room():
                guard.turn_away(self)
            raise BlockingIOError(errno.EAGAIN, "room is being made") from None
        guard.accepted += 1
        return made


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 on a connection that is looked after."""

    guard: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since, self.is_ended, self.has_asked = time.monotonic(), False, False
        self.answering: float | None = None
        self.guard.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.remove(self)
        super().connection_lost(exc)

    @property
    def rests(self) -> bool:
        """Whether no request waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        self.has_asked = True
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.since, self.has_asked, self.answering = time.monotonic(), False, None
        super().on_response_complete()
        if self.is_ended and self.rests:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more. It may still read (a half-closed connection): what it asked for is answered first."""
        self.is_ended = True
        if self.rests or self.cycle.more_body:
            return False
        self.loop.call_later(PROBE, self._probe)
        return True

    def shutdown(self) -> None:
        """The server ends: after the answer under way, which says so."""
        try:
            if not self.rests:
                self.cycle.scope["headers"] = [*self.cycle.scope["headers"], CLOSE]  # uvicorn repeats it in the answer
            super().shutdown()
        except h11.LocalProtocolError:
            self.transport.abort()

    def look(self, now: float, rest: float) -> None:
        """End the connection if it has taken too long over something."""
        if self.transport.is_closing():
            if now - self.since > READ + rest:  # closed with an answer that nobody reads, it would stay for ever
                self.transport.abort()
        elif self.rests:
            if now - self.since > rest:
                if self.has_asked and self.conn.our_state is h11.IDLE:
                    self.transport.write(
                        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                    )
                self.transport.close()
        elif self.cycle.response_started:
            self.answering = self.answering or now
            if now - self.answering > READ:
                self.transport.abort()
        elif self.is_ended:
            self._end_if_gone()

    def _probe(self) -> None:
        """Tell a client that has left from one that only stopped sending: one that left does not take a word."""
        if self.transport.is_closing() or self.rests or self.cycle.response_started:
            return
        if self.cycle.scope["http_version"] != "1.0":  # an interim answer, which clients of HTTP/1.1 skip
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(0.2, self._end_if_gone)

    def _end_if_gone(self) -> None:
        known = cast("socket.socket | None", self.transport.get_extra_info("socket"))
        if known is None or self.transport.is_closing():
            return
        with contextlib.suppress(OSError):
            if known.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.transport.abort()


def descriptors() -> int:
    """Files that this process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 8192
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
