"""Sequence design in one call: a class or an oracle to aim at, letters and motifs to keep, sites to avoid."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.guidance import ClassifierFree, Oracle
from tasks.dna.alphabet import allowed_letters, decode, encode
from tasks.dna.commands import class_number, load_flow, sampler
from tasks.dna.flow import DnaConfig, to_state, to_tokens
from tasks.dna.metrics import gc_content
from tasks.dna.motifs import find_sites

MOST = 100_000
"""Sequences that one call may ask for."""


@dataclass(frozen=True)
class Design:
    """One designed sequence.

    Attributes:
        sequence: letters.
        label: the class it was drawn for, or None.
        kept: places ``[start, end)`` of fixed letters and motifs, from 0.
        gc: share of C and G.
    """

    sequence: str
    label: str | None
    kept: tuple[tuple[int, int], ...]
    gc: float


class SequenceDesigner:
    """Designs sequences with a trained flow, and scores sequences by it.

    Args:
        flow: of :func:`tasks.dna.flow.build`, any representation.
        config: its configuration.
    """

    def __init__(self, flow: mf.Flow, config: DnaConfig) -> None:
        self.flow, self.config = flow.eval(), config

    @classmethod
    def load(cls, checkpoint: str | Path) -> "SequenceDesigner":
        """A designer from a model file or a run folder."""
        return cls(*load_flow(str(checkpoint)))

    def design(self, n: int, **options: Any) -> list[Design]:
        """``n`` sequences; the options are those of :meth:`stream`."""
        return list(self.stream(n, **options))

    def stream(
        self,
        n: int,
        *,
        label: str | None = None,
        guidance: float = 1.0,
        oracle: Callable[[Tensor], Tensor] | None = None,
        oracle_scale: float = 1.0,
        fixed: str | None = None,
        motifs: Sequence[str | tuple[str, int]] = (),
        gc_range: tuple[float, float] = (0.0, 1.0),
        avoid_sites: Sequence[str] = (),
        length: int | None = None,
        steps: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        rounds: int = 20,
        batch_size: int = 256,
    ) -> Iterator[Design]:
        """Yield designs as they are found.

        Letters and motifs are pinned while the flow fills in the rest; GC content and sites are checked afterwards, and what
        fails is drawn again.

        Args:
            n: how many.
            label: class; guidance: its weight, 1 for the conditional model as it is.
            oracle: a score of probabilities ``(B, L, 4)``, such as a motif's expected score; oracle_scale: its weight.
            fixed: a template of the length of the sequences, letters where they are fixed and N where they are free.
            motifs: words of letters to keep; a place of their start (from 0) with each, or one is drawn for every sequence.
            gc_range: least and largest share of C and G.
            avoid_sites: IUPAC patterns, such as GAATTC, that may lie on neither strand.
            length: of the sequences; that of the training, or of the template, by default.
            steps: sampling steps.
            temperature: of the letters, for representations by tokens.
            seed: of everything: the same call gives the same sequences.
            rounds: batches of which none brings a new design before giving up.
            batch_size: sequences at once.

        Raises:
            ValueError: what is asked cannot be met: a class that the flow does not know, motifs that do not fit, a fixed part
                that holds a site to avoid.
            RuntimeError: too few sequences pass; says how many of how many did.
        """
        if not 1 <= n <= MOST:
            raise ValueError(f"n must lie between 1 and {MOST}, got {n}")
        if not 0 <= gc_range[0] <= gc_range[1] <= 1:
            raise ValueError(f"gc_range must be two shares 0 <= least <= most <= 1, got {gc_range}")
        if steps < 1 or batch_size < 1 or rounds < 1:
            raise ValueError(f"steps, batch_size and rounds must be at least 1, got {steps}, {batch_size} and {rounds}")
        template, is_fixed = self._template(fixed, length)
        words = [self._word(motif, len(template)) for motif in motifs]
        for site in avoid_sites:
            allowed_letters(site)
        self._check_kept(template, is_fixed, words, avoid_sites)
        flow = self._steered(label, guidance, oracle, oracle_scale)
        generator = torch.Generator().manual_seed(seed)
        method = sampler(self.config, temperature)
        found, drawn, idle = 0, 0, 0
        while found < n:
            size = min(batch_size, max(n - found, 8))
            tokens, kept = _place(template, is_fixed, words, size, generator)
            state = flow.sample(
                (size, len(template)),
                steps=steps,
                method=method,
                cond=class_number(self.config, label, size),
                known=to_state(flow, tokens) if bool(kept.any()) else None,
                known_mask=kept if bool(kept.any()) else None,
                generator=generator,
            )
            made = to_tokens(state)
            share = gc_content(made)
            passes = (share >= gc_range[0] - 1e-6) & (share <= gc_range[1] + 1e-6)
            for site in avoid_sites:
                passes &= ~find_sites(made, site).any(1)
            drawn += size
            rows = passes.nonzero().squeeze(1)[: n - found]
            idle = 0 if len(rows) else idle + 1
            if idle >= rounds:
                raise RuntimeError(
                    f"only {found} of {drawn} sequences had a GC share in {gc_range} and none of {list(avoid_sites)}; "
                    "widen the range, avoid less, or raise rounds="
                )
            found += len(rows)
            for row, letters in zip(rows.tolist(), decode(made[rows]), strict=True):
                yield Design(letters, label, _runs(kept[row]), float(share[row]))

    def score(
        self, sequences: Sequence[str], *, label: str | None = None, samples: int = 64, seed: int = 0
    ) -> list[float]:
        """A lower bound on the log-probability of every sequence, nats per letter: larger is more like the training data.

        Args:
            sequences: letters of equal length, at most that of the training.
            label: class under which to score.
            samples: times that the bound is averaged over.
            seed: of the noise.

        Raises:
            ValueError: a letter that is no DNA, other lengths, or a representation without a bound.
        """
        if not isinstance(self.flow.spaces, mf.Tokens):
            raise ValueError(
                f"scores need a flow of tokens (masking or uniform); {self.config.representation} has no bound yet"
            )
        if not sequences:
            return []
        tokens, mask, _ = encode(sequences)
        if not bool(mask.all()) or tokens.shape[1] > self.config.length:
            raise ValueError(f"sequences to score must have one length of at most {self.config.length}")
        value = self.flow.elbo(
            tokens,
            samples=samples,
            cond=class_number(self.config, label, len(tokens)),
            generator=torch.Generator().manual_seed(seed),
        )
        return (value / tokens.shape[1]).tolist()

    # ---------------------------------------------------------------- internals

    def _steered(self, label: str | None, guidance: float, oracle: Any, scale: float) -> mf.Flow:
        flow = self.flow
        if guidance != 1:
            if label is None:
                raise ValueError("guidance strengthens a class: give label= too")
            flow = ClassifierFree(flow, guidance)
        return Oracle(flow, oracle, scale) if oracle is not None else flow

    def _template(self, fixed: str | None, length: int | None) -> tuple[Tensor, Tensor]:
        size = length or (len(fixed) if fixed else self.config.length)
        if not 1 <= size <= self.config.length:
            raise ValueError(f"length must lie between 1 and {self.config.length}, got {size}")
        if fixed is None:
            return torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
        if len(fixed) != size:
            raise ValueError(f"fixed has {len(fixed)} letters, but the sequences have {size}")
        free = torch.tensor([c in "Nn" for c in fixed])
        tokens, _, _ = encode(["".join("A" if f else c for c, f in zip(fixed, free.tolist(), strict=True))])
        return tokens[0], ~free

    def _word(self, motif: str | tuple[str, int], length: int) -> tuple[Tensor, int | None]:
        letters, place = (motif, None) if isinstance(motif, str) else motif
        if not letters:
            raise ValueError("a motif to keep is empty")
        word = encode([letters])[0][0]
        last = length - len(word)
        if last < 0 or (place is not None and not 0 <= place <= last):
            raise ValueError(f"motif {letters} does not fit at {place} into {length} letters")
        return word, place

    def _check_kept(
        self, template: Tensor, is_fixed: Tensor, words: list[tuple[Tensor, int | None]], sites: Sequence[str]
    ) -> None:
        for site in sites:
            if bool(find_sites(template[None], site, mask=is_fixed[None]).any()):
                raise ValueError(f"the fixed letters hold the site {site} that is to be avoided")
            for word, _ in words:
                if bool(find_sites(word[None], site).any()):
                    raise ValueError(f"the motif {decode(word[None])[0]} holds the site {site} that is to be avoided")


def _place(
    template: Tensor, is_fixed: Tensor, words: list[tuple[Tensor, int | None]], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Templates with the motifs put in, ``(count, L)``, and which letters are kept.

    Raises:
        ValueError: the motifs do not fit beside each other and the fixed letters.
    """
    tokens, kept = template.repeat(count, 1), is_fixed.repeat(count, 1)
    for word, place in sorted(words, key=lambda w: w[1] is None):  # those with a place first
        width = len(word)
        clash = kept.unfold(1, width, 1) & (tokens.unfold(1, width, 1) != word)
        overlap = kept.unfold(1, width, 1)
        free = ~overlap.any(-1) if place is None else ~clash.any(-1)
        if place is not None:
            only = torch.zeros_like(free)
            only[:, place] = True
            free = free & only
        if not bool(free.any(-1).all()):
            raise ValueError(f"the motif {decode(word[None])[0]} finds no room beside what else is to be kept")
        start = torch.multinomial(free.double(), 1, generator=generator)
        at = start + torch.arange(width)
        tokens.scatter_(1, at, word.expand(count, -1))
        kept.scatter_(1, at, torch.ones_like(at, dtype=torch.bool))
    return tokens, kept


def _runs(kept: Tensor) -> tuple[tuple[int, int], ...]:
    """Runs of True as ``[start, end)``."""
    edge = torch.nn.functional.pad(kept.int(), (1, 1)).diff()
    return tuple(zip((edge == 1).nonzero().flatten().tolist(), (edge == -1).nonzero().flatten().tolist(), strict=True))
