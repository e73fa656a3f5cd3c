"""What ``manifoldflow serve`` runs, whatever is served."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from manifoldflow.serving.catalogue import listed
from manifoldflow.serving.service import Service

GRACE = 10
"""Seconds that requests under way have left after Ctrl-C or SIGTERM."""


def serve(
    service: Callable[[], Service],
    models: Mapping[str, str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    queue: int = 128,
    timeout: float = 60.0,
    threads: int | None = None,
    hosts: str | list[str] | None = None,
    origins: str | list[str] | None = None,
    root_path: str = "",
    connections: int = 512,
    idle: float = 10.0,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        service: makes what is served; called when it is sure that all packages are there that a server needs.
        models: checkpoint file or run folder by name.
        host: address to listen on.
        port: of the address; 0 for any that is free.
        queue: requests that may wait; more are answered with 429.
        timeout: seconds that a request may take.
        threads: of the models; as many as there are cores if absent.
        hosts: names that requests may come to besides those of this machine.
        origins: of pages elsewhere that may ask.
        root_path: prefix under which a proxy shows this server.
        connections: that may be open; the one that has rested longest makes room for a new one.
        idle: seconds that a connection may stay without a complete request.

    Raises:
        ImportError: the extra ``serve`` is not installed.
        ValueError: a model or an option that cannot be used.
        OSError: the address is taken.
    """
    try:
        from manifoldflow.serving.app import create_app
        from manifoldflow.serving.connections import Connections

        served = service()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "manifoldflow":
            raise
        raise ImportError(
            f"the server needs the package {error.name!r}; install it with: pip install 'manifoldflow[serve]'"
        ) from error
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must lie between 0 and 65535, got {port}")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    if root_path and not root_path.startswith("/"):
        raise ValueError(f"--root_path begins with a slash, such as /designer, got {root_path!r}")
    names = [*listed(hosts), *([] if _is_any(host) else [host])]
    app = create_app(
        served,
        models,
        queue=queue,
        timeout=timeout,
        threads=threads,
        hosts=names,
        origins=listed(origins),
        root_path=root_path,
    )
    guard = Connections(connections, idle)
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"

    def ready() -> None:
        print(f"serving {', '.join(models)} at {address} (interface: {address}/docs); Ctrl-C ends it", flush=True)

    made = make_server(app, guard, ready)
    # uvicorn ends in order at either signal, then raises it again for those who wait for it: here nobody does.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        made.run(sockets=[guarded(listener, guard)])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()
        guard.close()
    print("ended")


def make_server(app: Any, guard: Any, ready: Any = None) -> Any:
    """A uvicorn server for an application of :func:`manifoldflow.serving.app.create_app`.

    Args:
        app: the application.
        guard: its :class:`~manifoldflow.serving.connections.Connections`.
        ready: called once it listens.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Says where it is once it is there."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if ready is not None:
                ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Requests under way have some seconds left; those that are not done then are told why."""
            asyncio.get_running_loop().call_later(GRACE, app.state.scheduler.give_up)
            await super().shutdown(sockets=sockets)

    # asyncio's own loop and h11: connections are counted where they are accepted, and parsed by the guard's protocol. Below
    # errors uvicorn reports only what anybody can cause by sending nonsense.
    options: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False, "ws": "none"}
    options |= {"loop": "asyncio", "http": guard.protocol(), "timeout_graceful_shutdown": GRACE + 5}
    return Server(uvicorn.Config(app, **options))


def guarded(listener: socket.socket, guard: Any) -> socket.socket:
    """The listening socket, handing out connections while there is room for them."""
    from manifoldflow.serving.connections import Listener

    return Listener.of(listener, guard)


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address.

    Raises:
        OSError: it is taken, or not of this machine; says what to do.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        has_number = error.errno is not None and not isinstance(error, socket.gaierror)
        reason = os.strerror(error.errno or 0) if has_number else error.strerror or str(error)
        text = f"cannot listen on {host} port {port} ({reason}); choose another --port, or --host"
        raise OSError(text) from None


def _is_any(host: str) -> bool:
    return host in ("", "0.0.0.0", "::", "*")
