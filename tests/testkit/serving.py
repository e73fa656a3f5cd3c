"""Servers for tests: the models in this process behind a gate, or a server as users have it in a process of its own."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from manifoldflow.serving.app import create_app
from manifoldflow.serving.calls import Answer, Served, one_line
from manifoldflow.serving.worker import Bench, WorkerLost

WAIT = 120
"""Seconds after which a test of a real server fails; on a busy machine a worker needs more than ten to start."""

TESTS = Path(__file__).resolve().parents[1]


class Held:
    """The models in this process, behind a gate that the test opens; it may be told to fail."""

    def __init__(self, loader, models, is_open=True):
        self.desk = Bench(loader, [Served(name, str(path)) for name, path in models.items()])
        self.is_ready, self.starts, self.rates, self.calls, self.faults, self.replaced = False, 0, {}, [], [], ()
        self.gate, self.patience, self.troubles = threading.Event(), None, []
        if is_open:
            self.gate.set()

    def ensure(self):
        if self.troubles:
            raise self.troubles.pop(0)
        self.starts += not self.is_ready
        self.is_ready = True

    def check(self):
        return self.is_ready

    def close(self):
        self.gate.set()

    def call(self, message, timeout):
        self.calls.append(message)
        if not self.gate.wait(self.patience or timeout):
            self.is_ready = False
            raise WorkerLost("the worker gave no answer")
        if self.faults and (fault := self.faults.pop(0)(message)) is not None:
            self.is_ready = False
            raise fault
        try:
            return self.desk.answer(message)
        except Exception as error:
            return Answer(fault=one_line(error))


@contextlib.asynccontextmanager
async def client_of(app):
    """A client of an application that runs."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=WAIT) as client:
            client.app = app
            yield client


async def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {WAIT} s"
        await asyncio.sleep(0.005)


def in_process(service, models, body, is_open=True, **options):
    """Run a coroutine function on a client of a server whose models are in this process."""
    held = Held(service.loader, models, is_open)

    async def run():
        async with client_of(create_app(service, models, worker=held, **options)) as client:
            return await body(client, held)

    return asyncio.run(run())


def check_refusal(response, status, words):
    """An answer that says what is wrong in one line."""
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert isinstance(detail, str) and "\n" not in detail and words in detail, detail
    assert len(detail) < 400 and detail.isprintable()


class ServerProcess:
    """``manifoldflow.serving.run.serve`` in a process of its own.

    Args:
        service: an expression for a function that makes the service, such as ``"testkit.dice:DiceService"``.
        models: by name.
        descriptors: that it may have.
        options: of ``serve``.
    """

    def __init__(self, service, models, descriptors=None, **options):
        module, _, name = service.partition(":")
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors},) * 2)\n"
        code = (
            f"{limit if descriptors else ''}from manifoldflow.serving.run import serve\nfrom {module} import {name}\n"
            f"serve({name}, {dict(models)!r}, port=0, **{options!r})\n"
        )
        paths = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.known = None
        line = self.process.stdout.readline()
        assert " at http://127.0.0.1:" in line, line + self.process.stderr.read()
        self.port = int(line.split(" at http://127.0.0.1:")[1].split()[0])
        self.address = f"http://127.0.0.1:{self.port}"

    def connect(self):
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)

    def wait_healthy(self, seconds=WAIT):
        """Seconds until the server says that it is well."""
        start = time.monotonic()
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/healthz", timeout=5).json()["status"] == "ok":
                    return time.monotonic() - start
            assert time.monotonic() < start + seconds, "the server does not get well"
            time.sleep(0.05)

    def below(self):
        """The processes that it has started, and those below them: numbers and command lines. Needs /proc."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        found, rest = {}, [self.process.pid]
        while rest:
            parent = rest.pop()
            for child in [child for child, above in parents.items() if above == parent]:
                with contextlib.suppress(OSError):
                    found[child] = Path(f"/proc/{child}/cmdline").read_bytes().decode(), parent
                    rest.append(child)
        return found

    def fork_server(self):
        """The number of its fork server, or None."""
        made = [
            pid for pid, (line, above) in self.below().items() if "forkserver" in line and above == self.process.pid
        ]
        return made[0] if made else None

    def worker(self):
        """The number of its worker, or None."""
        server = self.fork_server()
        below = self.below().items()  # without a fork server it was spawned
        made = [pid for pid, (line, above) in below if above == server or (server is None and "spawn_main" in line)]
        if not made and self.known is not None:  # it outlives its fork server, and is then nobody's child
            with contextlib.suppress(OSError):
                if "Z" not in Path(f"/proc/{self.known}/stat").read_text().rpartition(")")[2].split()[0]:
                    return self.known
        self.known = made[0] if made else None
        return self.known

    def end(self, number):
        """Send a signal; the exit code and what was written to standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def close(self):
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
