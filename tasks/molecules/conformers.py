"""Conformers of molecules by distance geometry: where the three-dimensional model gets most of its data.

RDKit's ETKDG places the atoms, MMFF94 relaxes them; hydrogens are real atoms, and aromatic rings are kekulised, so that a bond is
of order 1, 2 or 3 everywhere. Molecules lie one after another in flat arrays, as in ``gdb7_3d.npz``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.files import atomic, open_npz

ARRAYS = ("positions", "atomic_number", "charge", "atom_offset", "bonds", "bond_order", "bond_offset", "molecule")


@dataclass(frozen=True)
class Conformers:
    """Molecules with positions, atom after atom and bond after bond.

    Attributes:
        positions: float32 ``(A, 3)``, angstrom.
        atomic_number, charge: int8 ``(A,)``.
        atom_offset: int32 ``(n + 1,)``; conformer i has the atoms from its entry to the next.
        bonds: int16 ``(M, 2)``, atoms counted within the conformer, the smaller first.
        bond_order: int8 ``(M,)``: 1, 2 or 3.
        bond_offset: int32 ``(n + 1,)``.
        molecule: int32 ``(n,)``: which molecule a conformer is of.
    """

    positions: NDArray[np.float32]
    atomic_number: NDArray[np.int8]
    charge: NDArray[np.int8]
    atom_offset: NDArray[np.int32]
    bonds: NDArray[np.int16]
    bond_order: NDArray[np.int8]
    bond_offset: NDArray[np.int32]
    molecule: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.atom_offset) - 1

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Atoms of every conformer, ``(n,)``."""
        return np.diff(self.atom_offset)

    @property
    def heavy(self) -> NDArray[np.int64]:
        """Atoms other than hydrogen of every conformer, ``(n,)``."""
        return np.add.reduceat((self.atomic_number > 1).astype(np.int64), self.atom_offset[:-1])

    def rows(self, chosen: NDArray[Any]) -> "Conformers":
        """Some of the conformers, in the order of ``chosen`` (numbers, or one bool each)."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        atoms, atom_offset = _ragged(self.atom_offset, index)
        bonds, bond_offset = _ragged(self.bond_offset, index)
        return Conformers(
            self.positions[atoms],
            self.atomic_number[atoms],
            self.charge[atoms],
            atom_offset,
            self.bonds[bonds],
            self.bond_order[bonds],
            bond_offset,
            self.molecule[index],
        )

    def save(self, path: str | Path) -> Path:
        """Write the arrays to an NPZ file, complete or not at all."""
        with atomic(path) as fresh, open(fresh, "wb") as handle:
            np.savez_compressed(handle, **{name: getattr(self, name) for name in ARRAYS})
        return Path(path)


def _ragged(offset: NDArray[np.int32], index: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The places in the flat arrays of some pieces, and their new offsets."""
    sizes = offset[index + 1] - offset[index]
    fresh = np.concatenate([[0], sizes.cumsum()]).astype(np.int32)
    places = np.arange(fresh[-1]) + np.repeat(offset[index] - fresh[:-1], sizes)
    return places, fresh


def load_conformers(path: str | Path) -> Conformers:
    """Conformers from an NPZ file.

    Charges that are not there follow from the valences (a nitrogen of four bonds has +1); without ``molecule`` every conformer
    is one of its own.

    Raises:
        FileNotFoundError, ValueError: no such file, or arrays that are missing; says which.
    """
    with open_npz(path) as held:
        missing = [n for n in ARRAYS if n not in held.files and n not in ("charge", "molecule")]
        if missing:
            raise ValueError(
                f"{path}: lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}; it has {', '.join(held.files)}"
            )
        arrays = {n: held[n] for n in ARRAYS if n in held.files}
    if "charge" not in arrays:
        arrays["charge"] = formal_charges(arrays)
    arrays.setdefault("molecule", np.arange(len(arrays["atom_offset"]) - 1, dtype=np.int32))
    ordered = np.sort(arrays["bonds"], -1)
    return Conformers(**{**arrays, "bonds": ordered})


IMPLIED = {(7, 4): 1, (7, 2): -1, (8, 3): 1, (8, 1): -1, (16, 1): -1, (16, 3): 1}
"""Formal charges that atomic number and sum of bond orders leave no choice about."""


