"""What requests and answers of every service hold. Needs pydantic, which comes with fastapi."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_SEED = 2**63 - 1

Name = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]


class Strict(BaseModel):
    """Takes what it names and nothing else: no numbers in strings, no NaN, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Request(Strict):
    """A request to one of the models."""

    model: Name | None = Field(None, description="name as in /v1/models; null: the first")


class Facts(BaseModel):
    """What is to be known of a model."""

    name: str


class Health(BaseModel):
    """How the server is.

    status is ok, starting (the models are being loaded) or unhealthy (they cannot be; reason says why). queued of capacity
    requests wait or run. restarts: of the worker since the start. replaced: models whose file is no longer the one that the
    server started with; they are served as they were until a worker has to be started anew, and then no more.
    """

    status: str
    queued: int
    capacity: int
    requests: int
    model_calls: int
    restarts: int
    replaced: list[str] = []
    reason: str | None = None


class Problem(BaseModel):
    """What is wrong, in one line."""

    detail: str
