"""Geometry that needs no data: frames, oxygens, bonds and hydrogen bonds of a peptide built here from internal coordinates."""

import math

import numpy as np
import pytest
import torch

from manifoldflow.tasks.proteins import secondary_structure as ss
from manifoldflow.tasks.proteins.geometry import atoms_from_frames, frames_from_atoms
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.structure import rebuild_oxygen
from testkit.peptide import STRAND, helix, pdb_lines, peptide


def any_peptide(length: int, seed: int, last_psi: float = 140.0) -> torch.Tensor:
    """Random torsions, the last psi as given: what an O without a successor is placed by."""
    angles = np.random.default_rng(seed).uniform(-180, 180, (length, 2))
    angles[-1, 1] = last_psi
    return torch.tensor(peptide([(float(a), float(b)) for a, b in angles]))


@pytest.mark.parametrize("seed", range(5))
def test_atoms_of_the_frames_are_the_atoms_the_oxygen_on_its_side_of_the_peptide(seed: int) -> None:
    coords = any_peptide(12, seed)[None]
    error = (atoms_from_frames(frames_from_atoms(coords)) - coords).norm(dim=-1)
    assert error[..., :3].max() < 1e-6
    assert error[0, :-1, 3].max() < 0.04  # O on the bisector instead of at 120.1 degrees
    assert error[0, -1, 3] < 1e-6  # without a successor: psi 140


@pytest.mark.parametrize("seed", range(5))
def test_rebuilt_oxygens_are_the_ones_that_were_taken_away(seed: int) -> None:
    coords = any_peptide(12, seed).numpy()
    error = np.linalg.norm(rebuild_oxygen(coords[:, :3], np.zeros(12, bool))[:, 3] - coords[:, 3], axis=-1)
    assert error.max() < 0.02  # 120.1 degrees here, 120.4 there


def test_an_oxygen_before_a_break_is_extended_too() -> None:
    first, second = any_peptide(5, 1).numpy(), any_peptide(5, 2).numpy() + 20
    both, ends = np.concatenate([first, second]), np.arange(10) == 4
    assert np.linalg.norm(rebuild_oxygen(both, ends)[:, 3] - both[:, 3], axis=-1).max() < 0.02
    index = torch.arange(10) + 33 * (torch.arange(10) > 4)
    made = atoms_from_frames(frames_from_atoms(torch.tensor(both)[None]), residue_index=index[None])
    assert (made[0, 4, 3] - torch.tensor(both[4, 3])).norm() < 1e-6


@pytest.mark.parametrize(("length", "is_break"), [(1.33, False), (1.74, False), (1.76, True), (2.5, True)])
def test_a_chain_is_broken_where_c_and_n_are_more_than_1_75_angstrom_apart(
    tmp_path, length: float, is_break: bool
) -> None:
    coords = helix(6)
    bond = coords[3, 0] - coords[2, 2]
    coords[3:] += bond * (length / np.linalg.norm(bond) - 1)
    (tmp_path / "x.pdb").write_text("\n".join(pdb_lines(coords)) + "\n")
    assert read_structure(tmp_path / "x.pdb")[0].break_after.tolist() == [False, False, is_break, False, False, False]


def kabsch_sander(o: np.ndarray, c: np.ndarray, n: np.ndarray, h: np.ndarray) -> float:
    """332 x 0.42 x 0.20 kcal/mol A over the four distances (Kabsch & Sander 1983), written out again."""
    apart = [1 / np.linalg.norm(a - b) for a, b in ((o, n), (c, h), (o, h), (c, n))]
    return 0.42 * 0.20 * 332 * (apart[0] + apart[1] - apart[2] - apart[3])


@pytest.mark.parametrize(("energy", "is_bond"), [(-0.45, False), (-0.49, False), (-0.51, True), (-0.55, True)])
def test_a_hydrogen_bond_begins_at_half_a_kilocalorie(energy: float, is_bond: bool) -> None:
    donor = peptide([STRAND] * 2)  # N-H of its second residue
    h = donor[1, 0] + (donor[0, 2] - donor[0, 3]) / np.linalg.norm(donor[0, 2] - donor[0, 3])
    along = (h - donor[1, 0]) / np.linalg.norm(h - donor[1, 0])

    def acceptor(distance: float) -> np.ndarray:
        """A residue whose O=C lies on the line of N-H, ``distance`` from H."""
        o = h + distance * along
        c = o + 1.231 * along
        side = np.cross(along, [0.0, 0.0, 1.0])
        side /= np.linalg.norm(side)
        ca = c + 1.525 * (0.5 * along + math.sqrt(0.75) * side)
        return np.stack([ca + 1.458 * along, ca, c, o])

    def state(distance: float) -> float:
        _, _, c, o = acceptor(distance)
        return kabsch_sander(o, c, donor[1, 0], h)

    low, high = 1.5, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if state(middle) < energy else (low, middle)
    coords = torch.tensor(np.concatenate([acceptor(low)[None], donor]))[None]
    mask, index = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 40, 41]])
    assert ss.bond_energies(coords, mask, index)[0, 0, 2].item() == pytest.approx(energy, abs=1e-3)
    assert bool(ss.hydrogen_bonds(coords, mask, index)[0, 0, 2]) is is_bond


