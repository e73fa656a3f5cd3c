"""The process that holds the models. It may be killed or crash: whoever asked is told, and a new one is started."""

import multiprocessing
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from manifoldflow.tasks.dna.serving.calls import Answer, DesignCall, ScoreCall, Served

PATIENCE = 300.0
"""Seconds in which a new worker must have loaded its models."""


class WorkerLost(Exception):
    """The worker died, hangs, or could not be started."""


class Caller(Protocol):
    """What the queue needs of a worker. All methods may block, so they are called in a thread."""

    is_ready: bool
    starts: int
    rates: Mapping[str, float]

    def ensure(self) -> None:
        """Start the worker unless it lives; raises :class:`WorkerLost` if that fails."""
        ...

    def call(self, message: DesignCall | ScoreCall, timeout: float) -> Answer:
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
        models: to load.
        threads: of torch in the worker; as many as there are cores if absent.
    """

    def __init__(self, models: Sequence[Served], threads: int | None = None) -> None:
        self.models, self.threads = tuple(models), threads
        self.is_ready, self.starts = False, 0
        self.rates: Mapping[str, float] = {}
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._lock, self._is_closed = threading.Lock(), False

    @property
    def pid(self) -> int | None:
        """Number of the process."""
        return self._process.pid if self._process is not None else None

    def check(self) -> bool:
        """Whether it lives."""
        lives = self._process is not None and self._process.is_alive()
        self.is_ready = self.is_ready and lives
        return lives

    def ensure(self) -> None:
        """Start a worker and load the models, unless one lives.

        Raises:
            WorkerLost: it died while loading, took too long, or could not load a model.
        """
        if self.check() and self.is_ready:
            return
        self._end()
        context = _context()
        ours, theirs = context.Pipe()
        with self._lock:
            if self._is_closed:
                raise WorkerLost("the server is shutting down")
            process = context.Process(
                target=_work, args=(theirs, self.models, self.threads), name="manifoldflow-dna", daemon=True
            )
            process.start()
            theirs.close()  # so that its end is seen as the end of the pipe
            self._process, self._pipe, self.starts = process, ours, self.starts + 1
        answer = self._receive(PATIENCE)
        if answer.fault is not None:
            self._end()
            raise WorkerLost(f"the models could not be loaded: {answer.fault}")
        self.is_ready, self.rates = True, answer.rates

    def call(self, message: DesignCall | ScoreCall, timeout: float) -> Answer:
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
        return self._receive(timeout)

    def close(self) -> None:
        """Kill the worker; no other is started."""
        with self._lock:
            self._is_closed = True
            process = self._process
        if process is not None:
            process.kill()  # it holds nothing that could be lost, and a thread that waits for it is woken
            process.join(5)

    def _receive(self, timeout: float) -> Answer:
        pipe, process = self._pipe, self._process
        assert pipe is not None and process is not None
        if not wait([pipe, process.sentinel], timeout):
            raise self._lost(f"the worker gave no answer in {timeout:g} s")
        try:
            # An answer that was sent before the end still counts.
            if pipe.poll():
                answer = pipe.recv()
                assert isinstance(answer, Answer)
                return answer
        except (EOFError, OSError):
            pass
        raise self._lost("the worker has died")

    def _lost(self, reason: str) -> WorkerLost:
        code = self._process.exitcode if self._process is not None else None
        self._end()
        return WorkerLost(reason + (f" (exit code {code})" if code is not None else ""))

    def _end(self) -> None:
        self.is_ready = False
        if self._process is not None:
            self._process.kill()
            self._process.join(5)
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _context() -> Any:
    """How workers are started: never by a fork of this process, whose threads hold locks.

    A fork server has everything imported and nothing running, so a worker that is lost is back in the time its models take to
    load; importing torch anew takes seconds. Where there is none, as on Windows, each worker imports for itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["manifoldflow.tasks.dna.serving.desk"])
    return context


def _work(pipe: Connection, models: Sequence[Served], threads: int | None) -> None:
    """The worker's life: load, then answer until the pipe closes, which it also does when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    from manifoldflow.tasks.dna.serving.desk import Desk, one_line

    try:
        desk = Desk(models, threads)
        rates = {model.name: desk.measure(model.name) for model in models}
    except Exception as error:
        pipe.send(Answer(fault=one_line(error)))
        return
    pipe.send(Answer(rates=rates))
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = desk.answer(message)
        except Exception as error:
            answer = Answer(fault=one_line(error))
        try:
            pipe.send(answer)
        except OSError:
            return
