"""Requests as jobs of the queue: what goes into one call of the model, and what comes back."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from manifoldflow.serving.calls import Answer, Call, one_line
from manifoldflow.serving.errors import Refused

MOST_ROWS = 256
"""Rows that a call of a model has at most, unless its jobs say otherwise."""


@dataclass(eq=False)
class Job:
    """A request on its way. A subclass says what it wants; the rest has defaults that fit a request of one call.

    Args:
        model: name of the model.
        seed: of the draws; with one the job has its calls for itself, so that the result does not depend on others.

    Attributes:
        kind: what the worker's model is told to do.
        is_whole: its rows go into one call all at once; otherwise into as many calls as it takes.
        most_rows: that a call of this kind has at most.
        state: of the generator, for the next call.
        arrived, deadline: seconds of :func:`time.monotonic`.
        turn: jobs are served in this order; :func:`requeue` changes it.
        attempts: calls that were lost.
    """

    kind: ClassVar[str]
    is_whole: ClassVar[bool] = True
    most_rows: ClassVar[int] = MOST_ROWS

    model: str
    seed: int | None
    state: int | bytes | None = field(init=False)
    future: asyncio.Future[list[Any]] = field(init=False)
    arrived: float = field(default=0.0, init=False)
    deadline: float = field(default=math.inf, init=False)
    turn: float = field(default=0.0, init=False)
    attempts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.state = self.seed

    @property
    def want(self) -> Any:
        """What goes to the worker: plain data."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[Any, ...]:
        """What jobs of one kind and model must have in common to share a call."""
        return ()

    @property
    def key(self) -> tuple[Any, ...]:
        """Jobs of one key may share a call."""
        return (self.kind, self.model, *self.shape)

    @property
    def is_alone(self) -> bool:
        """Whether it has its calls for itself: for its seed, or since calls that it shared were lost twice."""
        return self.seed is not None or self.attempts >= 2

    @property
    def rows(self) -> int:
        """Rows of a batch that it would like to have in the next call."""
        return 1

    @property
    def left(self) -> int:
        """Rows that it needs at least until it is done."""
        return self.rows

    @property
    def unit(self) -> float:
        """What a row costs, in any unit that is one for all jobs of a model: evaluations of the network, say."""
        return 1.0

    @property
    def advice(self) -> str:
        """What to do if the time is over, after "no result within ... s"."""
        return "ask for less or try again later"

    def take(self, part: list[Any] | str, rows: int, state: bytes | None) -> None:
        """Keep what a call gave; :meth:`finish` when that is all, :meth:`refuse` if it is none."""
        if isinstance(part, str):
            self.refuse(Refused(422, part))
        else:
            self.finish(part)

    def finish(self, results: list[Any]) -> None:
        """End it with results."""
        if not self.future.done():
            self.future.set_result(results)

    def refuse(self, refused: Refused) -> None:
        """End it without a result."""
        if not self.future.done():
            self.future.set_exception(refused)


def gather(queue: Sequence[Job], most: int = MOST_ROWS) -> tuple[list[Job], list[int]]:
    """The jobs that go into the next call, and the rows of each: the first of the queue, and others that can share its call.

    In the order of the queue each gets what it wants until there are ``most`` rows; what one still lacks then comes in a later
    call. Whole jobs are taken whole. A job that has its calls for itself gets what the library would draw at once.
    """
    first = queue[0]
    if first.is_alone:
        return [first], [first.rows]
    group, rows, left = [first], [first.rows if first.is_whole else min(first.rows, most)], most - first.rows
    for job in queue[1:]:
        if left <= 0:
            break
        if job.key != first.key or job.is_alone or (job.is_whole and job.rows > left):
            continue
        group.append(job)
        rows.append(min(job.rows, left))
        left -= job.rows
    return group, rows


def in_turn(jobs: Iterable[Job]) -> list[Job]:
    """Jobs in the order in which they are served."""
    return sorted(jobs, key=lambda job: job.turn)


def requeue(queue: Sequence[Job], rest: Sequence[Job], most: int, now: float) -> list[Job]:
    """The queue with those again that a call has not finished.

    What lacks a few of the ``most`` rows of a call keeps its turn: it is served before those that came after it, never before
    those that came earlier. (Served before all, it would draw in everybody whose request fits its calls, and those with calls
    of their own would wait for as long as such requests keep coming.) What lacks many goes behind those that wait now.
    """
    for job in rest:
        if job.rows > most // 4:
            job.turn = now
    return in_turn([*queue, *rest])


def message(group: Sequence[Job], rows: Sequence[int]) -> Call:
    """The call for a group of :func:`gather`."""
    first = group[0]
    return Call(first.kind, first.model, tuple(job.want for job in group), tuple(rows), first.state)


def settle(group: Sequence[Job], rows: Sequence[int], answer: Answer) -> None:
    """Hand the parts of an answer to the jobs; one that cannot take its part does not hurt the others."""
    if len(answer.parts) != len(group):
        raise RuntimeError(f"the model gave {len(answer.parts)} parts for {len(group)} jobs")
    for job, part, count in zip(group, answer.parts, rows, strict=True):
        try:
            job.take(part, count, answer.state)
        except Exception as error:
            job.refuse(Refused(500, f"a fault of the server: {one_line(error)}"))
