"""CHGNet energies of crystals and of the hull of a training set: a surrogate of density functional theory, and named so.

The hull is that of CHGNet energies of known structures, so both sides of a comparison come from one potential. The energy above
it is a linear programme for each crystal: the cheapest mixture of known structures with the same composition.
"""

import csv
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from manifoldflow.checkpoint import data_path
from manifoldflow.files import open_text
from manifoldflow.tasks.crystals.elements import ELEMENTS
from manifoldflow.tasks.crystals.structure import Crystal, is_too_dense, parse_formula

__all__ = ["SURROGATE", "Agreement", "Hull", "agreement", "embedded_hull", "single_points"]

SURROGATE = "CHGNet 0.3.0, a learned surrogate of DFT"
"""How energies are to be called wherever they are printed."""
TABLE = "crystals/chgnet_energies.csv"
STABLE = 0.1
"""Energy above the hull (eV per atom) up to which a crystal counts as stable in SUN, as in MatterGen."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without the prints and warnings of the libraries below."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@cache
def _potential() -> Any:
    with quiet():
        try:
            from chgnet.model import CHGNet
        except ImportError as error:
            raise ImportError(f"energies need chgnet ({error}): pip install 'manifoldflow[crystals]'") from None
        return CHGNet.load(use_device="cpu", verbose=False)


def single_points(
    crystals: Sequence[Crystal], batch: int = 16, progress: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """CHGNet energies in eV per atom, ``(B,)``, in batches of like size; NaN where it knows none (an atom without neighbours,
    atoms packed denser than any solid).

    Args:
        crystals: of any sizes.
        batch: crystals at once.
        progress: called with the number of those done.
    """
    potential = _potential()
    energies = np.full(len(crystals), np.nan)
    order = np.argsort([len(c) for c in crystals], kind="stable")
    for start in range(0, len(order), batch):
        rows, graphs = [], []
        for i in order[start : start + batch]:
            if is_too_dense(crystals[i]):
                continue
            with quiet():
                try:
                    graph = potential.graph_converter(crystals[i].to_pymatgen())
                except Exception:  # an isolated atom, or a cell that is none
                    continue
            if graph is not None and len(graph.atom_graph):
                rows.append(i)
                graphs.append(graph)
        if graphs:
            # Without a graph: what forces would need is gigabytes of a few hundred crystals.
            with quiet(), torch.no_grad():
                found = potential.predict_graph(graphs, task="e", batch_size=batch)
            energies[rows] = [float(one["e"]) for one in ([found] if isinstance(found, dict) else found)]
        if progress is not None:
            progress(min(start + batch, len(order)))
    return energies


@dataclass(frozen=True)
class Hull:
    """The lower convex hull of known energies over compositions.

    Args:
        fractions: ``(K, ELEMENTS)`` shares of the elements of each known structure.
        energies: ``(K,)`` eV per atom.
    """

    fractions: NDArray[np.float64]
    energies: NDArray[np.float64]

    @classmethod
    def of(cls, compositions: Sequence[tuple[tuple[int, int], ...]], energies: Any) -> "Hull":
        """From ``(species, count)`` of known structures and their energies; those without an energy are left out, and of
        every composition the lowest stays."""
        values = np.asarray(energies, float)
        best: dict[tuple[tuple[int, int], ...], float] = {}
        for composition, value in zip(compositions, values, strict=True):
            whole = int(np.gcd.reduce([count for _, count in composition]))
            key = tuple((number, count // whole) for number, count in composition)
            if np.isfinite(value) and value < best.get(key, np.inf):
                best[key] = float(value)
        fractions = np.zeros((len(best), ELEMENTS))
        for row, composition in enumerate(best):
            for number, count in composition:
                fractions[row, number] = count
        fractions /= fractions.sum(1, keepdims=True)
        return cls(fractions, np.array(list(best.values())))

    def at(self, composition: tuple[tuple[int, int], ...]) -> float:
        """The hull's energy at a composition in eV per atom; NaN where no mixture of known structures has that composition."""
        from scipy.optimize import linprog

        wanted = np.zeros(ELEMENTS)
        for number, count in composition:
            wanted[number] = count
        wanted /= wanted.sum()
        present = wanted > 0
        usable = ~(self.fractions[:, ~present] > 0).any(1)
        if not usable.any():
            return float("nan")
        found = linprog(
            self.energies[usable], A_eq=self.fractions[usable][:, present].T, b_eq=wanted[present], method="highs"
        )
        return float(found.fun) if found.success else float("nan")

    def above(self, crystals: Sequence[Crystal], energies: Any) -> NDArray[np.float64]:
        """Energies above the hull ``(B,)`` in eV per atom, below it negative; NaN where there is no hull, or no energy."""
        known: dict[str, float] = {}
        for crystal in crystals:
            if crystal.formula not in known:
                known[crystal.formula] = self.at(crystal.composition)
        return np.asarray(energies, float) - np.array([known[crystal.formula] for crystal in crystals])


