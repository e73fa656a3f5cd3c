"""Motif tracks: the best site of each motif in a sequence, if it is good enough to be shown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifoldflow.checkpoint import data_path, read_metadata
from manifoldflow.tasks.dna.alphabet import encode
from manifoldflow.tasks.dna.motifs import Motif, best_hits, find_motif, read_motifs, threshold
from manifoldflow.tasks.dna.planted import LAWS

P_VALUE = 1e-4
"""A site is shown from the score that random letters reach with this probability at one place of one strand."""

FITTED = "dna/own_motifs.json"
"""What ``manifoldflow.tasks.dna.discovery`` writes."""

MOST = 100
"""Motifs that the tracks may have."""


def choose_motifs(file: str | Path | None, names: str | None = None) -> tuple[Motif, ...]:
    """The motifs of a file, or those of them that are named, with commas.

    Raises:
        ValueError: too many, or a name that is not in the file.
        FileNotFoundError: no such file.
    """
    if file is None:
        if names is not None:
            raise ValueError("--motif names motifs of a file: give --motifs too")
        return ()
    known = read_motifs(file)
    chosen = known if names is None else [find_motif(known, name.strip()) for name in names.split(",")]
    if len(chosen) > MOST:
        raise ValueError(f"{file} holds {len(chosen)} motifs: name at most {MOST} of them with --motif")
    return tuple(chosen)


def own_motifs(checkpoint: str | Path) -> tuple[Motif, ...]:
    """A model's motifs that come from no collection: planted ones, or those fitted to the designs of an embedded model."""
    fitted = data_path(FITTED)
    path = Path(checkpoint).resolve()
    if fitted.is_file() and path.parent == data_path("checkpoints").resolve():
        known = json.loads(fitted.read_text(encoding="utf-8")).get(path.stem, [])
        return tuple(Motif(m["name"], m["identifier"], tuple(map(tuple, m["counts"]))) for m in known)
    source = read_metadata(checkpoint)["training"].get("source", {})
    if not isinstance(source, Mapping) or source.get("data") != "planted":
        return ()
    motifs = {plant.motif.name: plant.motif for law in LAWS.values() for plant in law.plants}
    # Their rows are probabilities; as counts of 100 sites they are not drowned by the pseudocount.
    return tuple(
        Motif(m.name, m.identifier, tuple(tuple(100 * v for v in row) for row in m.counts))  # type: ignore[misc]
        for m in motifs.values()
    )


def title(motif: Motif) -> str:
    """A motif as people call it, such as CTCF (MA0139.1)."""
    return motif.name if motif.name == motif.identifier else f"{motif.name} ({motif.identifier})"


class Tracks:
    """Finds the sites to show.

    Args:
        motifs: to look for; may be none.
    """

    def __init__(self, motifs: Sequence[Motif]) -> None:
        self.motifs = tuple(motifs)
        # Of a motif of six letters not even the best site is rarer than 1e-4; it is shown all the same.
        self.least = [threshold(motif, max(P_VALUE, 2 * 4.0 ** -len(motif))) for motif in motifs]

    def find(self, sequences: Sequence[str]) -> list[list[dict[str, Any]]]:
        """For every sequence of one length its sites: motif, start, end, strand and score in bits."""
        made: list[list[dict[str, Any]]] = [[] for _ in sequences]
        if not sequences or not self.motifs:
            return made
        hits = best_hits(encode(sequences)[0], self.motifs)
        columns = (hits.score.tolist(), hits.start.tolist(), hits.on_reverse.tolist())
        for out, scores, starts, turned in zip(made, *columns, strict=True):
            for motif, least, score, start, is_reverse in zip(
                self.motifs, self.least, scores, starts, turned, strict=True
            ):
                if score >= least:
                    strand = "-" if is_reverse else "+"
                    place = {"start": start, "end": start + len(motif), "strand": strand}
                    out.append({"motif": title(motif), **place, "score": round(score, 3)})
            out.sort(key=lambda hit: hit["start"])
        return made
