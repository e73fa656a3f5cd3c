"""Which of many draws are put forward: distances of crystals, and the choice of least expected error."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from manifoldflow.tasks.crystals.consensus import UNMATCHED, chosen, differences, distances, representatives
from manifoldflow.tasks.crystals.pairs import axis_changes
from manifoldflow.tasks.crystals.prototypes import NAMED
from manifoldflow.tasks.crystals.structure import Crystal, collate


def crystal(species, seed, skew=0.1) -> Crystal:
    rng = np.random.default_rng(seed)
    cell = 3.0 * len(species) ** (1 / 3) * (np.eye(3) + skew * rng.normal(size=(3, 3)))
    return Crystal(np.array(species), rng.random((len(species), 3)), cell)


def moved(c: Crystal, seed: int, by: float) -> Crystal:
    return replace(c, frac=(c.frac + by * np.random.default_rng(seed).normal(size=c.frac.shape)) % 1)


def described_otherwise(c: Crystal, seed: int) -> Crystal:
    """Other cell vectors, other order, shifted, larger."""
    rng = np.random.default_rng(seed)
    change = axis_changes()[rng.integers(48)]
    order = rng.permutation(len(c))
    frac = (c.frac + rng.random(3)) @ np.linalg.inv(change)
    return Crystal(c.species[order], frac[order] % 1, 1.07 * change @ c.cell)


def by_hand(a: Crystal, b: Crystal) -> float:
    """All settings, all orders and all anchors, one after another, in double precision."""
    n = len(a)
    unit_b = b.metric / np.linalg.det(b.metric) ** (1 / 3)
    best = np.inf
    for change in axis_changes():
        unit_a = change @ (a.metric / np.linalg.det(a.metric) ** (1 / 3)) @ change.T
        misfit = np.abs(unit_a - unit_b).sum() / np.trace(unit_b)
        frac = a.frac @ np.linalg.inv(change)
        for order in itertools.permutations(range(n)):
            if (a.species[list(order)] != b.species).any():
                continue
            gap = b.frac - frac[list(order)]
            for k in range(n):
                d = gap - gap[k]
                d -= np.round(d)
                d -= d.mean(0)
                rms = np.sqrt(np.einsum("ni,ij,nj->n", d, unit_b * n ** (2 / 3), d).mean())
                best = min(best, rms + misfit)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_distance_of_near_crystals_is_that_of_all_settings_and_orders(seed):
    truth = crystal([5, 5, 7, 9, 9], seed)
    near = moved(described_otherwise(truth, seed), seed, 0.03)
    got = float(differences(collate([near], dtype=torch.float64), collate([truth], dtype=torch.float64))[0])
    assert got == pytest.approx(by_hand(near, truth), abs=1e-9) and 0.01 < got < 0.2


def test_distance_is_zero_for_one_crystal_described_otherwise_and_in_batches_of_all_sizes():
    made = [
        crystal([1, 2, 2], 0),
        crystal([3] * 6, 1),
        NAMED["spinel"].fill({"A": 11, "B": 12, "X": 7}),
        crystal([4, 5], 2),
    ]
    other = [described_otherwise(c, k) for k, c in enumerate(made)]
    off = differences(collate(other, dtype=torch.float64), collate(made, dtype=torch.float64))
    assert off.abs().max() < 1e-9
    alone = [
        differences(collate([a]), collate([b]))
        for a, b in zip(other, [made[0], made[3], made[2], made[1]], strict=True)
        if len(a) == len(b)
    ]
    assert all(one.isfinite().all() for one in alone)
    assert differences(collate([moved(made[1], 0, 0.2)]), collate([made[1]]))[0] > 0.1


def test_strain_counts_and_volume_does_not():
    salt = NAMED["rock_salt"].fill({"A": 10, "X": 16})
    larger = replace(salt, cell=1.2 * salt.cell)
    longer = replace(salt, cell=np.diag([1.0, 1.0, 1.1]) @ salt.cell)
    off = differences(collate([larger, longer], dtype=torch.float64), collate([salt, salt], dtype=torch.float64))
    assert off[0] < 1e-9 and off[1] > 0.02


def test_the_first_is_the_medoid_and_the_next_lowers_the_expectation_most():
    g = torch.Generator().manual_seed(0)
    point = torch.rand(3, 7, 2, generator=g, dtype=torch.float64)
    table = torch.cdist(point, point).clamp_max(UNMATCHED)
    picked = representatives(table, 3)
    for cell in range(3):
        taken: list[int] = []
        for k in range(3):
            costs = {i: float(table[cell][[*taken, i]].amin(0).mean()) for i in range(7) if i not in taken}
            taken.append(min(costs, key=costs.__getitem__))
            assert int(picked[cell, k]) == taken[k]
    assert representatives(table, 7).sort(1).values.equal(torch.arange(7).expand(3, -1))
    with pytest.raises(ValueError, match="between 1 and the number of draws"):
        representatives(table, 8)


def test_of_two_arrangements_the_more_frequent_comes_first_and_then_the_other():
    one, two = crystal([1, 2, 3, 3], 3), crystal([1, 2, 3, 3], 4)
    two = replace(two, cell=one.cell)
    draws = [moved(described_otherwise(two if k in (0, 4, 5) else one, k), k, 0.01) for k in range(8)]
    table = distances(collate(draws, dtype=torch.float64), 8)[0]
    assert torch.equal(table, table.T) and table.diagonal().eq(0).all()
    first, second = chosen([draws], 2)[0]
    which = [next(k for k, d in enumerate(draws) if d is c) for c in (first, second)]
    assert which[0] in (1, 2, 3, 6, 7) and which[1] in (0, 4, 5)
    # compositions with other numbers of draws, and none at all, keep their places
    few = chosen([[], draws[:2], draws, draws[:1]], 3)
    assert [len(some) for some in few] == [0, 2, 3, 1]


def test_draws_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="not 2 draws of each"):
        distances(collate([crystal([1, 2], k) for k in range(3)]), 2)
