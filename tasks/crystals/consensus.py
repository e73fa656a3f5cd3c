"""Of many draws of one composition the few to put forward: those of least expected error.

A guess is judged by its distance to the truth, cut off where it counts as no match; of several guesses the best counts. What is
expected of that, when the truth is one more draw from the flow, is the mean over the draws of the distance to the nearest guess.
One guess is then the medoid of the draws (minimum Bayes risk: Kumar and Byrne 2004); several are found one after another, each
the one that lowers the expectation most (the greedy algorithm for facility location: Nemhauser, Wolsey and Fisher 1978).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from manifoldflow.assignment import assign
from manifoldflow.tasks.crystals.pairs import axis_changes
from manifoldflow.tasks.crystals.structure import Crystal, Crystals, collate

__all__ = ["chosen", "differences", "distances", "representatives"]

UNMATCHED = 0.5
"""Distance from which two crystals are as far apart as any, in units of the cube root of the volume per atom, as in cRMSE."""
NEAR = 0.15
"""Settings of a cell whose metric tensor is off by so much more than the best one's are not tried."""
STARTS = 16
"""Settings and shifts of a pair from which atoms are assigned."""
NUMBERS = 2_000_000
"""Distances of atoms at once."""


def differences(a: Crystals, b: Crystals) -> Tensor:
    r"""How far crystals of the same species lie apart, pair by pair, ``(P,)``.

    The least over the settings of the cell (48 exchanges and reversals of its vectors), the common shift and the order of like
    atoms of

    .. math:: \sqrt{\tfrac1N \sum_i |d_i - \bar d|^2} + \tfrac{\sum_{kl} |G_{kl} - G'_{kl}|}{\operatorname{tr} G}

    with the differences d of the atoms in units of the cube root of the volume per atom, and metric tensors G of equal volumes.
    Shifts tried are those that lay one atom of the rarest species on another, and orders only from the most likely of the starts,
    so it is a bound from above. The mirror image counts as the same.

    Args:
        a, b: ``P`` crystals each, of the same species as often in every pair, in any order.
    """
    count = len(a.mask)
    if not count:
        return a.frac.new_zeros(0)
    anchors = _anchors(a, b)
    settings, misfit = _settings(a, b)
    n = a.mask.shape[1]
    each = max(1, NUMBERS // (settings.shape[1] * anchors[1].shape[1] * n * n))
    parts = []
    for start in range(0, count, each):
        rows = slice(start, start + each)
        parts.append(
            _least(
                a.rows(rows),
                b.rows(rows),
                settings[rows],
                misfit[rows],
                anchors[0][rows],
                anchors[1][rows],
                anchors[2][rows],
            )
        )
    return torch.cat(parts)


def _unit(lattice: Tensor) -> Tensor:
    """Metric tensors of volume 1."""
    return lattice / torch.linalg.det(lattice).clamp_min(1e-12).pow(1 / 3)[..., None, None]


def _settings(a: Crystals, b: Crystals) -> tuple[Tensor, Tensor]:
    """Changes of cell vectors ``(P, S, 3, 3)`` of ``a`` that bring it near ``b``, and how far off the metric tensors are then,
    ``(P, S)``, infinite for those that are too far."""
    changes = torch.as_tensor(axis_changes(), dtype=a.frac.dtype, device=a.frac.device)
    ga, gb = _unit(a.lattice), _unit(b.lattice)
    moved = torch.einsum("sij,pjk,slk->psil", changes, ga, changes)
    off = (moved - gb.unsqueeze(1)).abs().sum((-1, -2)) / gb.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    off, order = off.sort(dim=1, stable=True)
    near = off < off[:, :1] + NEAR
    most = int(near.sum(1).max())
    off = torch.where(near, off, torch.inf)[:, :most]
    return changes[order[:, :most]], off


def _anchors(a: Crystals, b: Crystals) -> tuple[Tensor, Tensor, Tensor]:
    """An atom of the rarest species of each ``a`` ``(P,)``, the atoms of it in ``b`` ``(P, M)``, and which of these are real."""
    same = (a.species.unsqueeze(-1) == a.species.unsqueeze(-2)) & a.mask.unsqueeze(-1) & a.mask.unsqueeze(-2)
    often = torch.where(a.mask, same.sum(-1), a.mask.shape[1] + 1)
    first = often.argmin(1)
    kind = a.species.gather(1, first[:, None])
    fits = (b.species == kind) & b.mask
    most = int(fits.sum(1).max())
    order = fits.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return first, order, fits.gather(1, order)


def _least(
    a: Crystals, b: Crystals, settings: Tensor, misfit: Tensor, first: Tensor, places: Tensor, is_place: Tensor
) -> Tensor:
    n = a.mask.shape[1]
    tried, shifts = settings.shape[1], places.shape[1]
    size = a.mask.sum(-1).to(a.frac.dtype)
    metric = _unit(b.lattice) * size.pow(2 / 3)[:, None, None]
    frac = torch.einsum("pni,psji->psnj", a.frac, settings)  # the inverse of a change is its transpose
    own = frac.gather(2, first[:, None, None, None].expand(-1, tried, 1, 3))  # (P, S, 1, 3)
    aim = b.frac.gather(1, places.unsqueeze(-1).expand(-1, -1, 3)).unsqueeze(1)  # (P, 1, M, 3)
    x = frac.unsqueeze(2) + (aim - own).unsqueeze(3)  # (P, S, M, N, 3)
    gap = b.frac[:, None, None, :, None] - x.unsqueeze(3)  # (P, S, M, N of b, N of a, 3)
    gap = gap - gap.round()
    squared = torch.einsum("psmijk,pkl,psmijl->psmij", gap, metric, gap)
    unlike = b.species.unsqueeze(-1) != a.species.unsqueeze(-2)
    cost = (squared + 1e3 * unlike[:, None, None]).flatten(1, 2)  # (P, S M, N, N)
    # Most starts are far off whatever the order: only those are assigned whose atoms have near neighbours.
    weight = a.mask / size.unsqueeze(-1)
    near = torch.einsum("pti,pi->pt", cost.masked_fill(~a.mask[:, None, None], torch.inf).amin(-1), weight).sqrt()
    off = misfit.unsqueeze(-1).expand(-1, -1, shifts).flatten(1)
    guess = torch.where(is_place.unsqueeze(1).expand(-1, tried, -1).flatten(1), near + off, torch.inf)
    guess, best = guess.topk(min(STARTS, guess.shape[1]), dim=1, largest=False)
    cost = cost.gather(1, best[..., None, None].expand(-1, -1, n, n))
    real = a.mask.unsqueeze(1).expand(-1, best.shape[1], -1).reshape(-1, n)
    chosen = assign(cost.reshape(-1, n, n), real).view(*best.shape, n, 1, 1)
    gap = gap.flatten(1, 2).gather(1, best[..., None, None, None].expand(-1, -1, n, n, 3))
    d = gap.gather(3, chosen.expand(-1, -1, -1, 1, 3)).squeeze(3)
    d = d - torch.einsum("ptic,pi->ptc", d, weight).unsqueeze(2)
    rms = torch.einsum("ptik,pkl,ptil,pi->pt", d, metric, d, weight).clamp_min(0).sqrt()
    return torch.where(guess.isfinite(), rms + off.gather(1, best), torch.inf).amin(1)


def distances(crystals: Crystals, draws: int, most: float = UNMATCHED) -> Tensor:
    """:func:`differences` between all draws of each composition, ``(cells, draws, draws)``.

    Args:
        crystals: ``cells * draws``, the draws of one composition in a row.
        draws: of each composition.
        most: distances above, and those of what is no cell, count as this.

    Raises:
        ValueError: the number of crystals is no multiple of ``draws``.
    """
    total = len(crystals.mask)
    if draws < 1 or total % draws:
        raise ValueError(f"{total} crystals are not {draws} draws of each composition")
    i, j = torch.triu_indices(draws, draws, 1)
    start = draws * torch.arange(total // draws)[:, None]
    off = differences(crystals.rows((start + i).flatten()), crystals.rows((start + j).flatten()))
    off = off.nan_to_num(most).clamp_max(most).view(total // draws, len(i))
    table = off.new_zeros(len(off), draws, draws)
    table[:, i, j] = off
    return table + table.mT


def representatives(table: Tensor, num: int, weights: Tensor | None = None) -> Tensor:
    """Which draws to put forward, the best single one first, ``(cells, num)`` of numbers of draws.

    Args:
        table: distances ``(cells, draws, draws)``, see :func:`distances`.
        num: how many, at most ``draws``.
        weights: of the draws as guesses of the truth, ``(cells, draws)``; all alike if absent.

    Raises:
        ValueError: more are wanted than there are draws.
    """
    cells, draws, _ = table.shape
    if not 1 <= num <= draws:
        raise ValueError(f"num must lie between 1 and the number of draws ({draws}), got {num}")
    share = table.new_full((cells, 1, draws), 1 / draws) if weights is None else weights.to(table).unsqueeze(1)
    nearest = table.new_full((cells, 1, draws), torch.inf)
    is_taken = torch.zeros(cells, draws, dtype=torch.bool, device=table.device)
    chosen = []
    for _ in range(num):
        expected = (share * torch.minimum(table, nearest)).sum(-1)  # of the best, were each draw added
        best = expected.masked_fill(is_taken, torch.inf).argmin(1, keepdim=True)
        chosen.append(best)
        is_taken = is_taken.scatter(1, best, True)
        nearest = torch.minimum(nearest, table.gather(1, best.unsqueeze(-1).expand(-1, -1, draws)))
    return torch.cat(chosen, 1)


def chosen(draws: Sequence[Sequence[Crystal]], num: int) -> list[list[Crystal]]:
    """The ``num`` crystals of each composition to put forward, the best single one first; all there are where they are fewer.

    Args:
        draws: crystals of each composition; different compositions may have different numbers of draws.
        num: how many of each.
    """
    result: list[list[Crystal]] = [[] for _ in draws]
    alike: dict[tuple[int, int], list[int]] = {}
    for i, some in enumerate(draws):
        if some:
            alike.setdefault((len(some), len(some[0])), []).append(i)
    for (count, _), numbers in alike.items():
        each = max(1, 20_000 // count**2)
        for start in range(0, len(numbers), each):
            rows = numbers[start : start + each]
            table = distances(collate([c for i in rows for c in draws[i]]), count)
            best = representatives(table, min(num, count)).tolist()
            for i, picked in zip(rows, best, strict=True):
                result[i] = [draws[i][k] for k in picked]
    return result
