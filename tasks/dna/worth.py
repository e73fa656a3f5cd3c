"""Measures that a rule of thumb does not pass: where sites lie, what stands beside them, whether samples can be told from data.

Rates of motifs and the verdict of a judge of classes are passed by a Markov chain with one motif written in
(:mod:`manifoldflow.tasks.dna.markov`); these are not, or not as easily.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from manifoldflow.tasks.dna.fitting import accuracy, fit_classifier
from manifoldflow.tasks.dna.metrics import jensen_shannon
from manifoldflow.tasks.dna.motifs import Motif, best_hits, threshold
from manifoldflow.tasks.dna.sequences import SequenceSet

REACH = 10
"""Letters on either side of a site that count as its flanks."""

CENSUS_ROWS = 2000
"""Sequences whose sites of a whole collection are counted."""


def sites_of(data: SequenceSet, motif: Motif, least: float, both_strands: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The best site of every sequence that has one: its row, its start, and whether it lies on the other strand."""
    hits = best_hits(data.tokens, [motif], both_strands=both_strands, mask=data.mask)
    rows = (hits.score[:, 0] >= least).nonzero().squeeze(1)
    return rows, hits.start[rows, 0], hits.on_reverse[rows, 0]


def place_distance(a: SequenceSet, b: SequenceSet, motif: Motif, least: float, *, both_strands: bool = True) -> float:
    """How far the sites of one set would have to be moved to lie where those of the other do: the Wasserstein distance of
    their starts, in letters; NaN if a set has none.
    """
    starts = [sites_of(data, motif, least, both_strands)[1].double() for data in (a, b)]
    if not all(map(len, starts)):
        return float("nan")
    places = torch.cat(starts).unique()
    below = [torch.searchsorted(s.sort().values, places, right=True) / len(s) for s in starts]
    return float(((below[0] - below[1]).abs()[:-1] * places.diff()).sum())


def flank_divergence(
    a: SequenceSet, b: SequenceSet, motif: Motif, least: float, *, both_strands: bool = True, reach: int = REACH
) -> float:
    """Jensen-Shannon divergence of the letters beside the sites, read along them, summed over ``reach`` places on either side,
    in nats; NaN if a set has no sites.
    """
    total = 0.0
    for laws in zip(*(_flanks(data, motif, least, both_strands, reach) for data in (a, b)), strict=True):
        if any(float(law.sum()) == 0 for law in laws):
            return float("nan")
        total += jensen_shannon(*(law / law.sum() for law in laws))
    return total


def _flanks(data: SequenceSet, motif: Motif, least: float, both_strands: bool, reach: int) -> Tensor:
    """Counts of letters ``(2 reach, 4)`` before and behind the sites."""
    rows, start, turned = sites_of(data, motif, least, both_strands)
    width = len(motif)
    offsets = torch.cat([torch.arange(-reach, 0), torch.arange(width, width + reach)])
    offsets = torch.where(turned[:, None], width - 1 - offsets, offsets)
    at = start[:, None] + offsets
    inside = (at >= 0) & (at < data.tokens.shape[1])
    at = at.clamp(0, data.tokens.shape[1] - 1)
    letters = data.tokens[rows[:, None], at]
    inside &= data.mask[rows[:, None], at]
    letters = torch.where(turned[:, None], 3 - letters, letters)
    return (torch.nn.functional.one_hot(letters, 4) * inside[..., None]).sum(0).double()


def census(data: SequenceSet, motifs: Sequence[Motif], p_value: float, *, both_strands: bool = True) -> Tensor:
    """Share of sequences with a site of each of many motifs, ``(M,)`` in float64."""
    some = data.rows(torch.linspace(0, len(data) - 1, min(len(data), CENSUS_ROWS)).round().long())
    least = torch.tensor([threshold(motif, p_value) for motif in motifs])
    score = best_hits(some.tokens, motifs, both_strands=both_strands, mask=some.mask).score
    return (score >= least).double().mean(0)


def told_apart(
    made: SequenceSet, train: SequenceSet, test: SequenceSet, *, steps: int = 1000, seed: int = 0
) -> tuple[float, int]:
    """Share of sequences, half of them samples and half real, that a classifier calls right, and of how many it is.

    A classifier of samples against data: 0.5 where they cannot be told apart. It learns from 60 % of the samples and as many
    real ones of the training part, stops by 20 %, and is asked about the rest and real ones of the test part, which no model
    has seen. Real sequences have the classes of the samples.

    Args:
        made: samples; classes, if any, have the names of the data.
        train, test: parts of the data.
        steps: of the training.
        seed: of the shares and the training.

    Raises:
        ValueError: fewer than 20 samples.
    """
    if len(made) < 20:
        raise ValueError(f"to tell samples from data takes at least 20 of them, got {len(made)}")
    generator = torch.Generator().manual_seed(seed)
    made = made.rows(torch.randperm(len(made), generator=generator))
    ends = [0, round(0.6 * len(made)), round(0.8 * len(made)), len(made)]
    parts = [made.rows(torch.arange(ends[i], ends[i + 1])) for i in range(3)]
    known = _like(train, made.rows(torch.arange(ends[2])), generator)
    learn = _mixed(parts[0], known.rows(torch.arange(min(ends[1], len(known)))))
    stop = _mixed(parts[1], known.rows(torch.arange(ends[1], len(known))))
    net, _ = fit_classifier(learn, stop, steps=steps, seed=seed)
    asked = _mixed(parts[2], _like(test, parts[2], generator))
    assert asked.labels is not None
    rights = [
        accuracy(net, some, some.labels)  # type: ignore[arg-type]
        for some in (asked.rows((asked.labels == kind).nonzero().squeeze(1)) for kind in (0, 1))
    ]
    return sum(rights) / 2, len(asked)


def _like(real: SequenceSet, made: SequenceSet, generator: torch.Generator) -> SequenceSet:
    """As many real sequences, row by row of the same class where both have them; drawn anew if there are too few."""
    pool = torch.randperm(len(real), generator=generator)
    if made.labels is None or real.labels is None or not set(made.classes) <= set(real.classes):
        return real.rows(pool[torch.arange(len(made)) % len(pool)])
    rows = torch.empty(len(made), dtype=torch.int64)
    for number, name in enumerate(made.classes):
        here = (made.labels == number).nonzero().squeeze(1)
        of_class = pool[real.labels[pool] == real.classes.index(name)]
        if len(here):
            rows[here] = of_class[torch.arange(len(here)) % len(of_class)]
    return real.rows(rows)


def _mixed(made: SequenceSet, real: SequenceSet) -> SequenceSet:
    """Samples and real sequences as a set of these two classes."""
    length = max(made.tokens.shape[1], real.tokens.shape[1])
    tokens, masks = [], []
    for data in (made, real):
        short = length - data.tokens.shape[1]
        tokens.append(torch.nn.functional.pad(data.tokens, (0, short)))
        masks.append(torch.nn.functional.pad(data.mask, (0, short)))
    labels = torch.cat([torch.zeros(len(made)), torch.ones(len(real))]).long()
    return SequenceSet(made.names + real.names, torch.cat(tokens), torch.cat(masks), labels, ("samples", "real"), 0)
