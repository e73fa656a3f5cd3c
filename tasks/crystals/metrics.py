"""Measures of crystals: validity, distances between distributions, coverage, uniqueness, novelty, space groups.

Structure prediction is measured in :mod:`manifoldflow.tasks.crystals.matching`; here are the measures of sets.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from manifoldflow.tasks.crystals.elements import (
    COVALENT,
    ELECTRONEGATIVITY,
    ELEMENTS,
    SYMBOLS,
    period_and_group,
)
from manifoldflow.tasks.crystals.matching import PUBLISHED, Matcher, in_parallel, match_pairs
from manifoldflow.tasks.crystals.structure import Crystal, collate, contacts, densities, shortest_distances, volumes

CLOSEST = 0.5
"""Angstrom; the published criterion of structural validity: no two atoms are nearer."""
LEAST_VOLUME = 0.1
"""Cubic angstrom, of the cell; the other half of that criterion."""


class Geometry(NamedTuple):
    """Numbers of each crystal, ``(B,)``.

    Args:
        closest: shortest distance between atoms, images among them; angstrom.
        contact: smallest distance over the sum of covalent radii.
        volume: of the cell, cubic angstrom.
        density: g/cm^3.
    """

    closest: NDArray[np.float64]
    contact: NDArray[np.float64]
    volume: NDArray[np.float64]
    density: NDArray[np.float64]

    @property
    def is_valid(self) -> NDArray[np.bool_]:
        """The published structural validity."""
        return np.asarray((self.closest >= CLOSEST) & (self.volume >= LEAST_VOLUME), bool)


def geometry(crystals: Sequence[Crystal], batch: int = 128) -> Geometry:
    """Distances, volumes and densities of crystals, computed in batches of like size."""
    order = sorted(range(len(crystals)), key=lambda i: len(crystals[i]))
    columns = np.full((4, len(crystals)), np.nan)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        padded = collate((crystals[i] for i in rows), dtype=torch.float64)
        parts = (shortest_distances(padded), contacts(padded), volumes(padded.lattice), densities(padded))
        for k, part in enumerate(parts):
            columns[k, rows] = part.numpy()
    return Geometry(*columns)


class Composition(NamedTuple):
    """What charges say of a formula.

    Args:
        is_valid: it can be neutral with usual oxidation states, anions being the more electronegative, or all are metals,
            or it is one element (the published criterion, by SMACT).
        is_known: False if an element has no oxidation states in the table (noble gases), so that nothing can be said.
        reason: of an invalid one, in words.
    """

    is_valid: bool
    is_known: bool
    reason: str


COMBINATIONS = 500_000
"""Of oxidation states that are tried, at most: half a second. Ten elements have tens of millions."""


@cache
def composition_of(formula: str) -> Composition:
    """:class:`Composition` of a reduced formula.

    Charge balance is a warning and no error: there are compounds that it calls impossible.

    Raises:
        ImportError: smact is not installed.
    """
    from smact import Element as SmactElement
    from smact.screening import pauling_test

    from manifoldflow.tasks.crystals.structure import parse_formula

    parts = parse_formula(formula)
    symbols = [SYMBOLS[species] for species, _ in parts]
    counts = [count for _, count in parts]
    if len(symbols) == 1:
        return Composition(True, True, "")
    elements = [SmactElement(symbol) for symbol in symbols]
    states = [list(element.oxidation_states or ()) for element in elements]
    if unknown := [symbol for symbol, some in zip(symbols, states, strict=True) if not some]:
        return Composition(False, False, f"no oxidation states are known of {', '.join(unknown)}")
    if all(_is_metal(symbol) for symbol in symbols):
        return Composition(True, True, "")
    eager = [element.pauling_eneg for element in elements]
    if math.prod(len(some) for some in states) > COMBINATIONS:
        return Composition(False, False, "too many combinations of oxidation states to try")
    is_neutral = False
    for charges in itertools.product(*states):
        if sum(q * n for q, n in zip(charges, counts, strict=True)):
            continue
        is_neutral = True
        if pauling_test(list(charges), eager):
            return Composition(True, True, "")
    if is_neutral:
        return Composition(False, True, "neutral only with cations that are more electronegative than anions")
    return Composition(False, True, "no usual oxidation states add up to zero")


def _is_metal(symbol: str) -> bool:
    import smact

    return symbol in smact.metals


def wasserstein(a: Any, b: Any) -> float:
    """The distance between two samples of one number: the mean shift of sorted values."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a, b)) if len(a) and len(b) else float("nan")


# --- fingerprints -----------------------------------------------------------------------------------------------------


def structure_fingerprints(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    """What surrounds the atoms of each crystal, ``(B, 50)``.

    Ours, not CrystalNN of matminer (which is no dependency, and which its authors' cut-offs are for): around every atom the
    number of atoms by distance in units of the cube root of the volume per atom, smoothed with a Gaussian; mean over atoms of
    the square root, and its deviation. It does not know which elements there are, like the published one.
    """
    return np.array([_around(crystal) for crystal in crystals]).reshape(-1, 50)


def _around(crystal: Crystal, reach: float = 2.6) -> NDArray[np.float64]:
    grid = np.linspace(0.5, reach, 25)
    scale = (crystal.volume / len(crystal)) ** (1 / 3)
    cell = crystal.cell / scale
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    most = np.minimum(np.ceil((reach + 0.4) / height).astype(int) + 1, 12)
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in most))), float)
    near = np.zeros((len(crystal), len(grid)))
    for i in range(len(crystal)):
        between = crystal.frac[i] - crystal.frac
        between -= np.rint(between)
        far = np.linalg.norm((between[:, None] + shifts) @ cell, axis=-1).ravel()
        far = far[(far > 1e-6) & (far < reach + 0.4)]
        near[i] = np.exp(-0.5 * ((far[:, None] - grid) / 0.08) ** 2).sum(0)
    root = np.sqrt(near)
    return np.concatenate([root.mean(0), root.std(0)])


