"""What requests may hold, and the limits on them; everything else is refused with one line that says why."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from manifoldflow.tasks.dna.alphabet import IUPAC, LETTERS

MOST_DESIGNS = 1000
MOST_STEPS = 500
MOST_LETTERS = 4096
MOST_MOTIFS = 16
MOST_SITES = 32
MOST_SEQUENCES = 256
MOST_SAMPLES = 512
MOST_SEED = 2**63 - 1


def _letters(allowed: str, what: str) -> AfterValidator:
    """Only these letters, in either case."""

    def check(text: str) -> str:
        for at, letter in enumerate(text):
            if not letter.isascii() or letter.upper() not in allowed:
                raise ValueError(f"{shown(letter)} at position {at + 1} is no {what}; allowed are {allowed}")
        return text.upper()

    return AfterValidator(check)


DnaText = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS), _letters(LETTERS + "U", "letter of DNA")]
Template = Annotated[
    str,
    Field(min_length=1, max_length=MOST_LETTERS),
    _letters(LETTERS + "UN", "letter of DNA and not N for a free one"),
]
Site = Annotated[str, Field(min_length=1, max_length=64), _letters("".join(IUPAC), "IUPAC code")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class MotifToKeep(_Strict):
    """A word of letters that every design holds."""

    letters: DnaText
    start: Annotated[int, Field(ge=0, lt=MOST_LETTERS)] | None = Field(
        None, description="first position, from 0; null: anywhere"
    )


class DesignRequest(_Strict):
    """What to design."""

    model: Name | None = Field(None, description="name as in /v1/models; null: the first")
    n: int = Field(10, ge=1, le=MOST_DESIGNS, description="number of sequences")
    label: Name | None = Field(None, description="class; null: any")
    guidance: float = Field(1.0, ge=0, le=100, description="weight of the class, 1: the conditional model as it is")
    fixed: Template | None = Field(None, description="letters where they are fixed, N where they are free")
    motifs: list[MotifToKeep] = Field([], max_length=MOST_MOTIFS)
    gc_range: list[Share] = Field([0.0, 1.0], min_length=2, max_length=2, description="least and largest GC share")
    avoid_sites: list[Site] = Field([], max_length=MOST_SITES, description="IUPAC patterns, avoided on both strands")
    length: int | None = Field(None, ge=1, le=MOST_LETTERS, description="null: that of the training")
    steps: int = Field(64, ge=1, le=MOST_STEPS, description="sampling steps")
    temperature: float = Field(1.0, ge=0, le=100, description="of the letters, for models of tokens")
    seed: int | None = Field(
        None, ge=0, le=MOST_SEED, description="the same seed gives the same sequences; null: fresh"
    )


class ScoreRequest(_Strict):
    """Sequences to score."""

    model: Name | None = Field(None, description="name as in /v1/models; null: the first")
    sequences: list[DnaText] = Field(min_length=1, max_length=MOST_SEQUENCES, description="of one length")
    label: Name | None = Field(None, description="class under which to score")
    samples: int = Field(64, ge=1, le=MOST_SAMPLES, description="times that the bound is averaged over")
    seed: int | None = Field(0, ge=0, le=MOST_SEED, description="of the noise; null: fresh")


class Hit(BaseModel):
    """A site of a motif: start and end from 0, end excluded; the score in bits."""

    motif: str
    start: int
    end: int
    strand: str
    score: float


class Designed(BaseModel):
    """A sequence; kept are the places of fixed letters and motifs."""

    sequence: str
    label: str | None
    kept: list[tuple[int, int]]
    gc: float
    hits: list[Hit]


class DesignAnswer(BaseModel):
    """Designs, and how long they took."""

    model: str
    seed: int | None
    seconds: float
    designs: list[Designed]


class ScoreAnswer(BaseModel):
    """A lower bound on the log-probability of every sequence."""

    model: str
    unit: str = "nats per letter"
    scores: list[float]


class ModelFacts(BaseModel):
    """What a model can do; motifs are the names of its tracks."""

    name: str
    representation: str
    length: int
    alphabet: str
    classes: list[str]
    can_score: bool
    motifs: list[str]


class ModelList(BaseModel):
    """The models, the one that requests get by default first."""

    models: list[ModelFacts]


class Health(BaseModel):
    """How the server is: queued of capacity requests wait or run; restarts of the worker since the start."""

    status: str
    queued: int
    capacity: int
    requests: int
    model_calls: int
    restarts: int


class Problem(BaseModel):
    """What is wrong, in one line."""

    detail: str


def shown(value: Any, most: int = 40) -> str:
    """A value from a request as short ASCII text."""
    text = ascii(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def explain(errors: Sequence[Mapping[str, Any]], path: str) -> str:
    """Errors of the validation of a request to this path, as one line."""
    first = errors[0]
    where = ""
    for part in first["loc"][1:]:  # the first is "body"
        where += f"[{part}]" if isinstance(part, int) else ("." if where else "") + shown(part)[1:-1]
    text = str(first["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    value = first.get("input")
    match first["type"]:
        case "missing":
            text = f"{where or 'the body, a JSON object,'} is missing"
        case "extra_forbidden":
            request = ScoreRequest if path.endswith("score") else DesignRequest
            known = list((MotifToKeep if len(first["loc"]) > 2 else request).model_fields)
            near = difflib.get_close_matches(str(first["loc"][-1])[:60], known, 1)
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
