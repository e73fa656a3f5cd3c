"""What is worth knowing of each crystal that was made: one row of a table, measured before and after relaxation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from manifoldflow.tasks.crystals.formula import charges
from manifoldflow.tasks.crystals.nearest import Known
from manifoldflow.tasks.crystals.relax import Relaxed
from manifoldflow.tasks.crystals.structure import Crystal, collate, contacts, densities
from manifoldflow.tasks.crystals.writing import symmetry_of

__all__ = ["COLUMNS", "SYMMETRY", "Facts", "describe"]

SYMMETRY = 0.1
"""Tolerance in angstrom within which atoms count as equivalent, unless told otherwise."""


@dataclass(frozen=True)
class Facts:
    """One crystal's row.

    Args:
        file: its structure file, empty where none was written.
        formula: reduced.
        units: Z.
        atoms: in the cell.
        space_group, space_group_number: within the tolerance that the run names.
        density: g/cm^3.
        volume: cubic angstrom per atom.
        contact: closest contact over the sum of the covalent radii; below 0.7 atoms overlap.
        charges: whether oxidation states can balance: yes, no, unknown; then why.
        energy: CHGNet's after relaxation, eV per atom; NaN without relaxation or where it failed.
        above_hull: above the hull of CHGNet energies of known structures, eV per atom.
        shift: root mean square displacement by relaxation, angstrom.
        relaxation: how it went, empty where there was none.
        nearest, nearest_formula, nearest_distance: the nearest training structure.
        seed: of the run.
    """

    file: str
    formula: str
    units: int
    atoms: int
    space_group: str
    space_group_number: int
    density: float
    volume: float
    contact: float
    charges: str
    energy: float
    above_hull: float
    shift: float
    relaxation: str
    nearest: str
    nearest_formula: str
    nearest_distance: float
    seed: int

    def row(self) -> list[str]:
        """Cells of the CSV; empty where nothing is known."""
        return [_cell(getattr(self, f.name)) for f in fields(self)]


COLUMNS = (
    "file",
    "formula",
    "Z",
    "atoms",
    "space_group",
    "space_group_number",
    "density_g_cm3",
    "volume_A3_per_atom",
    "contact_ratio",
    "charge_balanced",
    "chgnet_energy_eV_per_atom",
    "chgnet_above_known_hull_eV_per_atom",
    "relaxation_shift_A",
    "relaxation",
    "nearest_training",
    "nearest_training_formula",
    "nearest_training_distance",
    "seed",
)
"""Headings of the CSV, one for each field of :class:`Facts`."""


def describe(
    crystals: Sequence[Crystal],
    *,
    files: Sequence[str] | None = None,
    relaxed: Sequence[Relaxed | None] | None = None,
    known: Known | None = None,
    above_hull: Sequence[float] | None = None,
    tolerance: float = SYMMETRY,
    seed: int = 0,
) -> list[Facts]:
    """Rows of crystals: geometry of the crystals themselves, energies of their relaxed versions.

    Args:
        crystals: as they were made.
        files: names of their files.
        relaxed: what relaxation gave, one per crystal.
        known: training structures.
        above_hull: of the relaxed ones, eV per atom.
        tolerance: of symmetry, angstrom.
        seed: of the run.
    """
    if not crystals:
        return []
    batch = collate(crystals, dtype=torch.float64)
    ratio, density = contacts(batch).tolist(), densities(batch).tolist()
    near = known.nearest(crystals) if known is not None else None
    rows = []
    for i, crystal in enumerate(crystals):
        symmetry = symmetry_of(crystal, tolerance)
        found = charges(crystal.composition)
        word = {True: "yes", False: "no", None: "unknown"}[found.is_balanced]
        after = relaxed[i] if relaxed is not None else None
        rows.append(
            Facts(
                files[i] if files is not None else "",
                crystal.formula,
                crystal.units,
                len(crystal),
                symmetry.symbol,
                symmetry.number,
                density[i],
                crystal.volume / len(crystal),
                ratio[i],
                f"{word}: {found.note}" if found.note else word,
                after.energy if after is not None else float("nan"),
                float(above_hull[i]) if above_hull is not None else float("nan"),
                after.shift if after is not None else float("nan"),
                relaxation_word(after),
                near[i].name if near else "",
                near[i].formula if near else "",
                near[i].distance if near else float("nan"),
                seed,
            )
        )
    return rows


def relaxation_word(after: Relaxed | None) -> str:
    """How relaxation went, in words."""
    if after is None:
        return ""
    if after.fault:
        return f"failed: {after.fault}"
    return "converged" if after.converged else f"not converged in {after.steps} steps"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4f}"
    return str(value)
