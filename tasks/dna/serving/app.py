"""The web application: routes, and one line of text for everything that goes wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message

from manifoldflow.checkpoint import read_metadata
from manifoldflow.tasks.dna.designer import can_score, check_scorable
from manifoldflow.tasks.dna.flow import DnaConfig
from manifoldflow.tasks.dna.orders import make_order
from manifoldflow.tasks.dna.serving import schema
from manifoldflow.tasks.dna.serving.body import MOST_BYTES, BodyLimit
from manifoldflow.tasks.dna.serving.calls import Served
from manifoldflow.tasks.dna.serving.jobs import DesignJob, Refused, ScoreJob
from manifoldflow.tasks.dna.serving.scheduler import Scheduler
from manifoldflow.tasks.dna.serving.tracks import choose_motifs, own_motifs, title
from manifoldflow.tasks.dna.serving.worker import Caller, Worker

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
MOST_TEXT = 65_536
"""Sequences times samples that one request may have scored."""


class PageFiles(StaticFiles):
    """The page's files, asked for anew: an upgrade must not pair old scripts with a new page."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


class Catalogue:
    """The models that are served: their configurations and motifs, without their weights.

    Args:
        models: checkpoint file or run folder by name.
        motifs: file for the tracks; without one a model trained on the planted set shows its own.
        motif: names of motifs of that file, with commas.

    Raises:
        ValueError: no models, or a checkpoint of another task.
    """

    def __init__(
        self, models: Mapping[str, str | Path], motifs: str | Path | None = None, motif: str | None = None
    ) -> None:
        if not models:
            raise ValueError("there is no model to serve: give at least one checkpoint")
        chosen = choose_motifs(motifs, motif)
        self.configs: dict[str, DnaConfig] = {}
        self.served: dict[str, Served] = {}
        for name, given in models.items():
            path = Path(given) / "model.safetensors" if Path(given).is_dir() else Path(given)
            metadata = read_metadata(path)
            if metadata["builder"] != "manifoldflow.tasks.dna.flow:build":
                raise ValueError(f"{path} is no sequence flow (it was built by {metadata['builder'] or 'hand'})")
            try:
                self.configs[name] = DnaConfig(**metadata["config"])
            except TypeError as error:
                raise ValueError(f"{path}: its configuration is not valid here: {error}") from None
            self.served[name] = Served(name, str(path.resolve()), chosen or own_motifs(path))

    def find(self, name: str | None) -> tuple[str, DnaConfig]:
        """A model by name, the first if there is none.

        Raises:
            Refused: no such model (404).
        """
        name = next(iter(self.configs)) if name is None else name
        if name not in self.configs:
            raise Refused(404, f"no model {schema.shown(name)}; the models are: {', '.join(self.configs)}")
        return name, self.configs[name]

    def facts(self) -> list[dict[str, Any]]:
        """What every model can do."""
        return [
            {
                "name": name,
                "representation": config.representation,
                "length": config.length,
                "alphabet": config.alphabet,
                "classes": list(config.class_names),
                "can_score": can_score(config),
                "motifs": [title(motif) for motif in self.served[name].motifs],
            }
            for name, config in self.configs.items()
        ]


def create_app(
    models: Mapping[str, str | Path],
    *,
    motifs: str | Path | None = None,
    motif: str | None = None,
    queue: int = 128,
    timeout: float = 60.0,
    threads: int | None = None,
    body_bytes: int = MOST_BYTES,
    worker: Caller | None = None,
) -> FastAPI:
    """The application; its worker lives from start-up to shutdown.

    Args:
        models: checkpoint file or run folder by name; requests get the first unless they name one.
        motifs: JASPAR, MEME or TRANSFAC file of motifs to show in designs.
        motif: names of motifs of that file, with commas; all of them if absent.
        queue: requests that may wait or run; more are answered with 429.
        timeout: seconds after which a request is answered with 504.
        threads: of torch in the worker.
        body_bytes: largest body of a request; longer ones are answered with 413.
        worker: in place of a process of its own.

    Raises:
        ValueError: no models, or a checkpoint or motif that cannot be used.
    """
    catalogue = Catalogue(models, motifs, motif)
    caller = worker or Worker(list(catalogue.served.values()), threads)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.scheduler = scheduler = Scheduler(caller, queue, timeout)
        scheduler.start()
        try:
            yield
        finally:
            await scheduler.close()

    Scheduler(caller, queue, timeout)  # a wrong limit is an error now and not at the start
    app = FastAPI(
        title="manifoldflow sequence designer",
        summary="Designs DNA with trained flows: classes, motifs to keep, sites to avoid.",
        lifespan=lifespan,
        responses={422: {"model": schema.Problem, "description": "a mistake in the request, in one line"}},
    )
    app.state.worker = caller
    app.add_middleware(BodyLimit, most=body_bytes)
    if PAGE.is_dir():
        app.mount("/static", PageFiles(directory=PAGE), name="static")
    _handle_errors(app)
    _add_routes(app, catalogue)
    return app


