"""The process that holds the models. It may be killed or crash: whoever asked is told, and a new one is started."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from manifoldflow.serving.calls import Answer, Call, Model, Served, digest_of, one_line

PATIENCE = 300.0
"""Seconds in which a new worker must have loaded its models."""

STARTING = 120.0
"""Seconds in which a fork server must have started a process, importing included; one that hangs is killed then."""

ENDING = "the server is shutting down"


class WorkerLost(Exception):
    """The worker died, hangs, or could not be started."""


class Caller(Protocol):
    """What the queue needs of a worker. All methods may block, so they are called in a thread."""

    is_ready: bool
    starts: int
    rates: Mapping[str, float]
    replaced: Sequence[str]

    def ensure(self) -> None:
        """Start the worker unless it lives; raises :class:`WorkerLost` if that fails."""
        ...

    def call(self, message: Call, timeout: float) -> Answer:
        """Have the models do something; raises :class:`WorkerLost` if the worker dies or takes longer than ``timeout``."""
        ...

    def check(self) -> bool:
        """Whether it lives."""
        ...

    def close(self) -> None:
        """End it for good; a call under way raises :class:`WorkerLost`."""
        ...


class Worker:
    """The worker as its parent sees it.

    Args:
        loader: ``"package.module:function"`` that makes a model of a :class:`Served`, in the worker.
        models: to load.
        threads: of torch in the worker; as many as there are cores if absent.
    """

    def __init__(self, loader: str, models: Sequence[Served], threads: int | None = None) -> None:
        self.loader, self.models, self.threads = loader, tuple(models), threads
        self.is_ready, self.starts = False, 0
        self.rates: Mapping[str, float] = {}
        self.replaced: Sequence[str] = ()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._lock, self._is_closed, self._is_starting = threading.Lock(), False, False
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """Number of the process."""
        return self._process.pid if self._process is not None else None

    def check(self) -> bool:
        """Whether it lives."""
        lives = self._pipe is not None and not self._has_ended()
        self.is_ready = self.is_ready and lives
        if lives:
            _keep_fork_server()
        return lives

    def _has_ended(self) -> bool:
        """Whether the worker's end of the pipe is closed: it alone holds it, and a worker that rests says nothing.

        The process itself counts as dead as soon as the fork server is, which need not disturb the worker.
        """
        try:
            while self._pipe is not None and self._pipe.poll():
                self._pipe.recv_bytes()
        except (EOFError, OSError):
            return True
        return self._pipe is None

    def ensure(self) -> None:
        """Start a worker and load the models, unless one lives.

        Raises:
            WorkerLost: it could not be started, died while loading, took too long, or could not load a model.
        """
        if self.check() and self.is_ready:
            return
        self._end()
        try:
            self._start()
        except WorkerLost:
            raise
        except Exception as error:  # no descriptors or memory, or the fork server died in between: the next try may do
            self._failures += 1
            self._end()
            raise WorkerLost(f"no worker could be started: {one_line(error)}") from error
        self._failures = 0
        answer = self._receive(PATIENCE)
        if answer.fault is not None:
            self._end()
            raise WorkerLost(f"the models could not be loaded: {answer.fault}")
        self.is_ready, self.rates, self.replaced = True, answer.rates, answer.replaced

    def _start(self) -> None:
        # Twice in vain by the fork server: without it, which is slower and needs less.
        context = _context(self.loader) if self._failures < 2 else multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        work = (theirs, self.loader, self.models, self.threads)
        process = context.Process(target=_work, args=work, name="manifoldflow-worker", daemon=True)
        hanging = threading.Timer(STARTING, _kill_fork_server)  # start() waits for the fork server, which may hang
        hanging.daemon = True
        try:
            with self._lock:
                if self._is_closed:
                    raise WorkerLost(ENDING)
                self._is_starting = True
            hanging.start()
            process.start()
            with self._lock:
                self._is_starting = False
                if self._is_closed:
                    _kill(process)
                    raise WorkerLost(ENDING)
                self._process, self._pipe, self.starts = process, ours, self.starts + 1
        except BaseException:
            ours.close()
            raise
        finally:
            self._is_starting = False
            hanging.cancel()
            theirs.close()  # so that its end is seen as the end of the pipe

    def call(self, message: Call, timeout: float) -> Answer:
        """Have the models do something.

        Raises:
            WorkerLost: it died, or took longer than ``timeout`` and was killed.
        """
        if self._pipe is None:
            raise WorkerLost("the worker is not running")
        try:
            self._pipe.send(message)
        except OSError:
            raise self._lost("the worker has died") from None
        answer = self._receive(timeout)
        _keep_fork_server()
        return answer

    def close(self) -> None:
        """Kill the worker; no other is started."""
        with self._lock:
            self._is_closed = True
            process = self._process
            if self._is_starting:
                _kill_fork_server()  # which is what it waits for, and may be importing for a while yet
        if process is not None:
            _kill(process)  # it holds nothing that could be lost, and a thread that waits for it is woken
            process.join(5)

    def _receive(self, timeout: float) -> Answer:
        assert self._pipe is not None
        try:
            if self._pipe.poll(timeout):
                answer = self._pipe.recv()  # one that was sent before the end still counts
                assert isinstance(answer, Answer)
                return answer
        except (EOFError, OSError):
            raise self._lost("the worker has died") from None
        raise self._lost(f"the worker gave no answer in {timeout:g} s")

    def _lost(self, reason: str) -> WorkerLost:
        if self._process is not None and self._has_ended():
            self._process.join(1)  # its exit code comes a little after the end of its pipe
        code = self._process.exitcode if self._process is not None else None
        self._end()
        return WorkerLost(reason + (f" (exit code {code})" if code is not None else ""))

    def _end(self) -> None:
        self.is_ready = False
        process, pipe, has_ended = self._process, self._pipe, self._has_ended()
        self._process = self._pipe = None
        if process is not None:
            if not has_ended:
                _kill(process)
            process.join(5)
        if pipe is not None:
            pipe.close()


def _kill(process: BaseProcess) -> None:
    """Kill a worker that lives, also where its object takes it for dead because its fork server is."""
    if process.pid is not None:
        with contextlib.suppress(OSError):
            process.kill()
            if process.exitcode is not None and process.exitcode != -signal.SIGKILL:
                os.kill(process.pid, signal.SIGKILL)


def _kill_fork_server() -> None:
    from multiprocessing import forkserver

    number = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if number is not None:
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)


def _keep_fork_server() -> None:
    """Start the fork server again if it has died, while the worker still answers: importing takes it seconds."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        with contextlib.suppress(Exception):  # without it the next worker takes longer, that is all
            if forkserver._forkserver._forkserver_pid is not None:  # type: ignore[attr-defined]
                forkserver.ensure_running()


