"""The two jobs of the sequence designer: designs, in as many calls as it takes, and scores, in one."""

import time
from dataclasses import dataclass, field
from typing import Any

from manifoldflow.serving import Job, Refused
from manifoldflow.tasks.dna.orders import BATCH, Order, Progress

ROUNDS = 10
"""Calls that bring an order nothing before the server gives it up: about a thousand sequences."""

PATIENCE = 0.3
"""Share of its time after which an order that has found nothing is given up, with the reason: the rest would bring no more."""


@dataclass(eq=False)
class DesignJob(Job):
    """An order of designs.

    Args:
        order: what is wanted.
    """

    kind = "design"
    is_whole = False
    most_rows = BATCH

    order: Order
    progress: Progress = field(init=False)
    designs: list[Any] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.progress = Progress(self.order, ROUNDS)

    @property
    def want(self) -> Order:
        return self.order

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.order.shape

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

    @property
    def advice(self) -> str:
        drawn, found = self.progress.drawn, self.progress.found
        if drawn and self.order.may_fail and found < drawn / 2:
            return f"only {found} of {drawn} sequences passed: {_widen(self.order)}, or ask for fewer"
        return "ask for fewer sequences or try again later"

    def take(self, part: list[Any] | str, rows: int, state: bytes | None) -> None:
        if isinstance(part, str):
            return self.refuse(Refused(422, part))
        self.state = state
        try:
            self.designs += self.progress.take(part, rows)
        except RuntimeError:
            return self._give_up()
        if self.progress.is_done:
            return self.finish(self.designs)
        late = self.arrived + PATIENCE * (self.deadline - self.arrived)
        if not self.designs and self.progress.drawn >= BATCH and time.monotonic() > late:
            self._give_up()

    def _give_up(self) -> None:
        found, drawn = self.progress.found, self.progress.drawn
        text = f"only {found} of {drawn} sequences had {_asked(self.order)}; {_widen(self.order)}"
        self.refuse(Refused(422, text))


@dataclass(eq=False)
class ScoreJob(Job):
    """Sequences to score.

    Args:
        sequences: of one length.
        label: class under which to score.
        samples: times that the bound is averaged over.
    """

    kind = "score"

    sequences: tuple[str, ...]
    label: str | None
    samples: int

    @property
    def want(self) -> tuple[tuple[str, ...], str | None, int]:
        return self.sequences, self.label, self.samples

    @property
    def shape(self) -> tuple[Any, ...]:
        return len(self.sequences[0]), self.samples

    @property
    def rows(self) -> int:
        return len(self.sequences)

    @property
    def unit(self) -> float:
        return len(self.sequences[0]) * self.samples


def _has_range(order: Order) -> bool:
    return order.gc_range[0] > 0 or order.gc_range[1] < 1


def _asked(order: Order) -> str:
    """What the sequences had to pass, in words."""
    least, most = order.gc_range
    parts = [f"a GC share from {least:g} to {most:g}"] if _has_range(order) else []
    parts += ["none of the sites " + ", ".join(order.avoid_sites)] if order.avoid_sites else []
    return " and ".join(parts)


def _widen(order: Order) -> str:
    """What to do if too few pass."""
    parts = ["widen the GC range"] if _has_range(order) else []
    parts += ["avoid fewer sites"] if order.avoid_sites else []
    return " or ".join(parts)