def test_helices_and_hairpins_are_told_apart_without_data() -> None:
    for coords, expected in ((helix(12), "-HHHHHHHHHH-"), (peptide([STRAND] * 12), "-" * 12)):
        x, mask = torch.tensor(coords)[None], torch.ones(1, 12, dtype=torch.bool)
        assert ss.letters(ss.assign(x, mask), mask) == [expected]


def states_by_the_book(bonds: np.ndarray, link: np.ndarray, bulges: bool) -> list[int]:
    """Kabsch & Sander's rules (1983) residue by residue: 1 helix, 2 strand. ``bonds[i, j]``: C=O of i takes N-H of j."""
    n = len(bonds)
    segment = np.concatenate([[0], np.cumsum(~link)])

    def bond(i: int, j: int) -> bool:
        return 0 <= i < n and 0 <= j < n and bool(bonds[i, j])

    def helix_of(k: int) -> list[set[int]]:
        """Every pair of consecutive k-turns, as the residues that it makes helix."""
        turns = [i for i in range(n - k) if bonds[i, i + k] and segment[i] == segment[i + k]]
        return [set(range(i, i + k)) for i in turns if i - 1 in turns]

    inner = [0 < i < n - 1 and link[i - 1] and link[i] for i in range(n)]
    parallel, anti = set(), set()
    for i in range(n):
        for j in range(n):
            if abs(i - j) < 3 or not (inner[i] and inner[j]):
                continue
            if (bond(i - 1, j) and bond(j, i + 1)) or (bond(j - 1, i) and bond(i, j + 1)):
                parallel.add((i, j))
            if (bond(i, j) and bond(j, i)) or (bond(i - 1, j + 1) and bond(j - 1, i + 1)):
                anti.add((i, j))
    strand = {i for i, _ in parallel | anti}
    for bridges, sign in ((parallel, 1), (anti, -1)) if bulges else ():
        for i, j in bridges:
            for i2, j2 in bridges:
                di, dj = i2 - i, sign * (j2 - j)
                short = 1 <= di <= 5 and 1 <= dj <= 5 and min(di, dj) <= 2 and (di, dj) != (1, 1)
                if short and segment[i] == segment[i2] and segment[j] == segment[j2]:
                    strand |= set(range(i, i2 + 1))
    alpha = set().union(*helix_of(4))
    taken = alpha | strand
    other = set().union(*(h for k in (3, 5) for h in helix_of(k) if not h & taken))
    return [1 if i in alpha | other else 2 if i in strand else 0 for i in range(n)]


@pytest.mark.parametrize("bulges", [False, True])
def test_states_follow_the_rules_for_any_hydrogen_bonds(monkeypatch: pytest.MonkeyPatch, bulges: bool) -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for share in [0.0, 0.0, 0.04, 0.08, 0.15, 0.25] * 15:
        n = 22
        bonds = rng.random((n, n)) < share
        for k in (3, 4, 5):  # turns are rare among all pairs
            at = rng.integers(0, n - k)
            bonds[at : at + 2, at + k : at + k + 2] |= np.eye(2, dtype=bool)[: n - at - k, : n - at - k]
        link = rng.random(n - 1) < 0.95
        index = torch.tensor(np.concatenate([[0], np.cumsum(np.where(link, 1, 34))]))[None]
        monkeypatch.setattr(ss, "hydrogen_bonds", lambda *_, made=bonds: torch.tensor(made)[None])
        made = ss.assign(torch.zeros(1, n, 4, 3), torch.ones(1, n, dtype=torch.bool), index, bulges=bulges)
        expected = states_by_the_book(bonds, link, bulges)
        assert made[0].tolist() == expected
        seen |= set(expected)
    assert seen == {0, 1, 2}


def test_a_donor_keeps_its_two_best_hydrogen_bonds(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = torch.full((1, 5, 5), 0.0)
    energy[0, :, 4] = torch.tensor([-0.6, -2.0, -0.7, -0.9, 0.0])
    monkeypatch.setattr(ss, "bond_energies", lambda *_: energy)
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert ss.hydrogen_bonds(torch.zeros(1, 5, 4, 3), mask)[0, :, 4].tolist() == [False, True, False, True, False]
