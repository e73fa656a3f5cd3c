"""What goes to the worker and comes back: plain data, since it crosses from one process to another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manifoldflow.tasks.dna.motifs import Motif
from manifoldflow.tasks.dna.orders import Order


@dataclass(frozen=True)
class Served:
    """A model to serve.

    Args:
        name: in requests.
        path: of its checkpoint.
        motifs: of its tracks.
    """

    name: str
    path: str
    motifs: tuple[Motif, ...] = ()


@dataclass(frozen=True)
class DesignCall:
    """One call of a model for several orders.

    Args:
        model: its name.
        orders: all of one shape.
        rows: sequences to draw for each.
        state: of the generator: a seed, the state that the last call left, or None for fresh randomness.
    """

    model: str
    orders: tuple[Order, ...]
    rows: tuple[int, ...]
    state: int | bytes | None = None


@dataclass(frozen=True)
class ScoreCall:
    """One call of a model that scores the sequences of several requests, all of one length.

    Args:
        model: its name.
        sequences: of every request.
        labels: class of every request.
        samples: times that the bound is averaged over.
        seed: of the noise; None for fresh randomness.
    """

    model: str
    sequences: tuple[tuple[str, ...], ...]
    labels: tuple[str | None, ...]
    samples: int
    seed: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a call gave.

    Attributes:
        parts: of every order or request its designs (as dicts), its scores, or the message of what is wrong with it.
        state: of the generator after the call, where it had a seed.
        fault: the call failed as a whole; nothing else is set.
        rates: of a worker that has just started: network evaluations of one letter in a second, for every model.
    """

    parts: tuple[list[Any] | str, ...] = ()
    state: bytes | None = None
    fault: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
