"""A motif as a matrix: what letters a binding site has at each of its places."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.tasks.dna.alphabet import allowed_letters

SITES = 20.0
"""Sites that a matrix of probabilities stands for where nothing says how many (as in MEME): the weight of the pseudocount."""


@dataclass(frozen=True)
class Motif:
    """Counts, or probabilities, of the letters at every place of a binding site.

    Args:
        name: such as CTCF.
        identifier: such as MA0139.1.
        counts: one tuple (A, C, G, T) a place, not negative.
    """

    name: str
    identifier: str
    counts: tuple[tuple[float, float, float, float], ...]

    def __post_init__(self) -> None:
        # "not >= 0" instead of "< 0": it holds for NaN too.
        if not self.counts or any(
            len(row) != 4 or not all(v >= 0 for v in row) or not 0 < sum(row) < math.inf for row in self.counts
        ):
            raise ValueError(f"motif {self.identifier} {self.name}: every place needs four counts, not all of them 0")

    def __len__(self) -> int:
        return len(self.counts)

    def probabilities(self, pseudocount: float = 0.5) -> Tensor:
        """``(W, 4)`` in float64: (count + pseudocount) / total.

        Rows that sum to 1 are probabilities: a pseudocount beside them would drown them, so they count as :data:`SITES` sites.
        """
        table = torch.tensor(self.counts, dtype=torch.float64)
        if bool(((table.sum(-1) - 1).abs() < 0.05).all()):
            table = table * SITES
        table = table + pseudocount
        return table / table.sum(-1, keepdim=True)

    def log_odds(self, pseudocount: float = 0.5, background: Sequence[float] = (0.25,) * 4) -> Tensor:
        """:math:`\\log_2 (p / b)`, ``(W, 4)`` in bits and float64.

        Raises:
            ValueError: a letter of probability 0, whose score would be minus infinity.
        """
        if pseudocount < 0 or (pseudocount == 0 and min(map(min, self.counts)) == 0):
            raise ValueError(f"motif {self.identifier} has counts of 0: pseudocount must be above 0, got {pseudocount}")
        if len(background) != 4 or min(background) <= 0 or abs(sum(background) - 1) > 1e-6:
            raise ValueError(f"background must be four frequencies above 0 of sum 1, got {tuple(background)}")
        return torch.log2(self.probabilities(pseudocount) / torch.tensor(background, dtype=torch.float64))

    @classmethod
    def from_consensus(cls, name: str, letters: str, share: float = 0.85) -> "Motif":
        """A motif from IUPAC letters, such as RGGAAGTG.

        Args:
            name: also its identifier.
            letters: of the places.
            share: probability of the letters that a code allows, in equal parts; the others get the rest.

        Raises:
            ValueError: a letter that is no code, or a share outside of (0, 1).
        """
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        rows = []
        for allowed in allowed_letters(letters).tolist():
            some = sum(allowed)
            rest = 0.0 if some == 4 else (1 - share) / (4 - some)
            rows.append(tuple((0.25 if some == 4 else share / some) if a else rest for a in allowed))
        return cls(name, name, tuple(rows))  # type: ignore[arg-type]

    def reverse_complement(self) -> "Motif":
        """The same site read on the other strand."""
        return Motif(self.name, self.identifier, tuple(row[::-1] for row in self.counts[::-1]))  # type: ignore[misc]


def find_motif(motifs: Sequence[Motif], name: str) -> Motif:
    """The motif with this name or identifier.

    Raises:
        ValueError: none, with those that are near.
    """
    wanted = name.lower()
    for motif in motifs:
        if wanted in (motif.name.lower(), motif.identifier.lower(), motif.identifier.split(".")[0].lower()):
            return motif
    near = [f"{m.identifier} {m.name}" for m in motifs if wanted[:3] in m.name.lower()][:8]
    raise ValueError(f"no motif {name!r} among {len(motifs)}" + (f"; near: {', '.join(near)}" if near else ""))
