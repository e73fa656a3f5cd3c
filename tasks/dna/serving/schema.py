"""What requests may hold, and the limits on them; everything else is refused with one line that says why."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from manifoldflow.serving.errors import shown
from manifoldflow.serving.schema import Facts, Name, Request, Seed, Strict
from manifoldflow.tasks.dna.alphabet import IUPAC, LETTERS

MOST_DESIGNS = 1000
MOST_STEPS = 500
MOST_LETTERS = 4096
MOST_MOTIFS = 16
MOST_SITES = 32
MOST_SEQUENCES = 256
MOST_SAMPLES = 512


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
Share = Annotated[float, Field(ge=0, le=1)]


class MotifToKeep(Strict):
    """A word of letters that every design holds."""

    letters: DnaText
    start: Annotated[int, Field(ge=0, lt=MOST_LETTERS)] | None = Field(
        None, description="first position, from 0; null: anywhere"
    )


class DesignRequest(Request):
    """What to design."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"n": 3, "avoid_sites": ["GAATTC"], "seed": 1}]})

    n: int = Field(10, ge=1, le=MOST_DESIGNS, description="number of sequences")
    label: Name | None = Field(None, description="class; null: any")
    guidance: float = Field(1.0, ge=0, le=100, description="weight of the class, 1: the conditional model as it is")
    fixed: Template | None = Field(
        None, description="letters where they are fixed, N where they are free; as long as the sequences"
    )
    motifs: list[MotifToKeep] = Field([], max_length=MOST_MOTIFS)
    gc_range: list[Share] = Field([0.0, 1.0], min_length=2, max_length=2, description="least and largest GC share")
    avoid_sites: list[Site] = Field([], max_length=MOST_SITES, description="IUPAC patterns, avoided on both strands")
    length: int | None = Field(None, ge=1, le=MOST_LETTERS, description="null: that of the training")
    steps: int = Field(64, ge=1, le=MOST_STEPS, description="sampling steps")
    temperature: float = Field(1.0, ge=0, le=100, description="of the letters, for models of tokens")
    seed: Seed | None = Field(None, description="the same seed gives the same sequences; null: fresh")


class ScoreRequest(Request):
    """Sequences to score."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sequences": [25 * "ACGT"], "samples": 16}]})

    sequences: list[DnaText] = Field(min_length=1, max_length=MOST_SEQUENCES, description="of one length")
    label: Name | None = Field(None, description="class under which to score")
    samples: int = Field(64, ge=1, le=MOST_SAMPLES, description="times that the bound is averaged over")
    seed: Seed | None = Field(0, description="of the noise; null: fresh")


class Hit(BaseModel):
    """A site of a motif. Positions count from 0 in all of this interface; the page counts from 1."""

    motif: str
    start: int = Field(description="first position, from 0")
    end: int = Field(description="one past the last position, from 0")
    strand: str = Field(description="+ or -; start and end are those on the strand as written")
    score: float = Field(description="bits, against letters of equal frequency")


class Designed(BaseModel):
    """A sequence."""

    sequence: str
    label: str | None = Field(description="class that it was drawn for")
    kept: list[tuple[int, int]] = Field(
        description="places of fixed letters and motifs: first position and one past the last, from 0"
    )
    gc: float = Field(description="share of C and G")
    hits: list[Hit] = Field(description="the best site of each motif of the model's tracks, if it is good enough")


class Settings(BaseModel):
    """What was asked for, with what was left out filled in."""

    n: int
    label: str | None
    guidance: float
    fixed: str | None
    motifs: list[MotifToKeep]
    gc_range: list[float]
    avoid_sites: list[str]
    length: int
    steps: int
    temperature: float


class DesignAnswer(BaseModel):
    """Designs, what they were asked to be, and how long they took."""

    model: str
    seed: int | None
    seconds: float
    settings: Settings
    designs: list[Designed]


class ScoreAnswer(BaseModel):
    """A lower bound on the log-probability of every sequence."""

    model: str
    unit: str = "nats per letter"
    scores: list[float]


class Mark(BaseModel):
    """A position that means something in all sequences of a model."""

    name: str
    position: int = Field(description="from 0")


class ModelFacts(Facts):
    """What a model can do."""

    learned: str = Field(description="what it was trained on")
    organism: str | None = Field(description="that the training data are of, where it is known")
    marks: list[Mark]
    representation: str
    length: int
    alphabet: str
    classes: list[str]
    can_score: bool
    motifs: list[str] = Field(description="names of its tracks")
