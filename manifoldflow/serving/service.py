"""What a task tells the server about itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from manifoldflow.serving.calls import Served
from manifoldflow.serving.jobs import Job


@dataclass(frozen=True)
class Endpoint:
    """One thing that the models do on request.

    Args:
        path: of the route, such as ``"/v1/design"``.
        request: what a request holds, a subclass of :class:`manifoldflow.serving.schema.Request`.
        answer: what an answer holds, a pydantic model.
        job: makes the job of a request to a model, after checking what its schema cannot; its ``ValueError`` is the caller's
            mistake (422). It runs in a thread.
        reply: makes the answer of the results: ``reply(served, request, results, seconds)``, JSON-able.
        summary: one sentence.
    """

    path: str
    request: type[Any]
    answer: type[Any]
    job: Callable[[Served, Any], Job]
    reply: Callable[[Served, Any, list[Any], float], dict[str, Any]]
    summary: str = ""


class Service:
    """A task that is served. Subclass it and say what follows.

    Attributes:
        title, summary: of the interface's documentation.
        prefix: embedded checkpoints of this task begin with it; requests may leave it out or not.
        loader: ``"package.module:function"``; in the worker process it makes a :class:`~manifoldflow.serving.calls.Model` of a
            :class:`Served`.
        panel: folder of the page: ``index.html``, and files that it asks for at ``static/``; None for no page.
        facts: pydantic model of what ``/v1/models`` says of a model; it has ``name``.
    """

    title: ClassVar[str] = "manifoldflow"
    summary: ClassVar[str] = ""
    prefix: ClassVar[str] = ""
    loader: ClassVar[str]
    panel: Path | None = None
    facts: ClassVar[type[Any] | None] = None

    def endpoints(self) -> Sequence[Endpoint]:
        """What the models do on request."""
        raise NotImplementedError

    def inspect(self, path: Path) -> Any:
        """What there is to know of a checkpoint without loading its weights; becomes ``Served.about``.

        Raises:
            ValueError: it is of another task, or damaged.
        """
        return None

    def describe(self, served: Served) -> dict[str, Any]:
        """What ``/v1/models`` says of a model, in the fields of ``facts``."""
        return {"name": served.name}