@cache
def embedded_hull(parts: tuple[str, ...] = ("train", "val", "test", "mp_40")) -> Hull:
    """The hull of known structures, from a table that ships with the library (:func:`main` makes it).

    It knows about 3,500 structures, not all that compete: what lies above it is above the true hull, too, what lies on it or
    below may not be stable.

    Args:
        parts: ``"train"``, ``"val"``, ``"test"`` of mp_3dsc_20 (:func:`manifoldflow.tasks.crystals.splits.split_by_formula`, test
            0.2, val 0.1) and ``"mp_40"``.
    """
    rows = [row for row in read_energies() if row.part in parts]
    return Hull.of([parse_formula(row.formula) for row in rows], [row.energy for row in rows])


class Known(NamedTuple):
    """A row of the embedded table: reduced formula, CHGNet energy of one structure (eV per atom), part of the split."""

    formula: str
    energy: float
    part: str


def read_energies() -> list[Known]:
    """The embedded table: CHGNet energies of the structures of mp_3dsc_20 and mp_40, unrelaxed."""
    with open_text(data_path(TABLE)) as file:
        return [Known(row["formula"], float(row["energy"]), row["part"]) for row in csv.DictReader(file)]


class Agreement(NamedTuple):
    """How a surrogate's energies above the hull go with labels.

    Args:
        crystals: with both.
        pearson, spearman: correlation coefficients.
        error: mean absolute difference, eV per atom.
        stable: share on which both agree whether the crystal lies within :data:`STABLE` of the hull.
    """

    crystals: int
    pearson: float
    spearman: float
    error: float
    stable: float


def agreement(values: Any, labels: Any) -> Agreement:
    """Compare energies above the hull with labels, NaN left out.

    Raises:
        ValueError: fewer than three crystals have both.
    """
    from scipy.stats import pearsonr, spearmanr

    x, y = np.asarray(values, float), np.asarray(labels, float)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        raise ValueError(
            f"{int(both.sum())} crystals have an energy and a label; three are the least for a correlation"
        )
    x, y = x[both], y[both]
    return Agreement(
        int(both.sum()),
        float(pearsonr(x, y)[0]),
        float(spearmanr(x, y)[0]),
        float(np.abs(x - y).mean()),
        float(((x <= STABLE) == (y <= STABLE)).mean()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the embedded table of energies anew."""
    import argparse

    from rich.progress import track

    from manifoldflow.tasks.common.files import write_csv
    from manifoldflow.tasks.crystals.splits import split_by_formula
    from manifoldflow.tasks.crystals.store import CrystalDataset

    parser = argparse.ArgumentParser(prog="python -m manifoldflow.tasks.crystals.energies", description=main.__doc__)
    parser.add_argument("--data", required=True, help="file of structures, split by formula")
    parser.add_argument("--also", nargs="*", default=[], help="further files; each is a part of its name")
    parser.add_argument("--out", default=str(data_path(TABLE)), help="table to write")
    given = parser.parse_args(arguments)
    rows = []
    for source in (given.data, *given.also):
        known = CrystalDataset(source)
        part = np.full(len(known), Path(source).name.partition(".")[0], dtype=object)
        if source == given.data:
            for name, some in split_by_formula(known.formulas, val=0.1, test=0.2)._asdict().items():
                part[some.numpy()] = name
        energies = np.concatenate([single_points(known[i : i + 64]) for i in track(range(0, len(known), 64))])
        table = zip(known.formulas, energies, part, strict=True)
        rows += [(formula, f"{energy:.4f}", name) for formula, energy, name in table if np.isfinite(energy)]
    write_csv(given.out, ("formula", "energy", "part"), sorted(rows))
    print(f"wrote {len(rows)} energies to {given.out} ({os.path.getsize(given.out) / 1e3:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
