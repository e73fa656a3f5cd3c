"""Requests as jobs of the queue: what goes into one call of the model, and what comes back."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from manifoldflow.tasks.dna.orders import BATCH, Order, Progress
from manifoldflow.tasks.dna.serving.calls import Answer, DesignCall, ScoreCall

ROUNDS = 10
"""Calls that bring an order nothing before the server gives it up: about a thousand sequences."""


class Refused(Exception):
    """A request that gets no result.

    Args:
        status: of HTTP.
        detail: one line that says why.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


@dataclass(eq=False)
class Job:
    """A request on its way.

    Args:
        model: name of the model.
        seed: of the draws; with one the job has its calls for itself, so that the result does not depend on others.
    """

    model: str
    seed: int | None
    future: asyncio.Future[list[Any]] = field(init=False)
    deadline: float = field(default=math.inf, init=False)
    attempts: int = field(default=0, init=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """Jobs of one key may share a call."""
        raise NotImplementedError

    @property
    def is_alone(self) -> bool:
        """Whether it has its calls for itself: for its seed, or since calls that it shared were lost twice."""
        return self.seed is not None or self.attempts >= 2

    @property
    def rows(self) -> int:
        """Sequences that it would like to have in the next call."""
        raise NotImplementedError

    @property
    def left(self) -> int:
        """Sequences that it needs at least until it is done."""
        return self.rows

    @property
    def unit(self) -> float:
        """What a row costs: evaluations of the network, times letters."""
        raise NotImplementedError

    def take(self, part: list[Any] | str, rows: int, state: bytes | None) -> None:
        """Keep what a call gave; the future is set when that is all."""
        raise NotImplementedError

    def refuse(self, refused: Refused) -> None:
        """End it without a result."""
        if not self.future.done():
            self.future.set_exception(refused)


@dataclass(eq=False)
class DesignJob(Job):
    """An order of designs, drawn in as many calls as it takes.

    Args:
        order: what is wanted.
    """

    order: Order
    progress: Progress = field(init=False)
    designs: list[Any] = field(default_factory=list, init=False)
    state: int | bytes | None = field(init=False)

    def __post_init__(self) -> None:
        self.progress, self.state = Progress(self.order, ROUNDS), self.seed

    @property
    def key(self) -> tuple[Any, ...]:
        return ("design", self.model, self.order.shape)

    @property
    def rows(self) -> int:
        return self.progress.wanted

    @property
    def left(self) -> int:
        return self.order.n - self.progress.found

    @property
    def unit(self) -> float:
        length, guidance, steps, _ = self.order.shape
        return length * steps * (1 if guidance == 1 else 2)

    def take(self, part: list[Any] | str, rows: int, state: bytes | None) -> None:
        if isinstance(part, str):
            return self.refuse(Refused(422, part))
        self.state = state
        try:
            self.designs += self.progress.take(part, rows)
        except RuntimeError as error:
            return self.refuse(Refused(422, str(error).removesuffix(", or raise rounds=").replace("less;", "less")))
        if self.progress.is_done and not self.future.done():
            self.future.set_result(self.designs)


@dataclass(eq=False)
class ScoreJob(Job):
    """Sequences to score, in one call.

    Args:
        sequences: of one length.
        label: class under which to score.
        samples: times that the bound is averaged over.
    """

    sequences: tuple[str, ...]
    label: str | None
    samples: int

    @property
    def key(self) -> tuple[Any, ...]:
        return ("score", self.model, len(self.sequences[0]), self.samples)

    @property
    def rows(self) -> int:
        return len(self.sequences)

    @property
    def unit(self) -> float:
        return len(self.sequences[0]) * self.samples

    def take(self, part: list[Any] | str, rows: int, state: bytes | None) -> None:
        if isinstance(part, str):
            self.refuse(Refused(422, part))
        elif not self.future.done():
            self.future.set_result(part)


def gather(queue: Sequence[Job], most: int = BATCH) -> tuple[list[Job], list[int]]:
    """The jobs that go into the next call, and the rows of each: the first of the queue, and others that can share its call.

    In the order of the queue each gets what it wants until there are ``most`` rows; what an order still lacks then comes in a
    later call. Scores are taken whole. A job that has its calls for itself gets what the library would draw at once.
    """
    first = queue[0]
    if first.is_alone:
        return [first], [first.rows]
    group, rows, left = [first], [min(first.rows, most)], most - first.rows
    if isinstance(first, ScoreJob):
        rows = [first.rows]
    for job in queue[1:]:
        if left <= 0:
            break
        if job.key != first.key or job.is_alone or (isinstance(job, ScoreJob) and job.rows > left):
            continue
        group.append(job)
        rows.append(min(job.rows, left))
        left -= job.rows
    return group, rows


def requeue(queue: Sequence[Job], rest: Sequence[Job], most: int) -> list[Job]:
    """The queue with those again that a call has not finished.

    What lacks a few of the ``most`` rows of a call comes first, so that nobody waits for a whole round because of one sequence
    that had to be drawn again; what lacks many goes behind those that wait.
    """
    few = [job for job in rest if job.rows <= most // 4]
    return [*few, *queue, *(job for job in rest if job not in few)]


def message(group: Sequence[Job], rows: Sequence[int]) -> DesignCall | ScoreCall:
    """The call for a group of :func:`gather`."""
    first = group[0]
    if isinstance(first, DesignJob):
        orders = tuple(job.order for job in group if isinstance(job, DesignJob))
        return DesignCall(first.model, orders, tuple(rows), first.state)
    assert isinstance(first, ScoreJob)
    some = [job for job in group if isinstance(job, ScoreJob)]
    return ScoreCall(
        first.model, tuple(job.sequences for job in some), tuple(job.label for job in some), first.samples, first.seed
    )


def settle(group: Sequence[Job], rows: Sequence[int], answer: Answer) -> None:
    """Hand the parts of an answer to the jobs."""
    for job, part, count in zip(group, answer.parts, rows, strict=True):
        job.take(part, count, answer.state)
