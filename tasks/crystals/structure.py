"""One crystal as arrays, a batch of crystals as tensors, and their geometry: cells, images, contacts.

The lattice of a batch is the metric tensor :math:`G_{ij} = a_i \\cdot a_j` of the cell vectors, a point of ``SPD(3)``: it does
not change when the crystal turns, and no step on that space can leave the valid cells. Distances need nothing else:
:math:`|d|^2 = d^T G d` for a difference d of fractional coordinates.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifoldflow.tasks.crystals.elements import (
    ELECTRONEGATIVITY,
    ELEMENTS,
    SYMBOLS,
    covalent_radii,
    masses,
    species_number,
    symbols_of,
)

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True)
class Crystal:
    """One crystal.

    Args:
        species: ``(N,)`` int64, atomic number minus one.
        frac: ``(N, 3)`` float64, fractional coordinates in [0, 1).
        cell: ``(3, 3)`` float64, cell vectors as rows, angstrom; right-handed once :meth:`reduced` or :meth:`standard`.
        name: unique in a set.
        labels: what the file said besides, such as ``{"energy_above_hull": 0.1}``; numbers or text.
    """

    species: NDArray[np.int64]
    frac: NDArray[np.float64]
    cell: NDArray[np.float64]
    name: str = ""
    labels: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.species)

    @property
    def volume(self) -> float:
        """In cubic angstrom."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def metric(self) -> NDArray[np.float64]:
        """``(3, 3)``, inner products of the cell vectors."""
        return self.cell @ self.cell.T

    @property
    def parameters(self) -> tuple[float, ...]:
        """a, b, c in angstrom, alpha, beta, gamma in degrees."""
        return cell_parameters(self.cell)

    @property
    def composition(self) -> tuple[tuple[int, int], ...]:
        """``(species, count)`` of the cell, sorted by species."""
        return tuple(sorted(Counter(self.species.tolist()).items()))

    @property
    def units(self) -> int:
        """Formula units in the cell, Z."""
        return gcd(*(count for _, count in self.composition))

    @property
    def formula(self) -> str:
        """Reduced formula by growing electronegativity, such as ``SrTiO3``: equal for polymorphs and supercells."""
        return formula_of(self.composition, self.units)

    @property
    def anonymous(self) -> tuple[int, ...]:
        """Counts of the reduced formula, sorted: ``(1, 1, 3)`` of every ABX3."""
        return tuple(sorted(count // self.units for _, count in self.composition))

    def wrapped(self) -> "Crystal":
        """Coordinates in [0, 1)."""
        return replace(self, frac=wrap(self.frac))

    def right_handed(self) -> "Crystal":
        """The same crystal with right-handed cell vectors: all three turned round where they are not, coordinates with them."""
        if np.linalg.det(self.cell) > 0:
            return self
        return replace(self, cell=-self.cell, frac=wrap(-self.frac))

    def standard(self) -> "Crystal":
        """The same crystal turned so that a lies along x and b in the xy plane; cell vectors right-handed."""
        c = self.right_handed()
        return replace(c, cell=np.asarray(np.linalg.cholesky(c.metric), np.float64))

    def reduced(self) -> "Crystal":
        """The same crystal in its Niggli cell, in standard orientation.

        Raises:
            ValueError: the cell cannot be reduced (it has next to no volume).
        """
        import spglib

        c = self.right_handed()
        found = spglib.niggli_reduce(c.cell, eps=1e-5)
        if found is None:
            raise ValueError("the cell cannot be reduced")
        steps = np.rint(found @ np.linalg.inv(c.cell))  # whole numbers: the new vectors in the old ones
        if round(abs(float(np.linalg.det(steps)))) != 1:
            raise ValueError("the cell cannot be reduced")
        frac = c.frac @ np.linalg.inv(steps)
        return replace(c, cell=steps @ c.cell, frac=wrap(frac)).standard()

    def primitive(self, tolerance: float = 1e-3) -> "Crystal":
        """The primitive cell (spglib, tolerance in angstrom), Niggli-reduced; itself reduced where spglib finds none."""
        import spglib

        parts: Any = (self.cell, self.frac, self.species + 1)
        found = spglib.find_primitive(parts, symprec=tolerance)
        if found is None or len(found[2]) == len(self):
            return self.reduced()
        cell, frac, numbers = found
        return replace(
            self, cell=np.asarray(cell), frac=wrap(np.asarray(frac)), species=np.asarray(numbers, np.int64) - 1
        ).reduced()

    def to_pymatgen(self) -> "Structure":
        """As a pymatgen Structure."""
        from pymatgen.core import Lattice, Structure

        return Structure(Lattice(self.cell), symbols_of(self.species), self.frac)

    @staticmethod
    def from_pymatgen(structure: "Structure", name: str = "", labels: dict[str, Any] | None = None) -> "Crystal":
        """From an ordered pymatgen Structure.

        Raises:
            ValueError: a site is shared, or no element.
        """
        if not structure.is_ordered:
            raise ValueError("sites are shared by several species; only ordered crystals have one species a site")
        species = [species_number(site.specie.symbol) for site in structure]
        cell = np.asarray(structure.lattice.matrix, float)
        return Crystal(
            np.array(species, np.int64), wrap(np.asarray(structure.frac_coords, float)), cell, name, labels or {}
        )

    def to_ase(self) -> Any:
        """As ASE Atoms, periodic."""
        from ase import Atoms

        return Atoms(numbers=self.species + 1, scaled_positions=self.frac, cell=self.cell, pbc=True)


class Crystals(NamedTuple):
    """A padded batch: what flows and metrics are given.

    Args:
        species: ``(B, N)`` int64, atomic number minus one: points of ``Tokens(ELEMENTS)``; 0 in padding.
        frac: ``(B, N, 3)`` fractional coordinates: points of ``Torus(3)``; 0 in padding.
        lattice: ``(B, 3, 3)`` metric tensors, square angstrom: points of ``SPD(3)``, one per crystal.
        mask: ``(B, N)`` bool, True for atoms.
    """

    species: Tensor
    frac: Tensor
    lattice: Tensor
    mask: Tensor

    @property
    def state(self) -> dict[str, Tensor]:
        """The fields by name, as a flow takes them; the mask goes beside them."""
        return {"species": self.species, "frac": self.frac, "lattice": self.lattice}

    def to(self, *args: Any) -> "Crystals":
        """On another device, or coordinates and lattices of another dtype."""
        if args and isinstance(args[0], torch.dtype):
            return self._replace(frac=self.frac.to(args[0]), lattice=self.lattice.to(args[0]))
        return Crystals(*(part.to(*args) for part in self))

    def rows(self, rows: Any) -> "Crystals":
        """Some crystals of the batch."""
        return Crystals(*(part[rows] for part in self))

    def crystal(self, i: int, name: str = "", labels: dict[str, Any] | None = None) -> Crystal:
        """One of them, in standard orientation.

        Raises:
            ValueError: its lattice is no metric tensor.
        """
        return self.rows(slice(i, i + 1)).crystals([name], [labels or {}])[0]

    def crystals(
        self, names: Sequence[str] | None = None, labels: Sequence[dict[str, Any]] | None = None
    ) -> list[Crystal]:
        """All of them, in standard orientation.

        Raises:
            ValueError: a lattice is no metric tensor (not positive definite); says which.
        """
        metric = self.lattice.detach().double().cpu()
        cells, faults = torch.linalg.cholesky_ex(0.5 * (metric + metric.mT))
        is_bad = (faults != 0) | ~cells.isfinite().all((-1, -2))
        if is_bad.any():
            raise ValueError(
                f"crystal {int(is_bad.nonzero()[0])}: its lattice is not positive definite, so it has no cell"
            )
        species, frac, mask = (
            self.species.cpu().numpy(),
            self.frac.detach().double().cpu().numpy(),
            self.mask.cpu().numpy(),
        )
        return [
            Crystal(
                species[i][mask[i]].astype(np.int64),
                wrap(frac[i][mask[i]]),
                cells[i].numpy(),
                names[i] if names is not None else "",
                dict(labels[i]) if labels is not None else {},
            )
            for i in range(len(cells))
        ]


def collate(crystals: Iterable[Crystal], size: int | None = None, dtype: torch.dtype = torch.float32) -> Crystals:
    """Pad crystals to one batch.

    Args:
        crystals: at least one.
        size: number N of atoms to pad to; that of the largest crystal if absent.
        dtype: of coordinates and lattices.

    Raises:
        ValueError: none, or one has more atoms than ``size``.
    """
    some = list(crystals)
    if not some:
        raise ValueError("no crystals to make a batch of")
    largest = max(map(len, some))
    if size is not None and largest > size:
        raise ValueError(f"a crystal has {largest} atoms, more than {size}")
    size = size or largest
    count = torch.tensor([len(c) for c in some])
    mask = torch.arange(size) < count[:, None]
    species = torch.zeros(len(some), size, dtype=torch.int64)
    frac = torch.zeros(len(some), size, 3, dtype=torch.float64)
    species[mask] = torch.from_numpy(np.concatenate([c.species for c in some]))
    frac[mask] = torch.from_numpy(np.concatenate([c.frac for c in some]))
    lattice = torch.from_numpy(np.stack([c.metric for c in some]))
    return Crystals(species, frac.to(dtype), lattice.to(dtype), mask)


def wrap(frac: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fractional coordinates in [0, 1), also where -1e-17 would be rounded to 1."""
    inside = frac - np.floor(frac)
    return np.where(inside >= 1, 0.0, inside)


def cell_parameters(cell: NDArray[np.float64]) -> tuple[float, ...]:
    """a, b, c in angstrom and alpha, beta, gamma in degrees, from cell vectors (rows)."""
    length = np.linalg.norm(cell, axis=1)
    pairs = ((1, 2), (0, 2), (0, 1))
    angles = [np.arctan2(np.linalg.norm(np.cross(cell[i], cell[j])), cell[i] @ cell[j]) for i, j in pairs]
    return (*map(float, length), *(float(np.degrees(a)) for a in angles))


def cell_vectors(a: float, b: float, c: float, alpha: float, beta: float, gamma: float) -> NDArray[np.float64]:
    """Cell vectors (rows) in standard orientation from lengths in angstrom and angles in degrees.

    Raises:
        ValueError: a length is not positive, or no cell has these angles: it would have no volume.
    """
    if not all(np.isfinite(v) for v in (a, b, c, alpha, beta, gamma)):
        raise ValueError(f"cell {a:g} {b:g} {c:g} {alpha:g} {beta:g} {gamma:g}: not finite")
    if min(a, b, c) <= 0:
        raise ValueError(f"the cell has no volume: lengths {a:g}, {b:g}, {c:g} must be positive")
    cosines = [0.0 if angle == 90 else float(np.cos(np.radians(angle))) for angle in (alpha, beta, gamma)]
    if gamma == 120:
        cosines[2] = -0.5
    ca, cb, cg = cosines
    metric = np.array(
        [[a * a, a * b * cg, a * c * cb], [a * b * cg, b * b, b * c * ca], [a * c * cb, b * c * ca, c * c]]
    )
    share = 1 - ca * ca - cb * cb - cg * cg + 2 * ca * cb * cg  # the volume over a b c, squared
    if not (0 < min(alpha, beta, gamma) and max(alpha, beta, gamma) < 180 and share > 1e-10):
        raise ValueError(f"the cell has no volume: no cell has the angles {alpha:g}, {beta:g}, {gamma:g}")
    return np.linalg.cholesky(metric)


def formula_of(composition: Iterable[tuple[int, int]], units: int = 1) -> str:
    """A formula by growing electronegativity (unknown ones last, then by symbol), counts divided by ``units``."""

    def rank(item: tuple[int, int]) -> tuple[float, str]:
        value = ELECTRONEGATIVITY[item[0]]
        return (float("inf") if np.isnan(value) else float(value), SYMBOLS[item[0]])

    parts = [(SYMBOLS[number], count // units) for number, count in sorted(composition, key=rank)]
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in parts)


def parse_formula(text: str) -> tuple[tuple[int, int], ...]:
    """``(species, count)`` of a formula such as ``SrTiO3`` or ``Ca(OH)2``, sorted by species.

    Raises:
        ValueError: not a formula, an unknown element, or a count that is not whole.
    """
    stack: list[Counter[int]] = [Counter()]
    opened = {"(": ")", "[": "]", "{": "}"}
    closing: list[str] = []
    at, compact = 0, "".join(text.split())

    def count_at(at: int) -> tuple[int, int]:
        end = at
        while end < len(compact) and (compact[end].isdigit() or compact[end] == "."):
            end += 1
        word = compact[at:end]
        if word and not (word.isascii() and word.isdigit() and 0 < int(word) < 100_000):
            raise ValueError(f"formula {text!r}: the count {word!r} is no whole number of at least 1")
        return (int(word) if word else 1), end

    while at < len(compact):
        letter = compact[at]
        if letter in opened:
            stack.append(Counter())
            closing.append(opened[letter])
            at += 1
        elif closing and letter == closing[-1]:
            closing.pop()
            inner = stack.pop()
            number, at = count_at(at + 1)
            for species, count in inner.items():
                stack[-1][species] += count * number
        elif letter.isascii() and letter.isupper():
            end = at + 1 + (at + 1 < len(compact) and compact[at + 1].isascii() and compact[at + 1].islower())
            try:
                species = species_number(compact[at:end])
            except ValueError as error:
                raise ValueError(f"formula {text!r}: {error}") from None
            number, at = count_at(end)
            stack[-1][species] += number
        else:
            raise ValueError(
                f"formula {text!r}: cannot read it from {compact[at:]!r} on; write it like SrTiO3 or Ca(OH)2"
            )
    if closing or not stack[0]:
        raise ValueError(f"formula {text!r}: {'a bracket stays open' if closing else 'it names no element'}")
    return tuple(sorted(stack[0].items()))


# --- geometry of a batch ----------------------------------------------------------------------------------------------


def cells_of(lattice: Tensor) -> Tensor:
    """Cell vectors (rows) in standard orientation from metric tensors ``(..., 3, 3)``; right-handed."""
    return torch.linalg.cholesky_ex(lattice)[0]


def volumes(lattice: Tensor) -> Tensor:
    """Volumes ``(...)`` of metric tensors ``(..., 3, 3)``, in cubic angstrom."""
    return torch.linalg.det(lattice).clamp_min(0).sqrt()


_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
_OTHERS = ((2, 3), (1, 3), (1, 2), (0, 3), (0, 2), (0, 1))


def _flip(i: int, j: int) -> list[list[float]]:
    """Selling's step for a pair of the superbase: v_i turns round, the two others each get it added."""
    move = np.eye(4)
    move[i, i] = -1
    for k in _OTHERS[_PAIRS.index((i, j))]:
        move[k, i] = 1
    return move.tolist()


_FLIPS = [_flip(i, j) for i, j in _PAIRS]
_VORONOI = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, -1, -1), (1, 1, 0), (1, 0, 1), (0, 1, 1))


def minkowski_steps(lattice: Tensor, rounds: int = 12, flips: int = 24) -> Tensor:
    r"""Whole-number matrices T whose rows are the three shortest independent lattice vectors, as combinations of the cell's.

    ``T G T^T`` is Minkowski-reduced. Pairs of vectors are shortened by rounding (``rounds`` times), then Selling's algorithm
    makes the obtuse superbase (``flips`` steps at most); its seven sums hold the shortest vectors. No loop over crystals, no
    look at values from Python.

    Args:
        lattice: metric tensors ``(..., 3, 3)``.

    Returns:
        ``(..., 3, 3)``, of the dtype of double precision, determinant 1 or -1.
    """
    g = lattice.double()
    t = torch.eye(3, dtype=g.dtype, device=g.device).expand_as(g)
    for _ in range(rounds):
        now = t @ g @ t.mT
        order = now.diagonal(dim1=-2, dim2=-1).argsort(-1)
        t = t.gather(-2, order.unsqueeze(-1).expand_as(t))
        for i, j in ((1, 0), (2, 0), (2, 1)):  # the longer of two gets the shorter subtracted
            now = t @ g @ t.mT
            times = (now[..., i, j] / now[..., j, j].clamp_min(1e-30)).round()
            row = t[..., i, :] - times.unsqueeze(-1) * t[..., j, :]
            t = torch.cat([t[..., :i, :], row.unsqueeze(-2), t[..., i + 1 :, :]], -2)
    base = torch.cat([t, -t.sum(-2, keepdim=True)], -2)  # four vectors of sum zero
    moves = torch.tensor([*_FLIPS, np.eye(4).tolist()], dtype=g.dtype, device=g.device)
    first, second = torch.tensor(_PAIRS, device=g.device).T
    for _ in range(flips):
        inner = (base @ g @ base.mT)[..., first, second]
        most, which = inner.max(-1)
        size = g.diagonal(dim1=-2, dim2=-1).sum(-1)
        which = torch.where(most > 1e-12 * size, which, len(_FLIPS))
        base = moves[which] @ base
    sums = torch.tensor(_VORONOI, dtype=g.dtype, device=g.device)
    found = sums @ base[..., :3, :]
    length = ((found @ g) * found).sum(-1)
    order = length.argsort(-1)
    found = found.gather(-2, order.unsqueeze(-1).expand_as(found))
    # No two of the seven are parallel, so the two shortest are independent; the third is the first outside of their plane.
    a, b = found[..., 0, :], found[..., 1, :]
    plane = torch.linalg.cross(a, b)
    outside = ((found * plane.unsqueeze(-2)).sum(-1).abs() > 0.5).double()
    third = outside.argmax(-1)[..., None, None].expand(*found.shape[:-2], 1, 3)
    return torch.stack([a, b, found.gather(-2, third).squeeze(-2)], -2).round()


def shortest(difference: Tensor, lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Shortest images of differences of fractional coordinates, for cells of any shape.

    Args:
        difference: ``(B, ..., 3)``.
        lattice: ``(B, 3, 3)``.

    Returns:
        Distances ``(B, ...)`` in angstrom and the differences ``(B, ..., 3)`` of the shortest images.
    """
    steps = minkowski_steps(lattice)
    back = torch.linalg.inv(steps).round()  # its inverse is whole, too
    extra = (1,) * (difference.ndim - 2)
    reduced = (difference.double().unsqueeze(-2) @ back.reshape(-1, *extra, 3, 3)).squeeze(-2)
    reduced = reduced - reduced.round()
    metric = steps @ lattice.double() @ steps.mT
    shifts = torch.cartesian_prod(*[torch.arange(-1.0, 2.0, dtype=torch.float64, device=difference.device)] * 3)
    images = reduced.unsqueeze(-2) + shifts
    square = ((images @ metric.reshape(-1, *extra, 3, 3)) * images).sum(-1)
    least, which = square.min(-1)
    image = images.gather(-2, which[..., None, None].expand(*which.shape, 1, 3)).squeeze(-2)
    forward = (image.unsqueeze(-2) @ steps.reshape(-1, *extra, 3, 3)).squeeze(-2)
    return least.clamp_min(0).sqrt().to(difference.dtype), forward.to(difference.dtype)


def distances(crystals: Crystals) -> Tensor:
    """Distances between atoms and the nearest images of others, ``(B, N, N)`` in angstrom; the shortest lattice vector on the
    diagonal, infinity in padding."""
    steps = minkowski_steps(crystals.lattice)
    own = (steps[..., 0, :].unsqueeze(-2) @ crystals.lattice.double() @ steps[..., 0, :].unsqueeze(-1)).flatten(1)
    between, _ = shortest(crystals.frac.unsqueeze(-2) - crystals.frac.unsqueeze(-3), crystals.lattice)
    eye = torch.eye(crystals.mask.shape[1], dtype=torch.bool, device=between.device)
    between = torch.where(eye, own.sqrt().to(between.dtype).unsqueeze(-1), between)
    pairs = crystals.mask.unsqueeze(-1) & crystals.mask.unsqueeze(-2)
    return between.masked_fill(~pairs, float("inf"))


def shortest_distances(crystals: Crystals) -> Tensor:
    """The closest contact of each crystal, ``(B,)`` in angstrom; atoms and their own images count."""
    return distances(crystals).amin((-1, -2))


DENSEST = 1.0
"""Atoms per cubic angstrom up to which energies are computed; diamond has 0.18. Beyond it every atom has hundreds of neighbours,
whose pairs fill any memory."""


def is_too_dense(crystal: Crystal) -> bool:
    """Whether a crystal has more than :data:`DENSEST` atoms per cubic angstrom, or no volume."""
    return not len(crystal) <= DENSEST * crystal.volume


def contacts(crystals: Crystals) -> Tensor:
    """Closest contact over the sum of the two covalent radii, ``(B,)``: below about 0.7 atoms overlap."""
    between = distances(crystals)
    radius = covalent_radii(between.dtype, between.device)[crystals.species.clamp(0, ELEMENTS - 1)]
    return (between / (radius.unsqueeze(-1) + radius.unsqueeze(-2))).amin((-1, -2))


def densities(crystals: Crystals) -> Tensor:
    """Mass densities in g/cm^3, ``(B,)``."""
    mass = masses(crystals.frac.dtype, crystals.frac.device)[crystals.species.clamp(0, ELEMENTS - 1)]
    return 1.66053906660 * (mass * crystals.mask).sum(-1) / volumes(crystals.lattice).clamp_min(1e-12)
