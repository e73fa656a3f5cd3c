"""Our DSSP against reference assignments, biotite's helpers and backbones built by hand."""

import csv
import math

import numpy as np
import pytest
import torch

from manifoldflow.tasks.proteins import secondary_structure as ss
from testkit.shared import SHARED_DATA, needs_shared_data

DATA = SHARED_DATA / "proteins"
LETTERS = "ACDEFGHIKLMNPQRSTVWYX"


def build(torsions):
    """A backbone (n, 4, 3) with ideal bonds from (phi, psi) in degrees, omega = 180, atom by atom in float64."""

    def place(a, b, c, length, angle, torsion):
        angle, torsion = math.radians(angle), math.radians(torsion)
        forward = (c - b) / np.linalg.norm(c - b)
        normal = np.cross(b - a, forward)
        normal /= np.linalg.norm(normal)
        side = np.cross(normal, forward)
        local = [-math.cos(angle), math.sin(angle) * math.cos(torsion), math.sin(angle) * math.sin(torsion)]
        return c + length * (local[0] * forward + local[1] * side + local[2] * normal)

    n, ca = np.zeros(3), np.array([1.46, 0.0, 0.0])
    c = ca + 1.52 * np.array([-math.cos(math.radians(111)), math.sin(math.radians(111)), 0.0])
    atoms = []
    for k, (_, psi) in enumerate(torsions):
        atoms.append([n, ca, c, place(n, ca, c, 1.23, 120.5, psi + 180)])
        if k + 1 < len(torsions):
            following = place(n, ca, c, 1.33, 117, psi)
            alpha = place(ca, c, following, 1.46, 122, 180)
            n, ca, c = following, alpha, place(c, following, alpha, 1.52, 111, torsions[k + 1][0])
    return torch.tensor(np.array(atoms))


@pytest.fixture(scope="module")
def reference():
    """The chains with reference assignments: coords, mask, residue_index, aatype, strings, names."""
    data = np.load(DATA / "backbones.npz")
    names = {name: i for i, name in enumerate(data["name"])}
    rows = list(csv.DictReader((DATA / "dssp_reference.csv").open()))
    width = max(int(row["length"]) for row in rows)
    coords, mask = torch.zeros(len(rows), width, 4, 3), torch.zeros(len(rows), width, dtype=torch.bool)
    index, aatype = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), 20)
    for b, row in enumerate(rows):
        i = names[row["name"]]
        part = slice(data["offset"][i], data["offset"][i + 1])
        n = part.stop - part.start
        coords[b, :n], mask[b, :n] = torch.tensor(data["coords"][part]), True
        breaks = np.concatenate([[0], np.cumsum(data["break_after"][part])[:-1]])
        index[b, :n] = torch.arange(n) + 33 * torch.tensor(breaks)
        aatype[b, :n] = torch.tensor([LETTERS.index(c.decode()) for c in data["aatype"][part]])
    return coords, mask, index, aatype, [row["dssp"] for row in rows], [row["name"] for row in rows]


def agreement(states, mask, strings):
    pairs = [
        (p, q)
        for ours, theirs in zip(ss.letters(states, mask), strings, strict=True)
        for p, q in zip(ours, theirs, strict=True)
    ]
    return sum(p == q for p, q in pairs) / len(pairs)


@needs_shared_data
def test_at_least_98_percent_of_residues_agree_with_the_reference(reference):
    coords, mask, index, aatype, strings, _ = reference
    assert agreement(ss.assign(coords, mask, index), mask, strings) > 0.985
    assert agreement(ss.assign(coords, mask, index, aatype), mask, strings) > 0.98
    assert agreement(ss.assign(coords, mask, index, bulges=True), mask, strings) > 0.97


@needs_shared_data
def test_each_reference_chain_agrees_in_most_residues(reference):
    coords, mask, index, _, strings, names = reference
    states = ss.assign(coords, mask, index)
    for b, name in enumerate(names):
        assert agreement(states[b : b + 1], mask[b : b + 1], strings[b : b + 1]) > 0.9, name


@needs_shared_data
def test_a_chain_alone_and_in_a_padded_batch_gets_the_same_states(reference):
    coords, mask, index, aatype, _, _ = reference
    batched = ss.assign(coords, mask, index, aatype)
    garbage = torch.where(mask[..., None, None], coords, coords.mean())
    assert torch.equal(ss.assign(garbage, mask, index, aatype), batched)
    for b in (0, 7, 20):
        n = int(mask[b].sum())
        alone = ss.assign(coords[b : b + 1, :n], mask[b : b + 1, :n], index[b : b + 1, :n], aatype[b : b + 1, :n])
        assert torch.equal(alone[0], batched[b, :n])
        assert (batched[b, n:] == 0).all()


