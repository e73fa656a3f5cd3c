"""Everything that goes wrong with a request, as one line of text."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI


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


def shown(value: Any, most: int = 40) -> str:
    """A value from a request as short ASCII text."""
    text = ascii(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def explain(errors: Sequence[Mapping[str, Any]], schema: Any = None) -> str:
    """Errors of the validation of a request, as one line.

    Args:
        errors: of pydantic.
        schema: the model that the request was to be, to suggest the field that was meant.
    """
    first = errors[0]
    place = first["loc"][1:]  # the first is "body"
    where = ""
    for part in place:
        where += f"[{part}]" if isinstance(part, int) else ("." if where else "") + shown(part)[1:-1]
    text = str(first["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    value = first.get("input")
    match first["type"]:
        case "missing":
            text = f"{where or 'the body, a JSON object,'} is missing"
        case "extra_forbidden":
            near = difflib.get_close_matches(str(place[-1])[:60], _fields(schema, place[:-1]), 1)
            text = f"unknown field {where!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
        case "model_attributes_type" | "model_type" | "dict_type":
            text = f"{where or 'the body'} must be a JSON object, such as {{...}}, got {shown(value)}"
        case "value_error":
            text = f"{where}: {text}"
        case _:
            text = text.replace("Input should be", "must be").replace("Input should have", "must have")
            text = text[:1].lower() + text[1:]
            got = f", got {shown(value)}" if value is None or isinstance(value, str | int | float) else ""
            text = f"{where or 'the body'}: {text}{got}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return " ".join(text.split()) + more


def _fields(schema: Any, place: Sequence[Any]) -> list[str]:
    """The fields that a schema has at a place inside it."""
    from typing import get_args

    for part in place:
        if isinstance(part, str):
            field = getattr(schema, "model_fields", {}).get(part)
            schema = None if field is None else field.annotation
        inside = [schema]  # lists and options of a model: the model
        while inside and not hasattr(schema, "model_fields"):
            schema = inside.pop()
            inside += [kind for kind in get_args(schema) if kind is not type(None)]
    return list(getattr(schema, "model_fields", {}))


def handle_errors(app: "FastAPI", schemas: Mapping[str, Any]) -> None:
    """Have the application answer every error with ``{"detail": one line}``.

    Args:
        app: the application.
        schemas: of the requests by path, for the names that were meant.
    """
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

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
        return answer(422, explain(found, schemas.get(_path(request))))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        path = shown(_path(request), 80)
        if error.status_code == 404:
            return answer(404, f"there is nothing at {path}; /docs describes the interface")
        if error.status_code == 405:
            return answer(405, f"{path[1:-1]} does not take {shown(request.method)[1:-1]}", error.headers)
        if error.status_code == 400:
            return answer(
                400, "the body is no valid JSON: it is nested too deep, has a number too long, or is not UTF-8"
            )
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return answer(500, f"a fault of the server: {type(error).__name__}")


def _path(request: Any) -> str:
    """The path of a request as the routes see it, without the prefix of a proxy."""
    path, root = request.scope["path"], request.scope.get("root_path", "")
    return path.removeprefix(root) or "/" if path.startswith(root + "/") else path