@cache
def _element_table() -> NDArray[np.float64]:
    period, group = period_and_group()
    table = np.stack(
        [period, group, np.nan_to_num(ELECTRONEGATIVITY, nan=0.0), COVALENT, np.arange(1, ELEMENTS + 1)], 1
    )
    return (table - table.mean(0)) / table.std(0)


def composition_fingerprints(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    """Mean, deviation, least and greatest of period, group, electronegativity, radius and atomic number over the atoms."""
    rows = []
    for crystal in crystals:
        values = _element_table()[crystal.species]
        rows.append(np.concatenate([values.mean(0), values.std(0), values.min(0), values.max(0)]))
    return np.array(rows).reshape(len(rows), -1)


class Coverage(NamedTuple):
    """How two sets cover each other, shares.

    Args:
        recall: of the reference, near some sample.
        precision: of the samples, near some of the reference.
        structure_cut, composition_cut: the distances that count as near.
    """

    recall: float
    precision: float
    structure_cut: float
    composition_cut: float


def coverage(
    samples: Sequence[Crystal], reference: Sequence[Crystal], cuts: tuple[float, float] | None = None
) -> Coverage:
    """Coverage by :func:`structure_fingerprints` and :func:`composition_fingerprints`, as CDVAE defines it: both must be near.

    Args:
        samples, reference: two sets.
        cuts: distances of structure and composition that count as near. If absent, those within which nine of ten crystals
            of the reference have another of the reference, so that a second draw of real data has a coverage of about 0.9.
    """
    if not samples or not reference:
        return Coverage(float("nan"), float("nan"), float("nan"), float("nan"))
    from scipy.spatial.distance import cdist

    parts = [(structure_fingerprints(c), composition_fingerprints(c)) for c in (samples, reference)]
    if cuts is None:
        own = [cdist(part, part) for part in parts[1]]
        for distance in own:
            np.fill_diagonal(distance, np.inf)
        cuts = tuple(float(np.quantile(d.min(1), 0.9)) if len(d) > 1 else 0.0 for d in own)  # type: ignore[assignment]
        assert cuts is not None
    near = [cdist(a, b) <= cut for a, b, cut in zip(parts[0], parts[1], cuts, strict=True)]
    both = near[0] & near[1]
    return Coverage(float(both.any(0).mean()), float(both.any(1).mean()), *cuts)


def first_of_kind(
    crystals: Sequence[Crystal], matcher: Matcher = PUBLISHED, *, workers: int = 0, timeout: float = 30.0
) -> NDArray[np.int64]:
    """For every crystal the number of the first one before it that it matches, or its own: unique are those with their own."""
    first = np.arange(len(crystals))
    groups: dict[str, list[int]] = {}
    for i, crystal in enumerate(crystals):
        groups.setdefault(crystal.formula, []).append(i)
    pairs = [(i, j) for rows in groups.values() for i, j in itertools.combinations(rows, 2)]
    found = match_pairs([(crystals[i], crystals[j]) for i, j in pairs], (matcher,), workers=workers, timeout=timeout)
    for (i, j), rms in zip(pairs, found.rms[:, 0], strict=True):
        if not np.isnan(rms) and first[i] == i:
            first[j] = min(first[j], i)
    return first


def known_of(
    crystals: Sequence[Crystal],
    known: Sequence[Crystal],
    matcher: Matcher = PUBLISHED,
    *,
    workers: int = 0,
    timeout: float = 30.0,
) -> list[int | None]:
    """For every crystal a row of known ones that it matches (the nearest), or None: novel are those without."""
    formulas: list[str] = list(known.formulas) if hasattr(known, "formulas") else [c.formula for c in known]
    rows: dict[str, list[int]] = {}
    for i, formula in enumerate(formulas):
        rows.setdefault(formula, []).append(i)
    pairs = [(i, j) for i, crystal in enumerate(crystals) for j in rows.get(crystal.formula, [])]
    found = match_pairs([(crystals[i], known[j]) for i, j in pairs], (matcher,), workers=workers, timeout=timeout)
    best: list[tuple[float, int] | None] = [None] * len(crystals)
    for (i, j), rms in zip(pairs, found.rms[:, 0].tolist(), strict=True):
        now = best[i]
        if rms == rms and (now is None or rms < now[0]):
            best[i] = (rms, j)
    return [item[1] if item is not None else None for item in best]


def _groups(crystals: list[Crystal], tolerance: float) -> list[tuple[int, str]]:
    from manifoldflow.tasks.crystals.writing import symmetry_of

    found = [symmetry_of(crystal, tolerance) for crystal in crystals]
    return [(symmetry.number, symmetry.symbol) for symmetry in found]


def space_groups(crystals: Sequence[Crystal], tolerance: float = 0.1, *, workers: int = 1) -> list[tuple[int, str]]:
    """Number and symbol of the space group of every crystal within a tolerance in angstrom (spglib)."""
    return in_parallel(_groups, list(crystals), tolerance, workers=workers, chunk=64, missing=(0, "?"))


CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")


def crystal_system(number: int) -> str:
    """Of a space group's number."""
    ends = (2, 15, 74, 142, 167, 194, 230)
    return CRYSTAL_SYSTEMS[int(np.searchsorted(ends, number))]


def histogram(groups: Sequence[tuple[int, str]]) -> list[tuple[int, str, int]]:
    """Number, symbol and count of the space groups, most frequent first."""
    return [(number, symbol, count) for (number, symbol), count in Counter(groups).most_common()]
