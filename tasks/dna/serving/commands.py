"""What ``manifoldflow serve dna`` runs."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from manifoldflow.checkpoint import data_path

GRACE = 10
"""Seconds that requests under way have left after Ctrl-C."""

PREFIX = "dna_"
"""Embedded checkpoints of this task begin with it."""


def serve(
    checkpoints: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    motifs: str | None = None,
    motif: str | None = None,
    queue: int = 128,
    timeout: float = 60.0,
    threads: int | None = None,
) -> None:
    """Serve the sequence designer: a page for people, /v1/design and /v1/score for programs, until Ctrl-C.

    Args:
        checkpoints: model files or run folders; the embedded ones if absent. A model is called after its file or folder, and
            requests get the first one unless they name another.
        host: address to listen on; the server has no password, so leave it on this machine unless others should use it.
        port: of the address; 0 for any that is free.
        motifs: JASPAR, MEME or TRANSFAC file of motifs that designs are searched for.
        motif: names of motifs of that file, with commas, such as MA0139.1,MA0080.4; all of them if absent.
        queue: requests that may wait; more are answered with 429.
        timeout: seconds that a request may take.
        threads: of the models; as many as there are cores if absent.
    """
    try:
        import uvicorn

        from manifoldflow.tasks.dna.serving.app import create_app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("manifoldflow", "tasks"):
            raise
        raise ImportError(
            f"the server needs the package {error.name!r}; install it with: pip install 'manifoldflow[serve]'"
        ) from error
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must lie between 0 and 65535, got {port}")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    models = name_models(checkpoints)
    app = create_app(models, motifs=motifs, motif=motif, queue=queue, timeout=timeout, threads=threads)
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"

    class Server(uvicorn.Server):
        """Says where it is once it is there."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            print(f"serving {', '.join(models)} at {address} (interface: {address}/docs); Ctrl-C ends it", flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Requests under way have some seconds left; those that are not done then are told why."""
            asyncio.get_running_loop().call_later(GRACE, app.state.scheduler.give_up)
            await super().shutdown(sockets=sockets)

    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
    config = uvicorn.Config(app, timeout_graceful_shutdown=GRACE + 5, **options)
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # which the server passes on after it has ended in order
        pass
    finally:
        listener.close()
    print("ended")


def name_models(checkpoints: list[str] | None) -> dict[str, Path]:
    """Checkpoint files by the names that requests use.

    Raises:
        FileNotFoundError: a file that is not there, or no embedded ones.
        ValueError: two of one name.
    """
    if not checkpoints:
        folder = data_path("checkpoints")
        found = {path.stem.removeprefix(PREFIX): path for path in sorted(folder.glob(f"{PREFIX}*.safetensors"))}
        if not found:
            raise FileNotFoundError(
                "this installation has no embedded sequence models: train one with manifoldflow train dna, "
                "and give it by --checkpoints"
            )
        return found
    models: dict[str, Path] = {}
    for given in checkpoints:
        path = Path(given)
        embedded = data_path(f"checkpoints/{given}.safetensors")
        if path.is_dir():
            name, path = path.resolve().name, path / "model.safetensors"
        elif not path.is_file() and path.name == given and embedded.is_file():
            name, path = given.removeprefix(PREFIX), embedded
        else:
            name = path.stem
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint {given!r}: neither a model file nor a run folder")
        if name in models:
            raise ValueError(f"{given}: there is another model called {name!r}; rename the file or folder")
        models[name] = path
    return models


def _listen(host: str, port: int) -> socket.socket:
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