def _add_routes(app: FastAPI, catalogue: Catalogue) -> None:
    busy: dict[int | str, dict[str, Any]] = {
        code: {"model": schema.Problem, "description": text}
        for code, text in (
            (400, "no JSON"),
            (404, "no such model"),
            (413, "the body is too long"),
            (429, "the queue is full; Retry-After says when to try again"),
            (503, "the worker was lost"),
            (504, "no result in time"),
        )
    }

    @app.post("/v1/design", response_model=schema.DesignAnswer, responses=busy)
    async def design(body: schema.DesignRequest, request: Request) -> Response:
        """Design sequences."""
        start = time.perf_counter()
        name, config = catalogue.find(body.model)
        wanted = body.model_dump(exclude={"model", "seed", "n", "motifs"})
        words = [(m.letters, m.start) for m in body.motifs]
        order = await _checked(lambda: make_order(config, body.n, motifs=words, **wanted))
        designs = await app.state.scheduler.run(DesignJob(name, body.seed, order), _departure(request))
        taken = round(time.perf_counter() - start, 4)
        return JSONResponse({"model": name, "seed": body.seed, "seconds": taken, "designs": designs})

    @app.post("/v1/score", response_model=schema.ScoreAnswer, responses=busy)
    async def score(body: schema.ScoreRequest, request: Request) -> Response:
        """A lower bound on the log-probability of sequences, nats per letter: larger is more like the training data."""
        name, config = catalogue.find(body.model)
        if len(body.sequences) * body.samples > MOST_TEXT:
            raise Refused(422, f"sequences times samples may be {MOST_TEXT} at most; ask for fewer samples")
        await _checked(lambda: check_scorable(config, body.sequences, [body.label]))
        job = ScoreJob(name, body.seed, tuple(body.sequences), body.label, body.samples)
        scores = await app.state.scheduler.run(job, _departure(request))
        return JSONResponse({"model": name, "unit": "nats per letter", "scores": scores})

    @app.get("/v1/models", response_model=schema.ModelList)
    async def models() -> Response:
        """The models that are served."""
        return JSONResponse({"models": catalogue.facts()})

    @app.get("/healthz", response_model=schema.Health)
    async def healthz() -> Response:
        """How the server is."""
        scheduler: Scheduler = app.state.scheduler
        return JSONResponse(
            {
                "status": "ok" if scheduler.worker.is_ready else "starting",
                "queued": scheduler.queued,
                "capacity": scheduler.capacity,
                "requests": scheduler.requests,
                "model_calls": scheduler.model_calls,
                "restarts": max(0, scheduler.worker.starts - 1),
            }
        )

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (PAGE / "index.html").is_file():
            raise Refused(404, "this installation has no page; /docs describes the interface")
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)


async def _checked(check: Any) -> Any:
    """Run a check in a thread; its ValueError is the caller's mistake."""
    try:
        return await asyncio.to_thread(check)
    except ValueError as error:
        raise Refused(422, " ".join(str(error).split()).removeprefix("--")) from None


def _departure(request: Request) -> Any:
    """A function that returns when the client has gone."""

    async def wait() -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await request.receive()

    return wait


def _handle_errors(app: FastAPI) -> None:
    def answer(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
        return JSONResponse({"detail": detail}, status, headers=headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        again = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return answer(error.status, error.detail, again)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if found[0]["type"] == "json_invalid":
            text, at = found[0].get("ctx", {}).get("error", "syntax error"), found[0]["loc"][-1]
            return answer(400, f"the body is no valid JSON: {text} (character {at})")
        if isinstance(error.body, bytes):
            return answer(415, "the body must be JSON, sent as Content-Type: application/json")
        return answer(422, schema.explain(found, request.url.path))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return answer(
                404, f"there is nothing at {schema.shown(request.url.path, 80)}; /docs describes the interface"
            )
        if error.status_code == 405:
            text = f"{request.url.path} does not take {request.method}"
            return answer(405, text, error.headers)
        if error.status_code == 400:
            return answer(
                400, "the body is no valid JSON: it is nested too deep, has a number too long, or is not UTF-8"
            )
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return answer(500, f"a fault of the server: {type(error).__name__}")
