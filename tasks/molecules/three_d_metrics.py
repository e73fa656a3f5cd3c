"""What chemistry says of molecules made in three dimensions: RDKit, PoseBusters and GFN2."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from manifoldflow.field import pairs_of_edges
from manifoldflow.tasks.molecules.stability import stability
from manifoldflow.tasks.molecules.three_d import CHARGES, ELEMENTS, Made

KCAL = 23.060548
"""Kilocalories per mole in an electronvolt."""


def to_rdkit(made: Made) -> list[Any]:
    """RDKit molecules with the atoms, bonds and places that were made, unchecked: no hydrogen is added, nothing is corrected."""
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    orders = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
    kinds, charges = made.state["kind"].tolist(), made.state["charge"].tolist()
    pos, bond = made.state["pos"].tolist(), pairs_of_edges(made.state["bond"], made.mask.shape[1]).tolist()
    molecules = []
    for row, size in enumerate(made.mask.sum(-1).tolist()):
        rough, conformer = Chem.RWMol(), Chem.Conformer(size)
        for i in range(size):
            atom = Chem.Atom(ELEMENTS[kinds[row][i]])
            atom.SetFormalCharge(CHARGES[charges[row][i]])
            atom.SetNoImplicit(True)
            rough.AddAtom(atom)
            conformer.SetAtomPosition(i, Point3D(*pos[row][i]))
            for j in range(i):
                if bond[row][i][j]:
                    rough.AddBond(i, j, orders[bond[row][i][j] - 1])
        rough.AddConformer(conformer, assignId=True)
        molecules.append(rough.GetMol())
    return molecules


def is_sound(molecule: Any) -> bool:
    """Whether a molecule is one piece that RDKit sanitises, without a free electron; it is sanitised on the way."""
    from rdkit import Chem

    from manifoldflow.tasks.molecules.chemistry import heard

    try:
        with heard():
            Chem.SanitizeMol(molecule)
    except (ValueError, RuntimeError):
        return False
    if any(a.GetNumRadicalElectrons() for a in molecule.GetAtoms()):
        return False
    return len(Chem.GetMolFrags(molecule)) == 1


def smiles_without_hydrogens(molecule: Any) -> str:
    """Canonical SMILES of a sanitised molecule, hydrogens implied, as other tables have them."""
    from rdkit import Chem

    bare = Chem.RemoveHs(molecule)
    for atom in bare.GetAtoms():
        atom.SetNoImplicit(False)
    return Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(bare, isomericSmiles=False)) or bare)


@dataclass
class ThreeDScores:
    """Measures of molecules in three dimensions; shares as counts of ``total`` (of atoms for the first).

    Attributes:
        atoms, atoms_stable: real atoms, and those with a sum of bond orders that element and charge allow.
        total, stable, sound: molecules; those whose atoms all are stable; those that are connected and pass RDKit.
        unique: different SMILES among the sound.
        novel: of those, not in the reference.
        busted: sound molecules that PoseBusters looked at, and that passed all of its checks; None without.
        checks: shares of PoseBusters' single checks.
        strain: kcal/mol above the GFN2 minimum, of those that were relaxed.
    """

    atoms: int
    atoms_stable: int
    total: int
    stable: int
    sound: int
    unique: int
    novel: int | None
    busted: tuple[int, int] | None = None
    checks: dict[str, float] = field(default_factory=dict)
    strain: list[float] = field(default_factory=list)


def measure(
    made: Made,
    *,
    reference: set[str] | None = None,
    poses: bool = True,
    strained: int = 0,
    report: Callable[[str], None] | None = None,
) -> tuple[ThreeDScores, list[Any], list[str]]:
    """The measures, the sound molecules, and their SMILES.

    Args:
        made: molecules.
        reference: canonical SMILES of the training data, hydrogens implied.
        poses: run PoseBusters.
        strained: how many of the sound ones to relax with GFN2.
        report: told what is being done.
    """
    rules = stability(made)
    molecules = [m for m in to_rdkit(made) if is_sound(m)]
    smiles = [smiles_without_hydrogens(m) for m in molecules]
    different = set(smiles)
    scores = ThreeDScores(
        int(made.mask.sum()),
        int(rules.atom.sum()),
        len(made),
        int(rules.molecule.sum()),
        len(molecules),
        len(different),
        None if reference is None else len(different - reference),
    )
    if poses and molecules:
        if report is not None:
            report("PoseBusters")
        scores.busted, scores.checks = busters(molecules)
    if strained and molecules:
        if report is not None:
            report("GFN2")
        scores.strain = [v for v in (strain(m) for m in molecules[:strained]) if v is not None]
    return scores, molecules, smiles


def busters(molecules: Sequence[Any]) -> tuple[tuple[int, int], dict[str, float]]:
    """PoseBusters' checks of single molecules (lengths, angles, flat rings and double bonds, clashes, energy): those that pass
    all and how many there were, and the share that passes each.

    Raises:
        ModuleNotFoundError: posebusters is not installed; says what to install.
    """
    try:
        from posebusters import PoseBusters
    except ModuleNotFoundError:
        raise ModuleNotFoundError("PoseBusters is not installed; pip install 'manifoldflow[molecules]'") from None
    with warnings.catch_warnings(), _quiet("posebusters"):
        warnings.simplefilter("ignore")
        table = PoseBusters(config="mol").bust(list(molecules))
    # A check that could not be done (RDKit finds no conformer to compare the energy with) is neither passed nor failed.
    done = {str(n): table[n].dropna() for n in table if set(table[n].dropna().map(type)) <= {bool, np.bool_}}
    failed = sum((~table[n].astype("boolean").fillna(True)).astype(int) for n in done)
    return (int((failed == 0).sum()), len(table)), {n: float(v.astype(bool).mean()) for n, v in done.items() if len(v)}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Within, a logger says nothing below an error."""
    logger = logging.getLogger(name)
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagates


def strain(molecule: Any, *, force: float = 0.05, steps: int = 150) -> float | None:
    """Energy above the nearest GFN2 minimum, kcal/mol; None if GFN2 does not converge.

    Args:
        molecule: RDKit molecule with hydrogens and a conformer.
        force: largest force at the minimum, eV/A.
        steps: of the relaxation at most.

    Raises:
        ModuleNotFoundError: tblite or ase is not installed; says what to install.
    """
    try:
        from ase import Atoms
        from ase.optimize import LBFGS
        from tblite.ase import TBLite
    except ModuleNotFoundError:
        raise ModuleNotFoundError("GFN2 needs tblite and ase; pip install 'manifoldflow[molecules]'") from None
    charge = float(sum(a.GetFormalCharge() for a in molecule.GetAtoms()))
    atoms = Atoms([a.GetSymbol() for a in molecule.GetAtoms()], molecule.GetConformer().GetPositions())
    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    try:
        before = atoms.get_potential_energy()
        LBFGS(atoms, logfile=None).run(fmax=force, steps=steps)  # type: ignore[arg-type]
        return float((before - atoms.get_potential_energy()) * KCAL)
    except Exception:
        return None


def real_molecules(batch: dict[str, Any]) -> Made:
    """A batch of real molecules (:meth:`three_d.MoleculeTensors.batch`), to be measured like those of a model."""
    return Made(batch["x"], batch["mask"])


def quantiles(values: Sequence[float]) -> str:
    """``"median (quarter - three quarters)"``."""
    if not values:
        return "-"
    q = (
        torch.tensor(values, dtype=torch.float64)
        .quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        .tolist()
    )
    return f"{q[1]:.1f} ({q[0]:.1f}-{q[2]:.1f}; {len(values)})"
