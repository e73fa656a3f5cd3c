"""The nearest known crystal: a fingerprint of scaled distances beside the shares of the elements, in one embedded table.

Distances between atoms are divided by the cube root of the volume per atom, so a crystal and its stretched copy are one
structure; what elements stand where is the other half of the distance.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifoldflow.checkpoint import data_path
from manifoldflow.files import atomic, open_npz
from manifoldflow.tasks.crystals.elements import ELEMENTS
from manifoldflow.tasks.crystals.structure import Crystal

__all__ = ["Known", "Near", "embedded_known", "fingerprints"]

BINS = 40
REACH = 2.6
"""In units of the cube root of the volume per atom: three or four shells of neighbours."""
SMEAR = 0.08


class Near(NamedTuple):
    """The nearest known crystal.

    Args:
        name, formula: its own.
        distance: half the L1 distance of the shares of elements plus the root mean square difference of fingerprints: 0 for the
            same crystal, 1 and more where no element is shared.
        structure: the second part alone.
        same_formula: number of known crystals of the same reduced formula.
    """

    name: str
    formula: str
    distance: float
    structure: float
    same_formula: int


def fingerprints(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    """Radial distribution functions over scaled distances, ``(B, BINS)``; about 1 where atoms are as dense as on average."""
    return np.stack([_fingerprint(crystal) for crystal in crystals]) if crystals else np.zeros((0, BINS))


def _fingerprint(crystal: Crystal) -> NDArray[np.float64]:
    from pymatgen.core import Lattice
    from pymatgen.optimization.neighbors import find_points_in_spheres

    unit = (crystal.volume / len(crystal)) ** (1 / 3)
    edges = np.linspace(0, REACH, BINS + 1)
    # A nearly flat cell has very many images within reach; its fingerprint says nothing, so it gets none.
    heights = crystal.volume / np.linalg.norm(
        np.cross(np.roll(crystal.cell, -1, 0), np.roll(crystal.cell, -2, 0)), axis=1
    )
    if not np.isfinite(heights).all() or np.prod(np.ceil(2 * (REACH + 0.3) * unit / heights) + 1) * len(crystal) > 2e5:
        return np.zeros(BINS)
    cell = np.ascontiguousarray(crystal.cell)
    place = np.ascontiguousarray(crystal.frac @ cell)
    *_, length = find_points_in_spheres(
        place,
        place,
        r=float((REACH + 0.3) * unit),
        pbc=np.array([1, 1, 1], dtype=np.int64),
        lattice=np.ascontiguousarray(Lattice(cell).matrix),
    )
    scaled = length[length > 1e-8] / unit
    middle = 0.5 * (edges[1:] + edges[:-1])
    weight = np.exp(-0.5 * ((middle - scaled[:, None]) / SMEAR) ** 2).sum(0) / (SMEAR * np.sqrt(2 * np.pi))
    return weight / (len(crystal) * 4 * np.pi * np.maximum(middle, 0.2) ** 2)


def shares(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    """Shares of the elements ``(B, ELEMENTS)``."""
    found = np.zeros((len(crystals), ELEMENTS))
    for row, crystal in zip(found, crystals, strict=True):
        np.add.at(row, crystal.species, 1 / len(crystal))
    return found


@dataclass(frozen=True)
class Known:
    """Known crystals, for :meth:`nearest`.

    Args:
        names, formulas: of each.
        prints: ``(K, BINS)``.
        elements: ``(K, ELEMENTS)`` shares.
    """

    names: list[str]
    formulas: list[str]
    prints: NDArray[Any]
    elements: NDArray[Any]

    @classmethod
    def of(cls, crystals: Sequence[Crystal]) -> "Known":
        """From crystals."""
        return cls([c.name for c in crystals], [c.formula for c in crystals], fingerprints(crystals), shares(crystals))

    def nearest(self, crystals: Sequence[Crystal], chunk: int = 64) -> list[Near]:
        """The nearest known crystal of each."""
        if not self.names:
            raise ValueError("no known crystals to compare with")
        count: dict[str, int] = {}
        for formula in self.formulas:
            count[formula] = count.get(formula, 0) + 1
        found = []
        for start in range(0, len(crystals), chunk):
            some = crystals[start : start + chunk]
            print_gap = np.sqrt(((fingerprints(some)[:, None] - self.prints[None]) ** 2).mean(-1))
            gap = print_gap + 0.5 * np.abs(shares(some)[:, None] - self.elements[None]).sum(-1)
            for row, crystal in enumerate(some):
                i = int(gap[row].argmin())
                same = count.get(crystal.formula, 0)
                found.append(Near(self.names[i], self.formulas[i], float(gap[row, i]), float(print_gap[row, i]), same))
        return found

    def save(self, path: str | Path) -> Path:
        """Write them as a compact table: shares from the formulas, fingerprints in 8 bits."""
        code = np.clip(np.rint(self.prints * 16), 0, 255).astype(np.uint8)
        with atomic(path) as fresh, fresh.open("wb") as file:
            np.savez_compressed(file, names=np.array(self.names), formulas=np.array(self.formulas), prints=code)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Known":
        """Read what :meth:`save` wrote."""
        from manifoldflow.tasks.crystals.structure import parse_formula

        with open_npz(path) as file:
            names, formulas, prints = (file[key] for key in ("names", "formulas", "prints"))
        elements = np.zeros((len(names), ELEMENTS))
        for row, formula in zip(elements, formulas.tolist(), strict=True):
            for number, count in parse_formula(formula):
                row[number] = count
        elements /= elements.sum(1, keepdims=True)
        return cls(names.tolist(), formulas.tolist(), prints.astype(np.float64) / 16, elements)


@cache
def embedded_known(name: str) -> Known | None:
    """The training structures of an embedded checkpoint's data, such as ``"mp_3dsc_20"``; None where there is no table."""
    path = data_path(f"crystals/known_{name}.npz")
    return Known.load(path) if path.is_file() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a table of known crystals."""
    import argparse

    from manifoldflow.tasks.crystals.splits import split_by_formula
    from manifoldflow.tasks.crystals.store import CrystalDataset

    parser = argparse.ArgumentParser(prog="python -m manifoldflow.tasks.crystals.nearest", description=main.__doc__)
    parser.add_argument("--data", required=True, help="file of structures; those of its training part are kept")
    parser.add_argument("--out", required=True, help="table to write")
    given = parser.parse_args(arguments)
    known = CrystalDataset(given.data)
    rows = split_by_formula(known.formulas, val=0.1, test=0.2).train.tolist()
    path = Known.of([known[i] for i in rows]).save(given.out)
    print(f"wrote {len(rows)} crystals to {path} ({path.stat().st_size / 1e3:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