def _context(loader: str) -> Any:
    """How workers are started: never by a fork of this process, whose threads hold locks.

    A fork server has everything imported and nothing running, so a worker that is lost is back in the time its models take to
    load; importing torch anew takes seconds. Where there is none, as on Windows, each worker imports for itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, loader.partition(":")[0]])
    return context


class Bench:
    """The models in the process that holds them.

    Args:
        loader: as of :class:`Worker`.
        models: to load. One whose file is not the one that was served before is left out: under its name nobody may get
            another model.
        threads: of torch.
    """

    def __init__(self, loader: str, models: Sequence[Served], threads: int | None = None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        module, _, function = loader.partition(":")
        load = getattr(importlib.import_module(module), function)
        self.models: dict[str, Model] = {}
        for served in models:
            if _is_same(served):
                try:
                    made = load(served)
                except Exception:
                    if _is_same(served):
                        raise
                    continue  # it was replaced under our hands
                if _is_same(served):
                    self.models[served.name] = made
        self.replaced = tuple(served.name for served in models if served.name not in self.models)

    def measure(self) -> dict[str, float]:
        """How fast each model is."""
        return {name: model.measure() for name, model in self.models.items()}

    def answer(self, call: Call) -> Answer:
        """What a call gives."""
        return self.models[call.model].answer(call)


def _is_same(served: Served) -> bool:
    try:
        return not served.digest or digest_of(served.path) == served.digest
    except OSError:
        return False


def _work(pipe: Connection, loader: str, models: Sequence[Served], threads: int | None) -> None:
    """The worker's life: load, then answer until the pipe closes, which it also does when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        bench = Bench(loader, models, threads)
        ready = Answer(rates=bench.measure(), replaced=bench.replaced)
    except Exception as error:
        pipe.send(Answer(fault=one_line(error)))
        return
    pipe.send(ready)
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = bench.answer(message)
        except Exception as error:
            answer = Answer(fault=one_line(error))
        try:
            pipe.send(answer)
        except OSError:
            return
