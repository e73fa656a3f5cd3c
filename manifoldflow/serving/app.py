"""The web application of a service: its routes, and one line of text for everything that goes wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, create_model
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message

from manifoldflow.serving import schema
from manifoldflow.serving.body import MOST_BYTES, BodyLimit
from manifoldflow.serving.catalogue import Catalogue
from manifoldflow.serving.docs import add_docs
from manifoldflow.serving.errors import Refused, handle_errors
from manifoldflow.serving.hosts import Headers, KnownHosts, Prefix, check_origins, page_policy
from manifoldflow.serving.scheduler import Scheduler
from manifoldflow.serving.service import Endpoint, Service
from manifoldflow.serving.worker import Caller, Worker

T = TypeVar("T")

PROBLEMS = {
    400: "no JSON",
    404: "no such model",
    408: "the body came too slowly",
    413: "the body is too long",
    415: "the body is not sent as JSON",
    422: "a mistake in the request",
    429: "the queue is full; Retry-After says when to try again",
    500: "a fault of the server",
    503: "the worker was lost, the server ends, or the model's file was replaced",
    504: "no result in time",
}


class PageFiles(StaticFiles):
    """The page's files, asked for anew: an upgrade must not pair old scripts with a new page."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(
    service: Service,
    models: Mapping[str, str | Path],
    *,
    queue: int = 128,
    timeout: float = 60.0,
    threads: int | None = None,
    body_bytes: int = MOST_BYTES,
    hosts: Sequence[str] | None = None,
    origins: Sequence[str] = (),
    root_path: str = "",
    worker: Caller | None = None,
) -> FastAPI:
    """The application; its worker lives from start-up to shutdown.

    Args:
        service: what is served.
        models: checkpoint file or run folder by name; requests get the first unless they name one.
        queue: requests that may wait or run; more are answered with 429.
        timeout: seconds after which a request is answered with 504.
        threads: of torch in the worker.
        body_bytes: largest body of a request; longer ones are answered with 413.
        hosts: names that requests may come to besides those of this machine; None does not look (an application around this
            one does, or should).
        origins: of pages elsewhere that may ask, and show the page in a frame; ``*`` for all.
        root_path: prefix under which a proxy shows this server.
        worker: in place of a process of its own.

    Raises:
        ValueError: no models, a checkpoint that cannot be used, or an argument out of its range.
    """
    catalogue = Catalogue(service, models)
    caller = worker or Worker(service.loader, list(catalogue.served.values()), threads)
    allowed = check_origins(origins)

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
        title=service.title,
        summary=service.summary,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        root_path_in_servers=False,
        servers=[{"url": ".", "description": "this server"}],  # relative to the description, wherever that is seen
        redirect_slashes=False,  # a redirection would repeat the Host header, whoever wrote it
    )
    app.state.worker, app.state.catalogue = caller, catalogue
    app.add_middleware(BodyLimit, most=body_bytes)
    if allowed:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed,
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type"],
            expose_headers=["Retry-After"],
        )
    if hosts is not None:
        app.add_middleware(KnownHosts, hosts=list(hosts))
    if root_path:
        app.add_middleware(Prefix, prefix=root_path.rstrip("/"))
    app.add_middleware(Headers, headers={"X-Content-Type-Options": "nosniff"})
    page_headers = {"Cache-Control": "no-cache", "Content-Security-Policy": page_policy(allowed)}
    endpoints = list(service.endpoints())
    handle_errors(app, {endpoint.path: endpoint.request for endpoint in endpoints})
    for endpoint in endpoints:
        _add_endpoint(app, catalogue, endpoint)
    _add_facts(app, catalogue)
    _add_page(app, service.panel, page_headers)
    add_docs(app, page_headers)
    return app


def _add_endpoint(app: FastAPI, catalogue: Catalogue, endpoint: Endpoint) -> None:
    async def answer(body: Any, request: Request) -> Response:
        start = time.perf_counter()
        served = catalogue.find(body.model)
        job = await _checked(lambda: endpoint.job(served, body))
        results = await app.state.scheduler.run(job, _departure(request))
        return JSONResponse(endpoint.reply(served, body, results, round(time.perf_counter() - start, 4)))

    answer.__annotations__["body"] = endpoint.request
    answer.__name__ = endpoint.path.rsplit("/", 1)[-1]
    answer.__doc__ = endpoint.summary
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": schema.Problem, "description": text} for code, text in PROBLEMS.items()
    }
    app.post(
        endpoint.path,
        summary=endpoint.summary.split(":")[0].rstrip("."),
        response_model=endpoint.answer,
        responses=problems,
    )(answer)


def _add_facts(app: FastAPI, catalogue: Catalogue) -> None:
    facts: Any = catalogue.service.facts or schema.Facts
    listed: type[BaseModel] = create_model(
        "ModelList", __doc__="The models, the one that requests get by default first.", models=(list[facts], ...)
    )

    @app.get("/v1/models", response_model=listed, summary="The models that are served")
    async def models() -> Response:
        """The models that are served."""
        return JSONResponse({"models": catalogue.describe()})

    @app.get(
        "/healthz", response_model=schema.Health, responses={503: {"model": schema.Health}}, summary="How the server is"
    )
    async def healthz() -> Response:
        """How the server is; 503 if it cannot answer requests and does not expect to soon."""
        scheduler: Scheduler = app.state.scheduler
        status, reason = scheduler.status
        gone = set(scheduler.worker.replaced)
        if status == "ok" and gone >= set(catalogue.served):
            status, reason = "unhealthy", "the checkpoints were replaced since the server started; restart the server"
        replaced = gone | set(await asyncio.to_thread(catalogue.changed))
        return JSONResponse(
            {
                "status": status,
                "queued": scheduler.queued,
                "capacity": scheduler.capacity,
                "requests": scheduler.requests,
                "model_calls": scheduler.model_calls,
                "restarts": max(0, scheduler.worker.starts - 1),
                "replaced": sorted(replaced),
                "reason": reason,
            },
            503 if status == "unhealthy" else 200,
        )


def _add_page(app: FastAPI, panel: Path | None, headers: dict[str, str]) -> None:
    if panel is not None and panel.is_dir():
        app.mount("/static", PageFiles(directory=panel), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if panel is None or not (panel / "index.html").is_file():
            raise Refused(404, "there is no page here; /docs describes the interface")
        return FileResponse(panel / "index.html", headers=headers)


async def _checked(check: Callable[[], T]) -> T:
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
