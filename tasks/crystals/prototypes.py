"""Ideal structures from space groups, occupied positions and tabulated radii: data of our own for tests and demonstrations.

The cell of every prototype is scaled until the closest contact is the sum of the two covalent radii.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from manifoldflow.tasks.crystals.elements import COVALENT, ELECTRONEGATIVITY, species_number
from manifoldflow.tasks.crystals.reading_symmetry import expand, operations_of
from manifoldflow.tasks.crystals.structure import Crystal, cell_vectors, collate, contacts


@dataclass(frozen=True)
class Prototype:
    """An ideal structure type.

    Args:
        name: of the mineral or compound.
        number: of its space group.
        hall: of the setting that the positions are given in (spglib's list, 1 to 530).
        shape: b/a, c/a and the angles in degrees.
        sites: role and position of every orbit. Role X is the most electronegative, A the largest of the others.
        example: an element for every role, in the order in which they first occur in ``sites``.
    """

    name: str
    number: int
    hall: int
    shape: tuple[float, float, float, float, float]
    sites: tuple[tuple[str, float, float, float], ...]
    example: tuple[str, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """In the order of ``sites``, each once."""
        return tuple(dict.fromkeys(site[0] for site in self.sites))

    def make(self, elements: Sequence[int]) -> Crystal:
        """The crystal with these species in its roles: primitive, reduced, scaled by radii."""
        return self.fill(dict(zip(self.roles, elements, strict=True)))

    def fill(self, species: dict[str, int]) -> Crystal:
        """The same, species by role."""
        cell, frac, roles = _orbits(self)
        crystal = Crystal(np.array([species[role] for role in roles], np.int64), frac, cell, self.name)
        return scaled(crystal.primitive())

    def count(self) -> dict[str, int]:
        """Atoms of each role in a formula unit."""
        _, _, roles = _orbits(self)
        counts = {role: roles.count(role) for role in self.roles}
        unit = int(np.gcd.reduce(list(counts.values())))
        return {role: count // unit for role, count in counts.items()}


@cache
def _orbits(prototype: Prototype) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    cell = cell_vectors(5.0, 5.0 * prototype.shape[0], 5.0 * prototype.shape[1], *prototype.shape[2:])
    parts, roles = [], []
    for role, *place in prototype.sites:
        images = expand(np.array(place), cell, operations_of(prototype.hall), tolerance=1e-3)
        parts.append(images)
        roles += [role] * len(images)
    return cell, np.concatenate(parts), tuple(roles)


def scaled(crystal: Crystal, contact: float = 1.0) -> Crystal:
    """The same crystal, its cell scaled so that the closest contact is so many sums of covalent radii."""
    found = float(contacts(collate([crystal], dtype=torch.float64))[0])
    return replace(crystal, cell=crystal.cell * (contact / found))


_CUBE = (1.0, 1.0, 90.0, 90.0, 90.0)


def _hexagonal(ratio: float) -> tuple[float, float, float, float, float]:
    return (1.0, ratio, 90.0, 90.0, 120.0)


def _tetragonal(ratio: float) -> tuple[float, float, float, float, float]:
    return (1.0, ratio, 90.0, 90.0, 90.0)


_THIRD, _IDEAL = 1 / 3, float(np.sqrt(8 / 3))

PROTOTYPES: tuple[Prototype, ...] = (
    Prototype("rock_salt", 225, 523, _CUBE, (("A", 0, 0, 0), ("X", 0.5, 0.5, 0.5)), ("Na", "Cl")),
    Prototype("cesium_chloride", 221, 517, _CUBE, (("A", 0, 0, 0), ("X", 0.5, 0.5, 0.5)), ("Cs", "Cl")),
    Prototype("zinc_blende", 216, 512, _CUBE, (("A", 0, 0, 0), ("X", 0.25, 0.25, 0.25)), ("Zn", "S")),
    Prototype(
        "wurtzite",
        186,
        480,
        _hexagonal(_IDEAL),
        (("A", _THIRD, 2 * _THIRD, 0), ("X", _THIRD, 2 * _THIRD, 0.375)),
        ("Zn", "O"),
    ),
    Prototype(
        "nickel_arsenide", 194, 488, _hexagonal(1.4), (("A", 0, 0, 0), ("X", _THIRD, 2 * _THIRD, 0.25)), ("Ni", "As")
    ),
    Prototype("gold_copper", 123, 400, _tetragonal(1.33), (("A", 0, 0, 0), ("X", 0.5, 0.5, 0.5)), ("Cu", "Au")),
    Prototype("fluorite", 225, 523, _CUBE, (("A", 0, 0, 0), ("X", 0.25, 0.25, 0.25)), ("Ca", "F")),
    Prototype("antifluorite", 225, 523, _CUBE, (("X", 0, 0, 0), ("A", 0.25, 0.25, 0.25)), ("O", "Li")),
    Prototype("rutile", 136, 419, _tetragonal(0.644), (("A", 0, 0, 0), ("X", 0.305, 0.305, 0)), ("Ti", "O")),
    Prototype(
        "cadmium_iodide", 164, 456, _hexagonal(1.6), (("A", 0, 0, 0), ("X", _THIRD, 2 * _THIRD, 0.25)), ("Cd", "I")
    ),
    Prototype("pyrite", 205, 501, _CUBE, (("A", 0, 0, 0), ("X", 0.385, 0.385, 0.385)), ("Fe", "S")),
    Prototype(
        "molybdenite",
        194,
        488,
        _hexagonal(3.9),
        (("A", _THIRD, 2 * _THIRD, 0.25), ("X", _THIRD, 2 * _THIRD, 0.621)),
        ("Mo", "S"),
    ),
    Prototype(
        "aluminium_diboride", 191, 485, _hexagonal(1.08), (("A", 0, 0, 0), ("X", _THIRD, 2 * _THIRD, 0.5)), ("Al", "B")
    ),
    Prototype("laves", 227, 526, _CUBE, (("A", 0.125, 0.125, 0.125), ("X", 0.5, 0.5, 0.5)), ("Mg", "Cu")),
    Prototype("rhenium_trioxide", 221, 517, _CUBE, (("A", 0, 0, 0), ("X", 0.5, 0, 0)), ("Re", "O")),
    Prototype("gold_copper_3", 221, 517, _CUBE, (("X", 0, 0, 0), ("A", 0, 0.5, 0.5)), ("Au", "Cu")),
    Prototype("a15", 223, 520, _CUBE, (("X", 0, 0, 0), ("A", 0.25, 0, 0.5)), ("Si", "Cr")),
    Prototype("corundum", 167, 460, _hexagonal(2.73), (("A", 0, 0, 0.352), ("X", 0.306, 0, 0.25)), ("Al", "O")),
    Prototype(
        "perovskite", 221, 517, _CUBE, (("A", 0, 0, 0), ("B", 0.5, 0.5, 0.5), ("X", 0.5, 0.5, 0)), ("Sr", "Ti", "O")
    ),
    Prototype(
        "spinel",
        227,
        526,
        _CUBE,
        (("B", 0.125, 0.125, 0.125), ("A", 0.5, 0.5, 0.5), ("X", 0.2625, 0.2625, 0.2625)),
        ("Mg", "Al", "O"),
    ),
    Prototype(
        "half_heusler",
        216,
        512,
        _CUBE,
        (("A", 0, 0, 0), ("X", 0.5, 0.5, 0.5), ("B", 0.25, 0.25, 0.25)),
        ("Ti", "Sn", "Ni"),
    ),
    Prototype(
        "heusler", 225, 523, _CUBE, (("A", 0, 0, 0), ("X", 0.5, 0.5, 0.5), ("B", 0.25, 0.25, 0.25)), ("Mn", "Al", "Cu")
    ),
    Prototype(
        "barium_aluminide",
        139,
        424,
        _tetragonal(2.6),
        (("A", 0, 0, 0), ("B", 0, 0.5, 0.25), ("X", 0, 0, 0.38)),
        ("Th", "Cr", "Si"),
    ),
    Prototype("copper", 225, 523, _CUBE, (("A", 0, 0, 0),), ("Cu",)),
    Prototype("tungsten", 229, 529, _CUBE, (("A", 0, 0, 0),), ("W",)),
    Prototype("magnesium", 194, 488, _hexagonal(1.62), (("A", _THIRD, 2 * _THIRD, 0.25),), ("Mg",)),
    Prototype("diamond", 227, 526, _CUBE, (("A", 0.125, 0.125, 0.125),), ("C",)),
)
"""The structure types."""

NAMED: dict[str, Prototype] = {prototype.name: prototype for prototype in PROTOTYPES}


@cache
def examples() -> tuple[Crystal, ...]:
    """Every prototype with its example elements: the demonstration set."""
    return tuple(p.make([species_number(symbol) for symbol in p.example]) for p in PROTOTYPES)


_FAMILIES: dict[str, tuple[str, ...]] = {
    "alkali": ("Li", "Na", "K", "Rb", "Cs"),
    "earth": ("Mg", "Ca", "Sr", "Ba"),
    "halogen": ("F", "Cl", "Br", "I"),
    "chalcogen": ("O", "S", "Se", "Te"),
    "metal": ("Ti", "V", "Fe", "Co", "Ni", "Cu", "Zn", "Zr", "Nb", "Mo", "Pd", "Ag"),
    "carbon": ("C", "Si", "Ge", "Sn"),
}


def generated(most: int | None = None) -> list[Crystal]:
    """The generated set: every prototype with elements of the families of its example in all combinations.

    Args:
        most: crystals of each prototype; all if absent.
    """
    made = []
    for prototype in PROTOTYPES:
        choices = [
            next((family for family in _FAMILIES.values() if symbol in family), (symbol,))
            for symbol in prototype.example
        ]
        for words in itertools.islice((w for w in itertools.product(*choices) if len(set(w)) == len(w)), most):
            crystal = prototype.make([species_number(word) for word in words])
            made.append(
                replace(crystal, name=f"{prototype.name}-{crystal.formula}", labels={"prototype": prototype.name})
            )
    return made


def assign(species: Iterable[int], prototype: Prototype) -> dict[str, list[int]] | None:
    """Which atoms of a formula unit go to which role: the most electronegative to X, the largest of the rest to A.

    Args:
        species: of one formula unit, with repeats.
        prototype: the structure type.

    Returns:
        Species by role, as many as it has sites; None if the number of atoms is another.
    """
    counts = prototype.count()
    some = list(species)
    if len(some) != sum(counts.values()):
        return None
    eager = np.nan_to_num(ELECTRONEGATIVITY, nan=5.0)
    numbers, amounts = np.unique(some, return_counts=True)
    roles = list(counts)
    whole = [
        order
        for order in itertools.permutations(range(len(numbers)), len(roles))
        if len(roles) == len(numbers) and all(amounts[i] == counts[role] for i, role in zip(order, roles, strict=True))
    ]
    if whole:  # every element has a role of its own: the anion counts first, then who is larger

        def merit(order: Iterable[int]) -> tuple[float, float]:
            of = dict(zip(roles, numbers[list(order)], strict=True))
            return (float(eager[of["X"]]) if "X" in of else 0.0, float(COVALENT[of["A"]]))

        best = dict(zip(roles, max(whole, key=merit), strict=True))
        return {role: [int(numbers[best[role]])] * counts[role] if role in best else [] for role in ("X", "A", "B")}
    some.sort(key=lambda s: (-eager[s], s))
    anions, rest = some[: counts.get("X", 0)], some[counts.get("X", 0) :]
    rest.sort(key=lambda s: (-COVALENT[s], s))
    return {"X": anions, "A": rest[: counts.get("A", 0)], "B": rest[counts.get("A", 0) :]}


def make_embedded(path: str | Path = "data/crystals/prototypes.csv.gz") -> Path:
    """Write the generated set as the table that ships with the library: ``python -m manifoldflow.tasks.crystals.prototypes``."""
    import csv
    import gzip
    import io

    from manifoldflow.files import write_bytes
    from manifoldflow.tasks.crystals.writing import cif_text

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["material_id", "prototype", "space_group_number", "formula", "cif"])
    for crystal in generated():
        kind = crystal.labels["prototype"]
        table.writerow([crystal.name, kind, NAMED[kind].number, crystal.formula, cif_text(crystal)])
    return write_bytes(path, gzip.compress(text.getvalue().encode(), mtime=0))


def embedded() -> Path:
    """Where the generated set lies: 27 structure types over families of elements, as a table of CIFs."""
    from manifoldflow.checkpoint import data_path

    return data_path("crystals/prototypes.csv.gz")


if __name__ == "__main__":
    print(make_embedded())