@needs_shared_data
def test_states_do_not_depend_on_the_pose(reference):
    coords, mask, index, _, _, _ = reference
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    moved = coords @ (rotation * torch.linalg.det(rotation)).mT + 20
    assert (ss.assign(moved, mask, index) != ss.assign(coords, mask, index))[mask].float().mean() < 1e-3


def test_bond_energy_is_the_sum_over_four_charges_in_float64():
    helix = build([(-57, -47)] * 12)
    energy = ss.bond_energies(helix[None], torch.ones(1, 12, dtype=torch.bool))[0]
    n, _, c, o = helix.unbind(1)
    for i in range(12):
        for j in range(1, 12):
            h = n[j] + (c[j - 1] - o[j - 1]) / (c[j - 1] - o[j - 1]).norm()
            far = (helix[i, 1] - helix[j, 1]).norm() >= 9
            terms = [(o[i], n[j], 1), (c[i], h, 1), (o[i], h, -1), (c[i], n[j], -1)]
            expected = sum(sign / (a - b).norm() for a, b, sign in terms) * 27.888
            if far or j in (i, i + 1):
                expected = torch.tensor(0.0)
            assert energy[i, j].item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("torsion, n", [((-57.8, -47.0), 4), ((-60.0, -28.0), 3)])
def test_ideal_helices_are_helix_except_at_their_ends(torsion, n):
    coords, mask = build([torsion] * 20)[None].float(), torch.ones(1, 20, dtype=torch.bool)
    bonds = ss.hydrogen_bonds(coords, mask)[0]
    assert bonds.diagonal(n)[1:].float().mean() > 0.9
    assert ss.letters(ss.assign(coords, mask), mask) == ["-" + "H" * 18 + "-"]


def test_a_lone_extended_chain_has_no_strand():
    coords, mask = build([(-120, 130)] * 20)[None].float(), torch.ones(1, 20, dtype=torch.bool)
    assert ss.letters(ss.assign(coords, mask), mask) == ["-" * 20]


def test_no_turn_crosses_a_chain_break():
    coords, mask = build([(-57.8, -47.0)] * 20)[None].float(), torch.ones(1, 20, dtype=torch.bool)
    index = torch.arange(20)[None] + 33 * (torch.arange(20) >= 10)
    states = ss.letters(ss.assign(coords, mask, index), mask)[0]
    assert states == "-HHHHHHHH--HHHHHHHH-"
    assert (ss.bond_energies(coords, mask, index)[0, :, 10] == 0).all()  # the first residue after a break has no H


def test_proline_donates_no_hydrogen():
    coords, mask = build([(-57.8, -47.0)] * 20)[None].float(), torch.ones(1, 20, dtype=torch.bool)
    aatype = torch.zeros(1, 20, dtype=torch.long)
    aatype[0, 9] = LETTERS.index("P")
    assert ss.hydrogen_bonds(coords, mask)[0, :, 9].any()
    assert not ss.hydrogen_bonds(coords, mask, aatype=aatype)[0, :, 9].any()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 6])
def test_the_shortest_chains_are_coil(length):
    coords, mask = build([(-57.8, -47.0)] * 6)[None, :length].float(), torch.ones(1, length, dtype=torch.bool)
    states = ss.assign(coords, mask)
    assert states.shape == (1, length)
    assert (states == 0).all() or length == 6


def test_overlapping_atoms_give_finite_energies():
    coords, mask = torch.zeros(1, 10, 4, 3), torch.ones(1, 10, dtype=torch.bool)
    assert ss.bond_energies(coords, mask).isfinite().all()


def test_content_counts_real_residues_only():
    states = torch.tensor([[1, 1, 2, 0, 0, 0], [2, 2, 2, 2, 0, 1]])
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    result = ss.content(states, mask)
    assert result["helix"].tolist() == pytest.approx([0.5, 1 / 6])
    assert result["strand"].tolist() == pytest.approx([0.25, 4 / 6])
    assert result["coil"].tolist() == pytest.approx([0.25, 1 / 6])


def test_splitting_a_large_batch_changes_nothing(monkeypatch):
    coords = torch.stack([build([(-57.8, -47.0 + k)] * 16) for k in range(7)]).float()
    mask, index = torch.arange(16) < torch.arange(10, 17)[:, None], torch.arange(16).expand(7, -1)
    whole = ss.assign(coords, mask, index)
    monkeypatch.setattr(ss, "CELLS", 2 * 16**2)
    assert torch.equal(ss.assign(coords, mask, index), whole)
    assert whole.any()
