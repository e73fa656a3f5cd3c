"""How like the data generated sequences are, and how unlike each other."""

import math
import warnings

import torch
from torch import Tensor


def kmer_spectrum(tokens: Tensor, k: int, *, mask: Tensor | None = None, letters: int = 4) -> Tensor:
    """Frequencies of all words of k letters, ``(letters^k,)`` in float64, sum 1; the first letter counts most.

    Raises:
        ValueError: k below 1 or longer than every sequence.
    """
    if k < 1 or k > tokens.shape[-1]:
        raise ValueError(f"k must lie between 1 and the length {tokens.shape[-1]}, got {k}")
    windows = tokens.unfold(-1, k, 1)
    powers = letters ** torch.arange(k - 1, -1, -1, device=tokens.device)
    words = (windows * powers).sum(-1)
    if mask is not None:
        words = words[mask.unfold(-1, k, 1).all(-1)]
    counts = torch.bincount(words.flatten(), minlength=letters**k).double()
    return counts / counts.sum().clamp_min(1)


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """The Jensen-Shannon divergence of two laws in nats, between 0 and log 2."""
    middle = 0.5 * (p + q)
    parts = torch.special.xlogy(p, p) + torch.special.xlogy(q, q) - 2 * torch.special.xlogy(middle, middle)
    return float(0.5 * parts.sum().clamp_min(0))


def correlation(p: Tensor, q: Tensor) -> float:
    """Pearson's correlation of two spectra."""
    a, b = p - p.mean(), q - q.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300))


