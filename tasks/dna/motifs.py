"""Scanning with all motifs at once, thresholds of their scores, and sites of a pattern."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifoldflow.tasks.dna.alphabet import allowed_letters
from manifoldflow.tasks.dna.matrices import Motif, find_motif
from manifoldflow.tasks.dna.motif_files import read_motifs

__all__ = [
    "Hits",
    "Motif",
    "best_hits",
    "find_motif",
    "find_sites",
    "hit_rate",
    "kernels",
    "position_profile",
    "read_motifs",
    "score_all",
    "threshold",
]

CELLS = 2**24
"""Numbers that a scan holds at once; results do not depend on it."""


class Hits(NamedTuple):
    """The best place of every motif in every sequence.

    Attributes:
        score: bits, ``(B, M)``; minus infinity where a sequence is shorter than the motif.
        start: first position of the site, counted on the strand as given, ``(B, M)``.
        on_reverse: bool ``(B, M)``.
    """

    score: Tensor
    start: Tensor
    on_reverse: Tensor


def kernels(motifs: Sequence[Motif], *, pseudocount: float = 0.5, background: Sequence[float] = (0.25,) * 4) -> Tensor:
    """Log-odds of all motifs ``(M, 4, W)`` in float32, short ones padded with 0 at the end.

    Raises:
        ValueError: no motifs.
    """
    if not motifs:
        raise ValueError("a scan needs at least one motif, got none")
    width = max(map(len, motifs))
    made = torch.zeros(len(motifs), 4, width)
    for row, motif in zip(made, motifs, strict=True):
        row[:, : len(motif)] = motif.log_odds(pseudocount, background).T
    return made


def score_all(
    x: Tensor,
    motifs: Sequence[Motif],
    *,
    mask: Tensor | None = None,
    pseudocount: float = 0.5,
    background: Sequence[float] = (0.25,) * 4,
) -> Tensor:
    """Scores of all motifs at all places, bits ``(B, M, L)``: of the site that starts there.

    One convolution. Differentiable in probabilities, where the score is that expected of independent letters.

    Args:
        x: tokens ``(B, L)``, or probabilities of the letters ``(B, L, 4)``.
        motifs: to look for.
        mask: bool ``(B, L)`` of real positions.
        pseudocount, background: of the log-odds.

    Returns:
        Minus infinity where a site would reach beyond the end.
    """
    hot = x if x.is_floating_point() else torch.nn.functional.one_hot(x, 4).float()
    weight = kernels(motifs, pseudocount=pseudocount, background=background).to(hot)
    padded = torch.nn.functional.pad(hot.mT, (0, weight.shape[-1] - 1))
    score = torch.nn.functional.conv1d(padded, weight)
    length = torch.full((len(x),), x.shape[1], device=x.device) if mask is None else mask.sum(-1)
    width = torch.tensor([len(m) for m in motifs], device=x.device)
    place = torch.arange(x.shape[1], device=x.device)
    reaches = place + width[None, :, None] > length[:, None, None]
    return score.masked_fill(reaches, -torch.inf)


def best_hits(
    tokens: Tensor,
    motifs: Sequence[Motif],
    *,
    both_strands: bool = True,
    mask: Tensor | None = None,
    pseudocount: float = 0.5,
    background: Sequence[float] = (0.25,) * 4,
    cells: int = CELLS,
) -> Hits:
    """The best site of every motif in every sequence, on either strand.

    Args:
        tokens: ``(B, L)``.
        motifs: to look for.
        both_strands: also look for their reverse complements, at the same places.
        mask: bool ``(B, L)``.
        pseudocount, background: of the log-odds.
        cells: bound on memory.
    """
    if not motifs or tokens.shape[1] == 0:
        raise ValueError(f"nothing to scan: {len(motifs)} motifs, sequences of {tokens.shape[1]} letters")
    if len(tokens) == 0:
        none = torch.zeros(0, len(motifs), dtype=torch.int64, device=tokens.device)
        return Hits(none.float(), none, none.bool())
    strands = [list(motifs)] + ([[m.reverse_complement() for m in motifs]] if both_strands else [])
    swapped = (background[3], background[2], background[1], background[0])
    size = max(1, cells // (len(motifs) * tokens.shape[1]))
    parts = []
    for at in range(0, len(tokens), size):
        some, real = tokens[at : at + size], None if mask is None else mask[at : at + size]
        best = []
        for some_motifs, law in zip(strands, (background, swapped), strict=False):
            score = score_all(some, some_motifs, mask=real, pseudocount=pseudocount, background=law)
            best.append(score.max(-1))
        forward = best[0]
        if not both_strands:
            parts.append((forward.values, forward.indices, torch.zeros_like(forward.indices, dtype=torch.bool)))
            continue
        turned = best[1].values > forward.values
        values = torch.where(turned, best[1].values, forward.values)
        parts.append((values, torch.where(turned, best[1].indices, forward.indices), turned))
    return Hits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def threshold(
    motif: Motif,
    p_value: float,
    *,
    pseudocount: float = 0.5,
    background: Sequence[float] = (0.25,) * 4,
    bins_per_bit: int = 1000,
) -> float:
    """The score in bits that a random site of background letters reaches with probability at most ``p_value``.

    By the exact law of the score, rounded to ``1 / bins_per_bit`` a place: the convolution of the laws of the places (Touzet &
    Varre 2007). Rounding moves the score of a site by at most W / 2 bins, which is added, so that ``p_value`` is never exceeded.
    The chance is that of one place on one strand.

    Raises:
        ValueError: ``p_value`` is not between 0 and 1.
    """
    if not 0 < p_value < 1:
        raise ValueError(f"p_value must lie between 0 and 1, got {p_value}")
    table = np.rint(motif.log_odds(pseudocount, background).numpy() * bins_per_bit).astype(int)
    low = table.min(1)
    law = np.ones(1)
    for row, least in zip(table, low, strict=True):
        longer = np.zeros(len(law) + int(row.max() - least))
        for letter in range(4):
            shift = int(row[letter] - least)
            longer[shift : shift + len(law)] += background[letter] * law
        law = longer
    tail = law[::-1].cumsum()[::-1]  # chance of at least this score
    first = int(np.argmax(tail <= p_value * (1 + 1e-9))) if tail[-1] <= p_value else len(tail)
    # Sites that must not pass have a rounded score of at most first - 1, and a score of at most W / 2 more.
    return float(first - 1 + low.sum() + (len(table) + 1) / 2) / bins_per_bit


def site_score(motif: Motif, p_value: float) -> float:
    """:func:`threshold` of a motif that has sites of this ``p_value`` at all: a short one may have none.

    Raises:
        ValueError: random letters reach even its best site more often.
    """
    least = threshold(motif, p_value)
    best = float(motif.log_odds().amax(-1).sum())
    if best < least:
        raise ValueError(
            f"motif {motif.identifier} {motif.name} is too short for sites of p_value {p_value:g}: random letters reach its best "
            f"one with probability {0.25 ** len(motif):.2g} or more; give a larger p_value"
        )
    return least


def hit_rate(
    tokens: Tensor, motif: Motif, least: float, *, mask: Tensor | None = None, both_strands: bool = True
) -> float:
    """Share of the sequences with a site of at least ``least`` bits."""
    return float((best_hits(tokens, [motif], mask=mask, both_strands=both_strands).score[:, 0] >= least).float().mean())


def position_profile(
    tokens: Tensor, motif: Motif, least: float, *, mask: Tensor | None = None, both_strands: bool = False
) -> Tensor:
    """Share of the sequences with a site of at least ``least`` bits at every start, ``(L,)``."""
    score = score_all(tokens, [motif], mask=mask)[:, 0]
    if both_strands:
        score = score.maximum(score_all(tokens, [motif.reverse_complement()], mask=mask)[:, 0])
    return (score >= least).float().mean(0)


def find_sites(tokens: Tensor, pattern: str, *, both_strands: bool = True, mask: Tensor | None = None) -> Tensor:
    """Where an IUPAC pattern such as GAATTC starts, bool ``(B, L)``.

    Args:
        tokens: ``(B, L)``.
        pattern: letters and codes.
        both_strands: also where it lies on the other strand.
        mask: bool ``(B, L)``.
    """
    allowed = allowed_letters(pattern).to(tokens.device)
    found = _matches(tokens, allowed, mask)
    return found | _matches(tokens, allowed.flip(0, 1), mask) if both_strands else found


def _matches(tokens: Tensor, allowed: Tensor, mask: Tensor | None) -> Tensor:
    width, length = len(allowed), tokens.shape[1]
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    found = torch.zeros_like(real)
    if width > length:
        return found
    windows = tokens.unfold(1, width, 1)
    fits = allowed[torch.arange(width, device=tokens.device), windows].all(-1)
    found[:, : length - width + 1] = fits & real.unfold(1, width, 1).all(-1)
    return found
