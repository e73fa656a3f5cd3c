"""The sequence designer as a service: its models, its two endpoints, and its page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifoldflow.checkpoint import read_metadata
from manifoldflow.serving import Endpoint, Refused, Served, Service
from manifoldflow.tasks.dna.designer import can_score, check_scorable
from manifoldflow.tasks.dna.flow import DnaConfig, class_name
from manifoldflow.tasks.dna.motifs import Motif
from manifoldflow.tasks.dna.orders import make_order
from manifoldflow.tasks.dna.serving import schema
from manifoldflow.tasks.dna.serving.facts import UNKNOWN, SetFacts, facts_of
from manifoldflow.tasks.dna.serving.jobs import DesignJob, ScoreJob
from manifoldflow.tasks.dna.serving.tracks import choose_motifs, own_motifs, title

MOST_TEXT = 65_536
"""Sequences times samples that one request may have scored."""

BUILDERS = ("manifoldflow.tasks.dna.flow:build", "tasks.dna.flow:build")


@dataclass(frozen=True)
class About:
    """What is known of a model without its weights.

    Args:
        config: of the flow.
        motifs: of its tracks.
        data: what it learned from.
    """

    config: DnaConfig
    motifs: tuple[Motif, ...] = ()
    data: SetFacts = UNKNOWN


class DnaService(Service):
    """The sequence designer.

    Args:
        motifs: file for the tracks; without one a model shows its own motifs, if it has some.
        motif: names of motifs of that file, with commas.

    Raises:
        ValueError: a motif that cannot be used.
    """

    title = "manifoldflow sequence designer"
    summary = (
        "Designs DNA with trained flows: classes, motifs to keep, sites to avoid. "
        "Positions count from 0 here, and from 1 on the page."
    )
    prefix = "dna_"
    loader = "manifoldflow.tasks.dna.serving.desk:Desk"
    facts = schema.ModelFacts

    def __init__(self, motifs: str | Path | None = None, motif: str | None = None) -> None:
        self.motifs = choose_motifs(motifs, motif)
        self.panel = Path(__file__).parent / "page"

    def inspect(self, path: Path) -> About:
        metadata = read_metadata(path)
        if metadata["builder"] not in BUILDERS:
            raise ValueError(f"{path} is no sequence flow (it was built by {metadata['builder'] or 'hand'})")
        try:
            config = DnaConfig(**metadata["config"])
        except TypeError as error:
            raise ValueError(f"{path}: its configuration is not valid here: {error}") from None
        return About(config, self.motifs or own_motifs(path), facts_of(metadata["training"]))

    def describe(self, served: Served) -> dict[str, Any]:
        config: DnaConfig = served.about.config
        data: SetFacts = served.about.data
        return {
            "name": served.name,
            "learned": data.text,
            "organism": data.organism,
            "marks": [{"name": name, "position": at} for name, at in data.marks if at < config.length],
            "representation": config.representation,
            "length": config.length,
            "alphabet": config.alphabet,
            "classes": list(config.class_names),
            "can_score": can_score(config),
            "motifs": [title(motif) for motif in served.about.motifs],
        }

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint(
                "/v1/design",
                schema.DesignRequest,
                schema.DesignAnswer,
                design_job,
                design_reply,
                "Design sequences.",
            ),
            Endpoint(
                "/v1/score",
                schema.ScoreRequest,
                schema.ScoreAnswer,
                score_job,
                score_reply,
                "A lower bound on the log-probability of sequences, nats per letter: larger is more like the training data.",
            ),
        )


def design_job(served: Served, body: schema.DesignRequest) -> DesignJob:
    """The job of a request for designs.

    Raises:
        ValueError: it cannot be met.
    """
    config: DnaConfig = served.about.config
    wanted = body.model_dump(exclude={"model", "seed", "n", "motifs"})
    words = [(m.letters, m.start) for m in body.motifs]
    order = make_order(config, body.n, motifs=words, **wanted)
    return DesignJob(served.name, body.seed, order)


def design_reply(served: Served, body: schema.DesignRequest, designs: list[Any], seconds: float) -> dict[str, Any]:
    """The answer with designs."""
    config: DnaConfig = served.about.config
    settings = body.model_dump(exclude={"model", "seed"})
    settings["label"] = class_name(config, body.label)
    settings["length"] = body.length or config.length
    if config.representation == "autoregressive":
        settings["steps"] = settings["length"]
    return {"model": served.name, "seed": body.seed, "seconds": seconds, "settings": settings, "designs": designs}


def score_job(served: Served, body: schema.ScoreRequest) -> ScoreJob:
    """The job of a request for scores.

    Raises:
        ValueError: it cannot be met.
        Refused: it is too much.
    """
    if len(body.sequences) * body.samples > MOST_TEXT:
        raise Refused(422, f"sequences times samples may be {MOST_TEXT} at most; ask for fewer samples")
    config: DnaConfig = served.about.config
    check_scorable(config, body.sequences, [body.label])
    label = class_name(config, body.label)
    return ScoreJob(served.name, body.seed, tuple(body.sequences), label, body.samples)


def score_reply(served: Served, body: schema.ScoreRequest, scores: list[Any], seconds: float) -> dict[str, Any]:
    """The answer with scores."""
    return {"model": served.name, "unit": "nats per letter", "scores": scores}