def gc_content(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of C and G in every sequence, ``(B,)``."""
    is_gc = ((tokens == 1) | (tokens == 2)).float()
    if mask is None:
        return is_gc.mean(-1)
    return (is_gc * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def diversity(tokens: Tensor, *, pairs: int = 10_000, generator: torch.Generator | None = None) -> float:
    """Mean share of places in which two random sequences of one length differ; 0.75 for random letters."""
    n = len(tokens)
    if n < 2:
        raise ValueError("diversity needs at least two sequences")
    a = torch.randint(n, (pairs,), generator=generator)
    b = (a + torch.randint(1, n, (pairs,), generator=generator)) % n
    return float((tokens[a] != tokens[b]).float().mean())


def nearest_distance(tokens: Tensor, reference: Tensor, *, cells: int = 2**26) -> tuple[Tensor, Tensor]:
    """The Hamming distance of every sequence to the nearest reference of the same length, and which one it is.

    Matches are counted by products of one-hot sequences, in blocks of at most ``cells`` numbers. Against insertions see
    :func:`edit_distance`.

    Args:
        tokens: ``(B, L)``.
        reference: ``(R, L)``.

    Returns:
        Distances in letters ``(B,)`` and row numbers ``(B,)``.
    """
    if tokens.shape[1] != reference.shape[1]:
        raise ValueError(
            f"sequences of {tokens.shape[1]} cannot be compared with ones of {reference.shape[1]} place by place"
        )
    length = tokens.shape[1]
    known = torch.nn.functional.one_hot(reference, 4).float().flatten(1)
    size = max(1, cells // max(len(reference), 4 * length))
    distances, rows = [], []
    for part in tokens.split(size):
        matches = torch.nn.functional.one_hot(part, 4).float().flatten(1) @ known.T
        most, row = matches.max(-1)
        distances.append(length - most.long())
        rows.append(row)
    return torch.cat(distances), torch.cat(rows)


def edit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Levenshtein distances of pairs of sequences ``(P, L)`` and ``(P, M)``, ``(P,)``.

    Row by row of the usual table, all pairs at once; the step along a row is a running minimum.
    """
    columns = torch.arange(b.shape[1] + 1, device=a.device)
    row = columns.expand(len(a), -1)
    for i in range(a.shape[1]):
        change = row[:, :-1] + (b != a[:, i : i + 1])
        down = row + 1
        entry = torch.cat([down[:, :1], torch.minimum(change, down[:, 1:])], 1)
        row = (entry - columns).cummin(1).values + columns
    return row[:, -1]


def nearest_edit_distance(
    tokens: Tensor,
    reference: Tensor,
    *,
    mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    cells: int = 2**15,
) -> tuple[Tensor, Tensor]:
    """The exact Levenshtein distance of every sequence to the nearest reference, and which one it is.

    A column of the table is a string of bits, 64 rows to a word, for all pairs at once (Myers 1999; Hyyro 2003).

    Args:
        tokens: ``(B, L)``.
        reference: ``(R, M)``, of any length.
        mask, reference_mask: real positions; padding lies at the end.
        cells: pairs held at once; the default keeps them in the cache.

    Returns:
        Distances in letters ``(B,)`` and row numbers ``(B,)``.

    Raises:
        ValueError: no references.
    """
    if len(reference) == 0:
        raise ValueError("there are no reference sequences to be near to")
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    length = real.sum(-1)
    known = torch.ones_like(reference, dtype=torch.bool) if reference_mask is None else reference_mask
    words = -(-tokens.shape[1] // 64)
    # equal[b, c, w]: the places of sequence b that hold the letter c, as bits of word w
    hot = torch.nn.functional.one_hot(tokens, 4) * real.unsqueeze(-1)
    hot = torch.nn.functional.pad(hot, (0, 0, 0, 64 * words - tokens.shape[1])).reshape(len(tokens), words, 64, 4)
    powers = torch.ones(64, dtype=torch.int64, device=tokens.device) << torch.arange(64, device=tokens.device)
    equal = (hot * powers[:, None]).sum(2).mT
    distances, rows = [], []
    for part in torch.arange(len(tokens), device=tokens.device).split(max(1, cells // len(reference))):
        score = _edit_scores(equal[part], length[part], reference, known)
        least, row = score.min(-1)
        distances.append(least)
        rows.append(row)
    empty = tokens.new_zeros(0)
    return torch.cat([empty, *distances]), torch.cat([empty, *rows])


def _edit_scores(equal: Tensor, length: Tensor, reference: Tensor, known: Tensor) -> Tensor:
    """``(B, R)`` of the bits ``(B, 4, words)``: one column of the table for every letter of the references."""
    words = equal.shape[-1]
    shape = (len(equal), len(reference))
    score = length[:, None].expand(shape).clone()
    last, top = (length - 1).clamp_min(0)[:, None] // 64, (length - 1).clamp_min(0)[:, None] % 64
    up = [torch.full(shape, -1, device=equal.device) for _ in range(words)]  # bits of vertical steps +1; -1 is all ones
    down = [torch.zeros(shape, dtype=torch.int64, device=equal.device) for _ in range(words)]  # and of steps -1
    for column in range(reference.shape[1]):
        more = torch.ones(shape, dtype=torch.int64, device=equal.device)  # the step along row 0 is always +1
        less = torch.zeros_like(more)
        here = known[:, column].long()
        letters = equal[:, reference[:, column]]
        for word in range(words):
            p, m = up[word], down[word]
            match = letters[..., word]
            either = match | m
            match = match | less
            diagonal = (((match & p) + p) ^ p) | match
            right_up, right_down = m | ~(diagonal | p), p & diagonal
            score += ((right_up >> top & 1) - (right_down >> top & 1)) * here * (last == word)
            out_more, out_less = right_up >> 63 & 1, right_down >> 63 & 1
            right_up, right_down = right_up << 1 | more, right_down << 1 | less
            up[word], down[word] = right_down | ~(either | right_up), right_up & either
            more, less = out_more, out_less
    # An empty sequence is as far as the reference is long.
    return torch.where(length[:, None] == 0, known.sum(-1), score)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r""":math:`|\mu_a - \mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2})` of two sets of features ``(N, D)``, in float64.

    The trace of the root is that of the symmetric :math:`(S_a^{1/2} S_b S_a^{1/2})^{1/2}`.

    Raises:
        ValueError: fewer than two rows, sets of different D, or features that are not finite.

    Warns:
        UserWarning: no more rows than features: a covariance is singular, and the distance between two samples of one law large.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Frechet distance needs at least two rows of features, got {len(a)} and {len(b)}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) with one D, got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) <= a.shape[1]:
        warnings.warn(
            f"{min(len(a), len(b))} rows of {a.shape[1]} features: a Frechet distance wants several times as many rows",
            stacklevel=2,
        )
    a, b = a.double(), b.double()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("features hold NaN or infinity")
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    value = float(gap + cov_a.trace() + cov_b.trace() - 2 * mixed)
    return max(value, 0.0) if not math.isnan(value) else value