def formal_charges(arrays: dict[str, Any]) -> NDArray[np.int8]:
    """Formal charges ``(A,)`` from the sums of bond orders, where the file has none."""
    atoms, bonds, order = arrays["atomic_number"], arrays["bonds"].astype(np.int64), arrays["bond_order"]
    first = np.repeat(arrays["atom_offset"][:-1], np.diff(arrays["bond_offset"]))
    valence = np.zeros(len(atoms), np.int64)
    for end in (0, 1):
        np.add.at(valence, first + bonds[:, end], order)
    made = np.zeros(len(atoms), np.int8)
    for (number, total), charge in IMPLIED.items():
        made[(atoms == number) & (valence == total)] = charge
    return made


def join(parts: Sequence[Conformers]) -> Conformers:
    """Several sets as one; molecules are counted on."""
    shift, counted = 0, []
    for part in parts:
        counted.append(part.molecule + shift)
        shift += int(part.molecule.max()) + 1 if len(part) else 0
    whole: dict[str, Any] = {
        n: np.concatenate([getattr(p, n) for p in parts])
        for n in ARRAYS
        if n not in ("atom_offset", "bond_offset", "molecule")
    }
    offsets: dict[str, Any] = {
        n: np.concatenate([[0], np.concatenate([np.diff(getattr(p, n)) for p in parts]).cumsum()]).astype(np.int32)
        for n in ("atom_offset", "bond_offset")
    }
    return Conformers(**whole, **offsets, molecule=np.concatenate(counted).astype(np.int32))


def embed(
    smiles: Iterable[str],
    *,
    each: int = 1,
    seed: int = 0,
    relax: bool = True,
    report: Callable[[int], None] | None = None,
) -> tuple[Conformers, list[str]]:
    """Conformers of molecules given as SMILES.

    Args:
        smiles: one molecule each; several fragments are no molecule and are left out.
        each: conformers of every molecule at most; near-copies (0.1 A) are dropped.
        seed: of the distance geometry.
        relax: minimise the MMFF94 energy.
        report: called with the number of molecules done.

    Returns:
        The conformers, ``molecule`` counting the SMILES, and the SMILES that had none (unreadable, or no conformer was found).
    """
    from rdkit import Chem, RDLogger
    from rdkit.Chem import AllChem

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]  # failures are returned by name
    found: list[tuple[int, Any, list[int]]] = []
    failed: list[str] = []
    for number, text in enumerate(smiles):
        molecule = Chem.MolFromSmiles(text)
        if molecule is None or "." in text:
            failed.append(text)
            continue
        molecule = Chem.AddHs(molecule)
        settings = AllChem.ETKDGv3()  # type: ignore[attr-defined]
        settings.randomSeed, settings.pruneRmsThresh = seed + number, 0.1 if each > 1 else -1.0
        settings.maxIterations = 20  # without a bound, a graph that fits no space is tried for minutes
        kept = list(AllChem.EmbedMultipleConfs(molecule, each, settings))  # type: ignore[attr-defined]
        if kept and relax and AllChem.MMFFHasAllMoleculeParams(molecule):  # type: ignore[attr-defined]
            AllChem.MMFFOptimizeMoleculeConfs(molecule, maxIters=500)  # type: ignore[attr-defined]
        if not kept:
            failed.append(text)
        else:
            found.append((number, molecule, kept))
        if report is not None:
            report(number + 1)
    return pack([(m, i, number) for number, m, kept in found for i in kept]), failed


def pack(molecules: Sequence[tuple[Any, int, int]]) -> Conformers:
    """Flat arrays of RDKit molecules ``(molecule, number of its conformer, which molecule it is)``, kekulised."""
    from rdkit import Chem

    positions, numbers, charges, atoms, bonds, orders, bond_sizes, which = [], [], [], [], [], [], [], []
    for molecule, conformer, number in molecules:
        plain = Chem.Mol(molecule)
        Chem.Kekulize(plain, clearAromaticFlags=True)
        positions.append(plain.GetConformer(conformer).GetPositions())
        numbers += [a.GetAtomicNum() for a in plain.GetAtoms()]
        charges += [a.GetFormalCharge() for a in plain.GetAtoms()]
        atoms.append(plain.GetNumAtoms())
        bonds += [sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in plain.GetBonds()]
        orders += [int(b.GetBondTypeAsDouble()) for b in plain.GetBonds()]
        bond_sizes.append(plain.GetNumBonds())
        which.append(number)
    return Conformers(
        np.concatenate(positions).astype(np.float32) if positions else np.zeros((0, 3), np.float32),
        np.array(numbers, np.int8),
        np.array(charges, np.int8),
        np.concatenate([[0], np.cumsum(atoms)]).astype(np.int32),
        np.array(bonds, np.int16).reshape(-1, 2),
        np.array(orders, np.int8),
        np.concatenate([[0], np.cumsum(bond_sizes)]).astype(np.int32),
        np.array(which, np.int32),
    )
