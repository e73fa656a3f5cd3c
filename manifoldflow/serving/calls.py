"""What goes to the worker and comes back: plain data, since it crosses from one process to another."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Args:
        name: in requests.
        path: of its checkpoint.
        about: what the task knows of it without its weights, such as its configuration; plain data.
        digest: of the file when the server started, by :func:`digest_of`; empty where nobody checks.
    """

    name: str
    path: str
    about: Any = None
    digest: str = ""


@dataclass(frozen=True)
class Call:
    """One call of a model for several jobs.

    Args:
        kind: what is to be done, as the jobs name it.
        model: its name.
        wants: what every job wants, all of one key; plain data.
        rows: that each gets in this call.
        state: of the generator: a seed, the state that the last call left, or None for fresh randomness.
    """

    kind: str
    model: str
    wants: tuple[Any, ...]
    rows: tuple[int, ...]
    state: int | bytes | None = None


@dataclass(frozen=True)
class Answer:
    """What a call gave.

    Attributes:
        parts: for every job its results, or the message of what is wrong with it.
        state: of the generator after the call, where it had a seed.
        fault: the call failed as a whole; nothing else is set.
        rates: of a worker that has just started: what ``Model.measure`` found, for every model.
        replaced: of a worker that has just started: models whose file is another one than when the server started.
    """

    parts: tuple[list[Any] | str, ...] = ()
    state: bytes | None = None
    fault: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()


class Model(Protocol):
    """A model at work in the process that holds it."""

    def answer(self, call: Call) -> Answer:
        """Do what a call asks for. An exception fails the call; a string in ``parts`` refuses one job of it."""
        ...

    def measure(self) -> float:
        """How fast it is, in units (:attr:`Job.unit`) a second; 0 if it is not known before the first calls."""
        ...


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: BaseException) -> str:
    """The message of an error; with its kind where it is not one of those that are meant to be read."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__} {text}".strip()
