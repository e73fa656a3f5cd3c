"""The trivial baseline: letters that depend on the few before them, with one motif written in at random.

Every table of this task has it. A rule of a page that carries motifs as often as real sequences do, and that a judge believes,
shows what such numbers are worth; both laws have exact likelihoods, so they are also a mark for the models' bounds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.tasks.dna.alphabet import reverse_complement
from manifoldflow.tasks.dna.matrices import Motif

ORDER = 5
STRENGTH = 30.0
"""Observations that the law of the next shorter context counts as, beside those of a context."""


@dataclass(frozen=True, eq=False)
class MarkovChain:
    r"""Letters of order k: :math:`p(x) = \prod_l p(x_l \mid x_{l-k} \ldots x_{l-1})`, with shorter contexts at the start.

    Attributes:
        tables: log-probabilities of a letter after a context of j letters, ``(4^j, 4)`` in float64 for j = 0 to k; the last
            letter of a context counts least.
    """

    tables: tuple[Tensor, ...]

    @property
    def order(self) -> int:
        """k."""
        return len(self.tables) - 1

    @classmethod
    def fit(
        cls,
        tokens: Tensor,
        order: int = ORDER,
        *,
        mask: Tensor | None = None,
        both_strands: bool = False,
        strength: float = STRENGTH,
    ) -> "MarkovChain":
        r"""Shares of the letters after every context, drawn towards those after the next shorter one:
        :math:`(n_{ca} + s\, p(a \mid c')) / (n_c + s)`.

        Args:
            tokens: ``(N, L)``.
            order: k.
            mask: bool ``(N, L)`` of real positions.
            both_strands: count the reverse complements too.
            strength: s.

        Raises:
            ValueError: a negative order, or no letters.
        """
        if order < 0:
            raise ValueError(f"order must be at least 0, got {order}")
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        if not bool(real.any()):
            raise ValueError("there are no letters to count")
        if both_strands:
            tokens = torch.cat([tokens, reverse_complement(tokens, mask)])
            real = torch.cat([real, real])
        tables: list[Tensor] = []
        shorter = torch.full((1, 4), 0.25, dtype=torch.float64)
        for width in range(1, min(order + 1, tokens.shape[1]) + 1):
            powers = 4 ** torch.arange(width - 1, -1, -1)
            words = (tokens.unfold(1, width, 1) * powers).sum(-1)[real.unfold(1, width, 1).all(-1)]
            counts = torch.bincount(words, minlength=4**width).double().reshape(-1, 4)
            prior = shorter.repeat(4, 1) if width > 1 else shorter  # the first letter of the context is forgotten
            shorter = (counts + strength * prior) / (counts.sum(-1, keepdim=True) + strength)
            tables.append(shorter.log())
        return cls(tuple(tables))

    def letter_scores(self, tokens: Tensor) -> Tensor:
        """Log-probability of every letter given those before it, nats ``(B, L)``."""
        parts = []
        for place in range(tokens.shape[1]):
            context = min(place, self.order)
            parts.append(self.tables[context][_code(tokens[:, place - context : place]), tokens[:, place]])
        return torch.stack(parts, 1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Exact log-probability, nats ``(B,)`` in float64."""
        return self.letter_scores(tokens).sum(-1)

    def sample(
        self, count: int, length: int, *, fixed: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Tokens ``(count, length)``.

        Args:
            count, length: how many, and how long.
            fixed: letters to write instead of drawing them, -1 where they are drawn; those behind follow from them.
            generator: of the draws.
        """
        tokens = torch.zeros(count, length, dtype=torch.int64)
        for place in range(length):
            context = min(place, self.order)
            law = self.tables[context][_code(tokens[:, place - context : place])].exp()
            drawn = torch.multinomial(law, 1, generator=generator).squeeze(1)
            tokens[:, place] = drawn if fixed is None else torch.where(fixed[:, place] < 0, drawn, fixed[:, place])
        return tokens


@dataclass(frozen=True, eq=False)
class PlantedChain:
    r"""A Markov chain into which one site is written, anywhere and on either strand, in a share of the sequences:

    .. math::

        p(x) = p_0(x) \Big(1 - w + \frac{w}{2 S} \sum_{s, strand} \prod_j \frac{m_j(x_{s+j})}{p_0(x_{s+j} \mid x_{<s+j})}\Big)

    The letters behind the site follow from its own, so the law is exact.

    Args:
        chain: of the letters.
        motif: of the site, with its pseudocount.
        share: w, of the sequences that get one.
    """

    chain: MarkovChain
    motif: Motif
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {self.share}")

    def sample(self, count: int, length: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Tokens ``(count, length)``.

        Raises:
            ValueError: the sequences are shorter than the motif.
        """
        places = self._places(length)
        letters = torch.multinomial(self.motif.probabilities(), count, replacement=True, generator=generator).T
        turned = torch.rand(count, 1, generator=generator) < 0.5
        letters = torch.where(turned, 3 - letters.flip(1), letters)
        start = torch.randint(places, (count, 1), generator=generator)
        has_site = torch.rand(count, 1, generator=generator) < self.share
        fixed = torch.full((count, length), -1)
        fixed.scatter_(1, start + torch.arange(len(self.motif)), torch.where(has_site, letters, -1))
        return self.chain.sample(count, length, fixed=fixed, generator=generator)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Exact log-probability, nats ``(B,)`` in float64."""
        base, gain = self._parts(tokens)
        if self.share == 1:
            return base + gain
        rest = math.log1p(-self.share)
        return base + torch.logaddexp(torch.full_like(gain, rest), gain + math.log(max(self.share, 1e-300)))

    @classmethod
    def fit(cls, chain: MarkovChain, motif: Motif, tokens: Tensor, *, rounds: int = 50) -> "PlantedChain":
        """The share that makes these sequences ``(N, L)`` likeliest, by expectation and maximisation."""
        gain = cls(chain, motif)._parts(tokens)[1]
        share = 0.5
        for _ in range(rounds):
            share = float(torch.sigmoid(gain + math.log(share / (1 - share))).mean().clamp(1e-6, 1 - 1e-6))
        return cls(chain, motif, share)

    def _places(self, length: int) -> int:
        places = length - len(self.motif) + 1
        if places < 1:
            raise ValueError(
                f"{self.motif.name} has {len(self.motif)} letters, more than the {length} of the sequences"
            )
        return places

    def _parts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The chain's log-probability and what one site adds to it, each ``(B,)``."""
        places, width = self._places(tokens.shape[1]), len(self.motif)
        plain = self.chain.letter_scores(tokens)
        windows = tokens.unfold(1, width, 1)  # (B, S, W)
        without = plain.unfold(1, width, 1).sum(-1)
        both = []
        for motif in (self.motif, self.motif.reverse_complement()):
            site = motif.probabilities().log()
            both.append(site[torch.arange(width), windows].sum(-1) - without)
        return plain.sum(-1), torch.cat(both, 1).logsumexp(-1) - math.log(2 * places)


def _code(context: Tensor) -> Tensor:
    """The numbers of contexts ``(B, j)``, the first letter counting most."""
    powers = 4 ** torch.arange(context.shape[1] - 1, -1, -1)
    return (context * powers).sum(-1)
