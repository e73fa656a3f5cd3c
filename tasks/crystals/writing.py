"""Crystals to CIF, POSCAR and extended XYZ files that agree with each other, symmetrised on request."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from manifoldflow.files import write_text
from manifoldflow.tasks.crystals.elements import SYMBOLS, symbols_of
from manifoldflow.tasks.crystals.reading_symmetry import expand, write_operation
from manifoldflow.tasks.crystals.structure import Crystal, formula_of, wrap

FORMATS = (".cif", ".vasp", ".extxyz")
"""Endings that :func:`write_crystal` knows; ``.vasp`` is POSCAR."""


@dataclass(frozen=True)
class Symmetry:
    """What spglib finds within a tolerance.

    Args:
        number: of the space group, 1 to 230.
        symbol: Hermann-Mauguin, such as ``Fm-3m``.
        hall: number of the setting in spglib's list.
        tolerance: angstrom.
    """

    number: int
    symbol: str
    hall: int
    tolerance: float


def _dataset(crystal: Crystal, tolerance: float) -> Any:
    import spglib

    if not tolerance > 0:
        raise ValueError(f"the tolerance must be a positive length in angstrom, got {tolerance:g}")
    parts: Any = (crystal.cell, crystal.frac, crystal.species + 1)
    try:
        return spglib.get_symmetry_dataset(parts, symprec=tolerance)
    except Exception:  # spglib's own errors, whose class differs between versions
        return None


def symmetry_of(crystal: Crystal, tolerance: float = 0.01) -> Symmetry:
    """The space group within a tolerance in angstrom; P1 where spglib finds none."""
    found = _dataset(crystal, tolerance)
    if found is None:
        return Symmetry(1, "P1", 1, tolerance)
    return Symmetry(int(found.number), str(found.international), int(found.hall_number), tolerance)


def sites_of(crystal: Crystal, tolerance: float = 0.1) -> tuple[int, list[tuple[int, str, int]]]:
    """The number of the space group within a tolerance in angstrom, and the orbits of the atoms: species, Wyckoff letter and
    number of atoms in the cell, sorted."""
    found = _dataset(crystal, tolerance)
    if found is None:
        return 1, sorted((int(s), "a", 1) for s in crystal.species)
    orbits = Counter(
        zip(crystal.species.tolist(), found.wyckoffs, np.asarray(found.equivalent_atoms).tolist(), strict=True)
    )
    return int(found.number), sorted((species, letter, often) for (species, letter, _), often in orbits.items())


def symmetrized(crystal: Crystal, tolerance: float = 0.01) -> tuple[Crystal, Symmetry]:
    """The crystal moved onto the symmetry that it has within a tolerance, in the standard conventional cell.

    Args:
        crystal: any.
        tolerance: of spglib, angstrom.

    Returns:
        The idealised crystal and its symmetry. Where spglib finds none, the crystal as it was, in P1.
    """
    found = _dataset(crystal, tolerance)
    if found is None:
        return crystal.standard(), Symmetry(1, "P1", 1, tolerance)
    cell = np.asarray(found.std_lattice, float)
    ideal = replace(
        crystal,
        cell=cell,
        frac=wrap(np.asarray(found.std_positions, float)),
        species=np.asarray(found.std_types, np.int64) - 1,
    )
    return ideal, Symmetry(int(found.number), str(found.international), int(found.hall_number), tolerance)


def cif_text(crystal: Crystal, symmetry: Symmetry | None = None) -> str:
    """A crystal as CIF.

    Args:
        crystal: all atoms of the cell.
        symmetry: of :func:`symmetrized`: then operations and the asymmetric unit are written; otherwise P1 and all sites.

    Raises:
        ValueError: the atoms do not have that symmetry.
    """
    from manifoldflow.tasks.crystals.reading_symmetry import operations_of

    a, b, c, alpha, beta, gamma = crystal.parameters
    rows: list[tuple[int, int, np.ndarray]] = []
    if symmetry is None or symmetry.number == 1:
        number, symbol, operations = 1, "P 1", (np.eye(3)[None], np.zeros((1, 3)))
        rows = [(int(s), 1, x) for s, x in zip(crystal.species, crystal.frac, strict=True)]
    else:
        number, symbol, operations = symmetry.number, symmetry.symbol, operations_of(symmetry.hall)
        left = np.ones(len(crystal), bool)
        for i in range(len(crystal)):
            if not left[i]:
                continue
            images = expand(crystal.frac[i], crystal.cell, operations, tolerance=1e-2)
            between = images[:, None] - crystal.frac
            between -= np.rint(between)
            near = np.linalg.norm(between @ crystal.cell, axis=-1)
            mine = near.argmin(1)
            is_orbit = (
                (near.min(1) < 2e-2).all() and (crystal.species[mine] == crystal.species[i]).all() and left[mine].all()
            )
            if not is_orbit:
                raise ValueError(f"{crystal.name}: atom {i + 1} has no image under {symbol}; it is not symmetric")
            left[mine] = False
            rows.append((int(crystal.species[i]), len(images), crystal.frac[i]))
    counts = " ".join(f"{SYMBOLS[s]}{n}" for s, n in sorted(crystal.composition, key=lambda item: SYMBOLS[item[0]]))
    block = re.sub(r"[^\w.+-]", "_", crystal.name, flags=re.ASCII) or crystal.formula
    lines = [
        "# generated by manifoldflow" + (f"; symmetry within {symmetry.tolerance:g} A (spglib)" if symmetry else ""),
        f"data_{block}",
        f"_chemical_formula_sum '{counts}'",
        f"_chemical_formula_structural {formula_of(crystal.composition, crystal.units)}",
        f"_cell_formula_units_Z {crystal.units}",
        f"_cell_length_a {a:.10f}",
        f"_cell_length_b {b:.10f}",
        f"_cell_length_c {c:.10f}",
        f"_cell_angle_alpha {alpha:.10f}",
        f"_cell_angle_beta {beta:.10f}",
        f"_cell_angle_gamma {gamma:.10f}",
        f"_cell_volume {crystal.volume:.6f}",
        f"_symmetry_space_group_name_H-M '{symbol}'",
        f"_symmetry_Int_Tables_number {number}",
        "loop_",
        "_symmetry_equiv_pos_site_id",
        "_symmetry_equiv_pos_as_xyz",
    ]
    lines += [f"{i + 1} '{write_operation(w, t)}'" for i, (w, t) in enumerate(zip(*operations, strict=True))]
    lines += [
        "loop_",
        "_atom_site_label",
        "_atom_site_type_symbol",
        "_atom_site_symmetry_multiplicity",
        "_atom_site_fract_x",
        "_atom_site_fract_y",
        "_atom_site_fract_z",
        "_atom_site_occupancy",
    ]
    seen: dict[int, int] = {}
    for species, multiplicity, place in rows:
        seen[species] = seen.get(species, 0) + 1
        x, y, z = place + 0.0
        symbol = SYMBOLS[species]
        lines.append(f"{symbol}{seen[species]} {symbol} {multiplicity} {x:.10f} {y:.10f} {z:.10f} 1")
    return "\n".join(lines) + "\n"


def poscar_text(crystal: Crystal) -> str:
    """A crystal as POSCAR, atoms of an element together."""
    order = np.argsort(crystal.species, kind="stable")
    numbers, counts = np.unique(crystal.species, return_counts=True)
    title = f"{crystal.formula} {crystal.name}".strip().replace("\n", " ")
    lines = [title, "1.0"]
    lines += [" ".join(f"{value:.10f}" for value in row + 0.0) for row in crystal.cell]
    lines += [" ".join(symbols_of(numbers)), " ".join(map(str, counts.tolist())), "Direct"]
    lines += [" ".join(f"{value:.10f}" for value in row + 0.0) for row in crystal.frac[order]]
    return "\n".join(lines) + "\n"


def extxyz_text(crystal: Crystal) -> str:
    """A crystal as one frame of extended XYZ; numbers among its labels are written beside the lattice."""
    lattice = " ".join(f"{value:.10f}" for value in crystal.cell.ravel() + 0.0)
    pairs = [f'Lattice="{lattice}"', "Properties=species:S:1:pos:R:3", 'pbc="T T T"']
    if crystal.name and not re.search(r"[\"\s\\]", crystal.name):
        pairs.append(f"name={crystal.name}")
    for key, value in crystal.labels.items():
        if isinstance(value, (int, float)) and re.fullmatch(r"\w+", key) and np.isfinite(value):
            pairs.append(f"{key}={value!r}")
    lines = [str(len(crystal)), " ".join(pairs)]
    for symbol, place in zip(symbols_of(crystal.species), crystal.frac @ crystal.cell + 0.0, strict=True):
        lines.append(f"{symbol} " + " ".join(f"{value:.10f}" for value in place))
    return "\n".join(lines) + "\n"


def write_crystal(path: str | Path, crystal: Crystal, symmetrize: float | None = None) -> Path:
    """Write one crystal; the ending says the format (.cif, .vasp, .extxyz).

    Args:
        path: file to write, complete or not at all.
        crystal: in any cell; it is turned into standard orientation, so that the formats agree.
        symmetrize: tolerance in angstrom: the idealised conventional cell is written, as CIF with operations and asymmetric unit.

    Raises:
        ValueError: no such format.
    """
    path = Path(path)
    symmetry = None
    if symmetrize is not None:
        crystal, symmetry = symmetrized(crystal, symmetrize)
    crystal = crystal.standard()
    suffix = path.suffix.lower()
    if suffix == ".cif":
        return write_text(path, cif_text(crystal, symmetry))
    if suffix in (".vasp", ".poscar") or path.name.upper().startswith("POSCAR"):
        return write_text(path, poscar_text(crystal))
    if suffix in (".extxyz", ".xyz"):
        return write_text(path, extxyz_text(crystal))
    raise ValueError(f"{path}: the file must end in one of {', '.join(FORMATS)}")


def write_crystals(
    folder: str | Path,
    crystals: Iterable[Crystal],
    formats: Sequence[str] = ("cif",),
    symmetrize: float | None = None,
) -> list[Path]:
    """Write crystals by their names into a folder, one file a format; an existing file is never replaced: a number is added.

    Raises:
        ValueError: no such format.
    """
    folder = Path(folder)
    suffixes = []
    for word in formats:
        suffix = {"poscar": ".vasp", "vasp": ".vasp", "cif": ".cif", "extxyz": ".extxyz", "xyz": ".extxyz"}.get(
            word.lower().lstrip(".")
        )
        if suffix is None:
            raise ValueError(f"format must be cif, poscar or extxyz, got {word!r}")
        suffixes.append(suffix)
    written = []
    for crystal in crystals:
        stem = re.sub(r"[^\w.+-]", "_", crystal.name) or crystal.formula
        name, count = stem, 1
        while any((folder / f"{name}{suffix}").exists() for suffix in suffixes):
            count += 1
            name = f"{stem}-{count}"
        written += [write_crystal(folder / f"{name}{suffix}", crystal, symmetrize) for suffix in suffixes]
    return written
