"""What people want to know of a model besides its name: what it learned, of which organism, and what its positions mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SetFacts:
    """A known set of sequences.

    Args:
        text: what they are.
        organism: they are of; None if their source does not say.
        marks: names of positions that are the same in all of them, from 0.
    """

    text: str
    organism: str | None = None
    marks: tuple[tuple[str, int], ...] = ()


UNKNOWN = SetFacts("sequences of an unknown source")
START = "start of transcription"
SETS = {
    "ctcf_pu1": SetFacts("DNA around peaks of CTCF or PU.1 (ChIP-seq)"),
    "promoters": SetFacts("promoters and other DNA", "Arabidopsis and mouse", ((START, 200),)),
    "tata_promoters": SetFacts("promoters with a TATA box", "human and mouse", ((START, 249),)),
    "ecoli": SetFacts("bacterial promoters by strength", "E. coli"),
    "enhancers": SetFacts("enhancers and other DNA", "human"),
    "planted": SetFacts("generated sequences with planted motifs"),
}
"""The sets of the task's README."""


def facts_of(training: Mapping[str, Any]) -> SetFacts:
    """What is known of the data of a training, from what its checkpoint says of it."""
    source = training.get("source", {})
    data = source.get("data") if isinstance(source, Mapping) else None
    if not isinstance(data, str) or not data:
        return UNKNOWN
    species = source.get("species")
    known = SETS.get(data, SetFacts(f"the sequences of {Path(data).name}"))
    return SetFacts(known.text, species, known.marks) if isinstance(species, str) and species else known
