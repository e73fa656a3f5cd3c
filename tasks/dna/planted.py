"""Generated promoter-like sequences whose law is known exactly: random letters with planted motifs.

The embedded set, ``data/dna/planted.npz``, is for tests, demos and first steps without real data. Write it anew with
``python -m manifoldflow.tasks.dna.planted``; the numbers are the same every time.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifoldflow.checkpoint import data_path
from manifoldflow.files import atomic
from manifoldflow.tasks.dna.motifs import Motif
from manifoldflow.tasks.dna.sequences import SequenceSet

ROWS = 6000
"""Sequences of the embedded set."""


@dataclass(frozen=True)
class Plant:
    """A motif and where it is planted.

    Args:
        motif: its letters are drawn from its probabilities, without pseudocount.
        first: first of the places where it may start.
        weights: of the places from there on.
    """

    motif: Motif
    first: int
    weights: tuple[float, ...] = (1.0,)

    @property
    def end(self) -> int:
        """One past the last letter that it may cover."""
        return self.first + len(self.weights) - 1 + len(self.motif)


@dataclass(frozen=True)
class PlantedLaw:
    r"""The law of one class: independent letters b, and motifs at random places that never overlap:

    .. math:: p(x) = \prod_l b(x_l) \prod_{plants} \sum_s w_s \prod_{j} \frac{m_j(x_{s+j})}{b(x_{s+j})}

    Args:
        length: of the sequences.
        background: probabilities of A, C, G, T.
        plants: motifs, each in a stretch of its own.

    Raises:
        ValueError: stretches that overlap or reach beyond the end.
    """

    length: int
    background: tuple[float, float, float, float]
    plants: tuple[Plant, ...]

    def __post_init__(self) -> None:
        ends = [0]
        for plant in sorted(self.plants, key=lambda p: p.first):
            if plant.first < ends[-1] or plant.end > self.length:
                raise ValueError(
                    f"the stretch {plant.first} to {plant.end} of {plant.motif.name} overlaps or ends too late"
                )
            ends.append(plant.end)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Tokens ``(count, length)``."""
        letters = torch.tensor(self.background, dtype=torch.float64)
        tokens = torch.multinomial(letters, count * self.length, replacement=True, generator=generator)
        tokens = tokens.reshape(count, self.length)
        for plant in self.plants:
            places = torch.tensor(plant.weights, dtype=torch.float64)
            start = plant.first + torch.multinomial(places, count, replacement=True, generator=generator)
            site = torch.multinomial(plant.motif.probabilities(0.0), count, replacement=True, generator=generator).T
            tokens.scatter_(1, start[:, None] + torch.arange(len(plant.motif)), site)
        return tokens

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Exact log-probability in nats, ``(B,)`` in float64."""
        if tokens.shape[1] != self.length:
            raise ValueError(f"sequences of this law have {self.length} letters, got {tokens.shape[1]}")
        letters = torch.tensor(self.background, dtype=torch.float64).log()
        total = letters[tokens].sum(-1)
        for plant in self.plants:
            gain = plant.motif.probabilities(0.0).log() - letters  # (W, 4)
            windows = tokens.unfold(1, len(plant.motif), 1)[:, plant.first : plant.first + len(plant.weights)]
            score = gain[torch.arange(len(plant.motif)), windows].sum(-1)
            weights = torch.tensor(plant.weights, dtype=torch.float64)
            total = total + torch.logsumexp(score + (weights / weights.sum()).log(), -1)
        return total


def _motif(name: str, consensus: str, share: float) -> Motif:
    """A motif whose consensus letter has this probability, the others the rest in equal parts."""
    rows = [[share if letter == c else (1 - share) / 3 for letter in "ACGT"] for c in consensus]
    return Motif(name, name, tuple(tuple(row) for row in rows))  # type: ignore[misc]


LAWS = {
    "plain": PlantedLaw(
        80,
        (0.2, 0.3, 0.3, 0.2),
        (Plant(_motif("start", "TCAGTT", 0.85), 60), Plant(_motif("gc_box", "GGGCGG", 0.9), 5, (1.0,) * 30)),
    ),
    "tata": PlantedLaw(
        80,
        (0.3, 0.2, 0.2, 0.3),
        (
            Plant(_motif("start", "TCAGTT", 0.85), 60),
            Plant(_motif("tata", "TATAAAAG", 0.92), 28, (1.0, 2.0, 4.0, 2.0, 1.0)),
        ),
    ),
}
"""Two classes: with a box about 30 letters before the start, or with a GC box anywhere upstream."""


def make_set() -> tuple[Tensor, Tensor]:
    """Tokens and labels of the embedded set, drawn anew: always the same."""
    generator = torch.Generator().manual_seed(0)
    half = ROWS // len(LAWS)
    tokens = torch.cat([law.sample(half, generator=generator) for law in LAWS.values()])
    labels = torch.arange(len(LAWS)).repeat_interleave(half)
    order = torch.randperm(ROWS, generator=generator)
    return tokens[order], labels[order]


def load_planted() -> SequenceSet:
    """The embedded set, with classes plain and tata."""
    with np.load(data_path("dna/planted.npz"), allow_pickle=False) as file:
        packed, labels = file["letters"], file["labels"]
    length = next(iter(LAWS.values())).length
    pairs = np.stack([(packed >> shift) & 3 for shift in (6, 4, 2, 0)], -1).reshape(len(packed), -1)
    tokens = torch.from_numpy(pairs[:, :length].astype(np.int64))
    names = [f"planted_{i:04d}" for i in range(len(tokens))]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return SequenceSet(names, tokens, mask, torch.from_numpy(labels.astype(np.int64)), tuple(LAWS), 0)


def main() -> None:
    """Write the embedded set, four letters a byte."""
    tokens, labels = make_set()
    quads = tokens.numpy().astype(np.uint8).reshape(len(tokens), -1, 4)
    packed = quads[..., 0] << 6 | quads[..., 1] << 4 | quads[..., 2] << 2 | quads[..., 3]
    path = data_path("dna/planted.npz")
    with atomic(path) as fresh:
        np.savez_compressed(fresh, letters=packed, labels=labels.numpy().astype(np.uint8))
    for number, (name, law) in enumerate(LAWS.items()):
        entropy = -law.log_prob(tokens[labels == number]).mean()
        print(f"{name}: {int((labels == number).sum())} sequences of {law.length}, {float(entropy):.3f} nats each")


if __name__ == "__main__":
    main()
