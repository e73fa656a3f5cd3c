"""The rules of DSSP once more, residue by residue as in Kabsch & Sander (1983), and compared exactly; no data needed."""

import math

import numpy as np
import pytest
import torch

from manifoldflow.tasks.proteins import secondary_structure as ss

HELICES = {3: (-49.0, -26.0), 4: (-57.8, -47.0), 5: (-57.1, -69.7)}
EXTENDED = (-120.0, 125.0)


def place(a, b, c, length, angle, torsion):
    """The atom that follows a, b, c."""
    angle, torsion = math.radians(angle), math.radians(torsion)
    forward = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, forward)
    normal /= np.linalg.norm(normal)
    local = [-math.cos(angle), math.sin(angle) * math.cos(torsion), math.sin(angle) * math.sin(torsion)]
    return c + length * (local[0] * forward + local[1] * np.cross(normal, forward) + local[2] * normal)


def chain(torsions):
    """A backbone (n, 4, 3) with ideal bonds from (phi, psi) in degrees."""
    n, ca = np.zeros(3), np.array([1.46, 0.0, 0.0])
    c = ca + 1.52 * np.array([-math.cos(math.radians(111)), math.sin(math.radians(111)), 0.0])
    atoms = []
    for k, (_, psi) in enumerate(torsions):
        atoms.append([n, ca, c, place(n, ca, c, 1.23, 120.5, psi + 180)])
        if k + 1 < len(torsions):
            after = place(n, ca, c, 1.33, 117, psi)
            alpha = place(ca, c, after, 1.46, 122, 180)
            n, ca, c = after, alpha, place(c, after, alpha, 1.52, 111, torsions[k + 1][0])
    return np.array(atoms)


def helices(rng):
    """A chain of pieces of all three helices with joints of any kind: turns of all lengths overlap."""
    torsions = []
    while len(torsions) < 60:
        piece = HELICES[int(rng.integers(3, 6))] if rng.random() < 0.8 else EXTENDED
        torsions += [tuple(np.array(piece) + rng.normal(0, 6, 2)) for _ in range(rng.integers(2, 9))]
    return chain(torsions), np.arange(len(torsions))


def sheet(rng):
    """Three strands side by side, each parallel or antiparallel to the one before, in any register, with a helix at the end."""
    strands, index, at = [], [], 0
    for k in range(3):
        x = chain([tuple(np.array(EXTENDED) + rng.normal(0, 4, 2)) for _ in range(12)])
        x = x - x[:, 1].mean(0)
        axes = np.linalg.svd(x[:, 1] - x[:, 1].mean(0))[2]  # along the strand, then across
        carbonyl = (x[:, 3] - x[:, 2])[::2].mean(0)
        across = carbonyl - axes[0] * (carbonyl @ axes[0])
        across /= np.linalg.norm(across)
        frame = np.array([axes[0], across, np.cross(axes[0], across)])
        x = x @ frame.T
        if rng.random() < 0.5:
            x = x * np.array([-1.0, -1.0, 1.0])  # half a turn in the plane of the sheet
        x = x + np.array([rng.uniform(-4, 4), 4.85 * k + rng.normal(0, 0.15), rng.normal(0, 0.2)])
        strands.append(x)
        index.append(np.arange(12) + at)
        at += 45
    return np.concatenate(strands), np.concatenate(index)


def by_the_rules(energy, index, bulges):
    """Letters of one chain. ``bond(a, b)``: C=O of a accepts from N-H of b, among the two best of b."""
    n = len(index)

    def bond(a, b):
        if not (0 <= a < n and 0 <= b < n) or energy[a, b] >= -0.5:
            return False
        return sum(energy[k, b] < energy[a, b] for k in range(n)) < 2

    def whole(a, b):
        """Whether a .. b is one piece without a break."""
        return 0 <= a and b < n and all(index[k + 1] - index[k] == 1 for k in range(a, b))

    def helix(size, taken):
        found = set()
        for i in range(1, n - size):
            turns = all(bond(k, k + size) and whole(k, k + size) for k in (i - 1, i))
            if turns and not taken & set(range(i, i + size)):
                found |= set(range(i, i + size))
        return found

    parallel, anti = set(), set()
    for i in range(n):
        for j in range(n):
            if abs(i - j) < 3 or not whole(i - 1, i + 1) or not whole(j - 1, j + 1):
                continue
            if (bond(i - 1, j) and bond(j, i + 1)) or (bond(j - 1, i) and bond(i, j + 1)):
                parallel.add((i, j))
            if (bond(i, j) and bond(j, i)) or (bond(i - 1, j + 1) and bond(j - 1, i + 1)):
                anti.add((i, j))
    strand = {i for i, _ in parallel | anti}
    if bulges:
        for bridges, sign in ((parallel, 1), (anti, -1)):
            for i, j in bridges:
                for di in range(1, 6):
                    for dj in range(1, 6):
                        other = (i + di, j + sign * dj)
                        ends = sorted((j, other[1]))
                        if min(di, dj) <= 2 and other in bridges and whole(i, i + di) and whole(*ends):
                            strand |= set(range(i, i + di + 1))
    alpha = helix(4, set())
    others = helix(3, alpha | strand) | helix(5, alpha | strand)
    return "".join("H" if k in alpha | others else "E" if k in strand else "-" for k in range(n))


@pytest.mark.parametrize("bulges", [False, True], ids=["plain", "bulges"])
@pytest.mark.parametrize("make", [helices, sheet], ids=["helices", "sheets"])
def test_states_are_those_of_the_rules_applied_one_by_one(make, bulges):
    rng = np.random.default_rng(0)
    drawn = [make(rng) for _ in range(40)]
    size = max(len(x) for x, _ in drawn)
    coords, index = torch.zeros(40, size, 4, 3, dtype=torch.float64), torch.zeros(40, size, dtype=torch.int64)
    mask = torch.zeros(40, size, dtype=torch.bool)
    for k, (x, i) in enumerate(drawn):
        coords[k, : len(x)], index[k, : len(x)], mask[k, : len(x)] = torch.tensor(x), torch.tensor(i), True
    energy = ss.bond_energies(coords, mask, index)
    ours = ss.letters(ss.assign(coords, mask, index, bulges=bulges), mask)
    truth = [by_the_rules(energy[k].numpy(), i, bulges) for k, (_, i) in enumerate(drawn)]
    assert ours == truth
    assert sum(t.count("E" if make is sheet else "H") for t in truth) > 200


@pytest.mark.parametrize("bulges", [False, True], ids=["plain", "bulges"])
@pytest.mark.parametrize("share, size", [(0.12, 24), (0.3, 14), (0.5, 9)])
def test_the_rules_hold_for_bonds_of_any_pattern(share, size, bulges, monkeypatch):
    """Energies at random, which no chain has: every rule is met with every other."""
    rng = np.random.default_rng(1)
    energy = torch.tensor(np.where(rng.random((60, size, size)) < share, -rng.uniform(0.4, 3, (60, size, size)), 0.0))
    index = torch.tensor(np.cumsum(np.where(rng.random((60, size)) < 0.08, 34, 1), 1))
    monkeypatch.setattr(ss, "bond_energies", lambda *_: energy)
    mask = torch.ones(60, size, dtype=torch.bool)
    states = ss.assign(torch.zeros(60, size, 4, 3), mask, index, bulges=bulges)
    truth = [by_the_rules(energy[k].numpy(), index[k].numpy(), bulges) for k in range(60)]
    assert ss.letters(states, mask) == truth
    assert all(sum(t.count(letter) for t in truth) > 20 for letter in "H-E")
