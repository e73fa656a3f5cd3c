"""The queue: bounded, first come first served, with requests that can share a call of the model put into one."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from manifoldflow.serving.calls import one_line
from manifoldflow.serving.errors import Refused
from manifoldflow.serving.jobs import Job, gather, in_turn, message, requeue, settle
from manifoldflow.serving.pace import Pace
from manifoldflow.serving.worker import Caller, WorkerLost

WATCH = 1.0
"""Seconds between two looks at an idle worker."""

ATTEMPTS = 3
"""Calls that may be lost before a request is given up; the last one it has for itself."""

SURE = 0.5
"""Share of the time-out: a request that would probably take longer is not let into the queue."""

LATE = 0.8
"""Share of the time that a waiting request has left: one that would probably take longer is let go."""

HOPELESS = 2.0
"""Times the time-out: a request that alone would probably take longer is a mistake."""

ENDING = "the server is shutting down"

T = TypeVar("T")


class Scheduler:
    """Brings jobs to the worker, one call at a time; what arrives meanwhile shares the next call.

    Args:
        worker: that answers.
        capacity: jobs that wait or run at most.
        timeout: seconds that a job may take from its arrival.
    """

    def __init__(self, worker: Caller, capacity: int = 128, timeout: float = 60.0) -> None:
        if capacity < 1 or not 0 < timeout < math.inf:
            raise ValueError(f"queue must be at least 1 and timeout above 0 s, got {capacity} and {timeout}")
        self.worker, self.capacity, self.timeout = worker, capacity, timeout
        self.requests, self.model_calls = 0, 0
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._loop: asyncio.Task[None] | None = None
        self._pace = Pace()
        self._is_closing = False
        self._failures, self._reason = 0, ""

    # ---------------------------------------------------------------- requests

    async def run(self, job: Job, left: Callable[[], Awaitable[None]] | None = None) -> list[Any]:
        """Queue a job and wait for its result.

        Args:
            job: a new one.
            left: returns when the client has gone; the job is dropped then.

        Raises:
            Refused: the queue is full or slow (429), the time is over (504), the worker was lost (503), it cannot be met or not
                in time (422), or the client has gone (499).
        """
        if self._is_closing:
            raise Refused(503, ENDING)
        if job.model in self.worker.replaced:
            raise _replaced(job.model)
        foreseen, start = self._admit(job), time.monotonic()
        job.future, job.deadline = asyncio.get_running_loop().create_future(), start + self.timeout
        job.arrived = job.turn = start
        self._queue.append(job)
        self.requests += 1
        self._wake.set()
        gone = asyncio.ensure_future(left()) if left is not None else None
        watched: set[asyncio.Future[Any]] = {job.future} if gone is None else {job.future, gone}
        try:
            await asyncio.wait(watched, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if job.future.done():
                return job.future.result()
            if gone is not None and gone.done():
                raise Refused(499, "the client has gone")
            raise Refused(504, f"no result within {self.timeout:g} s; {job.advice}")
        finally:
            self._pace.correct(foreseen, time.monotonic() - start)
            self._drop(job)
            if gone is not None:
                gone.cancel()

    def _admit(self, job: Job) -> float:
        """Seconds that a job will probably take; refuse what would take too long before it has a place that others could use."""
        others = [*self._queue, *(other for other in self._running if not other.future.done())]
        own, wait = self._pace.wait(job, []), self._pace.wait(job, others)
        if own > HOPELESS * self.timeout:
            limit = f"at most {self.timeout:g} s are given"
            raise Refused(422, f"this would take about {own:.0f} s, {limit}: ask for less")
        if len(others) >= self.capacity:
            raise _busy(f"the queue is full ({self.capacity} requests)", wait)
        if others and wait > SURE * self.timeout:
            raise _busy(f"the server is busy ({len(others)} requests before this one, about {wait:.0f} s)", wait)
        return wait

    def _shed(self) -> None:
        """Let go of those that will not be done in the time they have left: the models may have become slower, or were away."""
        kept: list[Job] = []
        for job in self._queue:
            wait = self._pace.wait(job, kept)
            if kept and wait > LATE * (job.deadline - time.monotonic()):
                job.refuse(_busy("the server has become too busy to do this in time", wait))
            else:
                kept.append(job)
        self._queue = kept

    @property
    def queued(self) -> int:
        """Jobs that wait or run."""
        return len(self._queue) + sum(not job.future.done() for job in self._running)

    def _drop(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)
        job.future.cancel()  # does nothing where it is done

    # ---------------------------------------------------------------- life

    @property
    def status(self) -> tuple[str, str | None]:
        """``"ok"``, ``"starting"`` or ``"unhealthy"``, and why."""
        if self._loop is None or self._loop.done():
            return "unhealthy", "the queue is not being served"
        if self.worker.is_ready:
            return "ok", None
        # One failure may be a worker that was killed while it loaded.
        return ("unhealthy", self._reason) if self._failures > 1 else ("starting", self._reason or None)

    def start(self) -> None:
        """Start the worker and serve the queue; to be called inside the event loop."""
        self._loop = asyncio.ensure_future(self._live())

    def give_up(self) -> None:
        """Answer all jobs with 503, and those to come."""
        self._is_closing = True
        self._refuse_all(Refused(503, ENDING))

    async def close(self) -> None:
        """End: jobs that are left get 503, the worker is killed."""
        self.give_up()
        with contextlib.suppress(Exception):  # the end must come, whatever has happened to the worker
            await asyncio.to_thread(self.worker.close)
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        await asyncio.to_thread(self._thread.shutdown)

    async def _live(self) -> None:
        """Serve the queue for ever. Nothing that goes wrong ends it: a server without its queue would wait for a person."""
        while True:
            try:
                await self._in_thread(self.worker.ensure)
            except Exception as error:  # WorkerLost, and whatever nobody thought of
                self._failures += 1
                self._reason = str(error) if isinstance(error, WorkerLost) else one_line(error)
                if self._failures > 1:
                    self._refuse_all(Refused(503, f"{self._reason}; try again later", 10))
                await asyncio.sleep(min(0.25 * 2**self._failures, 10.0))
                continue
            self._failures, self._reason = 0, ""
            try:
                self._pace.expect(self.worker.rates)
                await self._work_off()
            except WorkerLost as error:
                self._reason = str(error)
                self._retry(str(error))
            except Exception as error:  # a fault of this program must not end the server
                self._refuse_all(Refused(500, f"a fault of the server: {one_line(error)}"))
                await asyncio.sleep(0.05)  # nor let it spin

    async def _work_off(self) -> None:
        """Serve until the worker is lost, or seen dead while idle."""
        for job in list(self._queue):
            if job.model in self.worker.replaced:
                job.refuse(_replaced(job.model))
        while True:
            self._queue = [job for job in self._queue if not job.future.done()]
            if not self._queue:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), WATCH)
                if not self._queue:
                    if not await self._in_thread(self.worker.check):
                        return
                    continue
            self._shed()
            most = self._pace.rows(self._queue[0])
            group, rows = gather(self._queue, most)
            self._running, chosen = group, set(group)
            self._queue = [job for job in self._queue if job not in chosen]
            start = time.monotonic()
            answer = await self._in_thread(partial(self.worker.call, message(group, rows), self.timeout))
            self._pace.learn(group[0], sum(rows), time.monotonic() - start)
            self.model_calls += 1
            if answer.fault is None:
                settle(group, rows, answer)
            elif len(group) > 1:  # one of them may be the cause: each for itself
                for job in group:
                    job.attempts = max(job.attempts, 2)
            else:
                group[0].refuse(Refused(500, f"the model failed: {answer.fault}"))
            self._queue = requeue(self._queue, [job for job in group if not job.future.done()], most, time.monotonic())
            self._running = []

    def _retry(self, reason: str) -> None:
        """Put what was under way in front again, or give it up."""
        for job in self._running:
            job.attempts += 1
            if job.attempts >= ATTEMPTS:
                job.refuse(Refused(503, f"{reason}; try again later", 1))
        self._queue = in_turn(job for job in [*self._running, *self._queue] if not job.future.done())
        self._running = []

    def _refuse_all(self, refused: Refused) -> None:
        for job in [*self._running, *self._queue]:
            job.refuse(refused)
        self._queue, self._running = [], []

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _busy(why: str, wait: float) -> Refused:
    again = min(60, max(1, math.ceil(wait / 2)))
    return Refused(429, f"{why}; try again in {again} s", again)


def _replaced(model: str) -> Refused:
    text = f"the checkpoint of {model!r} was replaced since the server started; restart the server to serve the new one"
    return Refused(503, text)
