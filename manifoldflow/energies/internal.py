"""Internal coordinates: bond lengths, angles and torsions of a molecule, there and back, with the exact volume element."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifoldflow.energies.openmm import OpenMMEnergy
from manifoldflow.state import State


class Internal(NamedTuple):
    """Internal coordinates of n atoms, in the order of the rows of the Z-matrix.

    Attributes:
        bonds: ``(..., n - 1)``, in the unit of the positions.
        angles: ``(..., n - 2)``, radians in (0, pi).
        torsions: ``(..., n - 3)``, radians in (-pi, pi].
    """

    bonds: Tensor
    angles: Tensor
    torsions: Tensor


class InternalCoordinates:
    r"""Positions ``(..., n, 3)`` of a molecule from a Z-matrix, by levels of atoms whose references are placed (NeRF).

    Translation and rotation are dropped: the first atom is placed at the origin, the second on the x axis, the third in the xy
    plane. The volume element of the positions is, with one of translations and rotations,

    .. math::
        dx = dt\, dR \prod_i b_i^2 \prod_i \sin\theta_i \; db\, d\theta\, d\phi .

    Args:
        rows: ``(n, 4)`` whole numbers: an atom, the atom it is bonded to, the atom that makes its angle, the atom that makes its
            torsion; -1 where there is none (first three rows). References stand in earlier rows.
    """

    def __init__(self, rows: Sequence[Sequence[int]] | np.ndarray) -> None:
        table = np.asarray(rows, dtype=int)
        if table.ndim != 2 or table.shape[1] != 4 or len(table) < 4:
            raise ValueError(f"a Z-matrix needs 4 columns and at least 4 rows, got shape {table.shape}")
        place = {int(atom): row for row, atom in enumerate(table[:, 0])}
        if sorted(place) != list(range(len(table))):
            raise ValueError(f"a Z-matrix names each of the atoms 0 to {len(table) - 1} once")
        for row, (atom, *references) in enumerate(table.tolist()):
            needed = references[: min(row, 3)]
            if len(set(needed)) < len(needed) or any(r not in place or place[r] >= row for r in needed):
                raise ValueError(
                    f"Z-matrix row {row} (atom {atom}): the references {needed} must differ and come before"
                )
        self.rows = table
        self.order = torch.as_tensor(table[:, 0])
        self.back = torch.argsort(self.order)
        self.references = torch.as_tensor([[place.get(int(a), 0) for a in row[1:]] for row in table])
        depth = [0, 0, 0]
        for row in range(3, len(table)):
            depth.append(1 + max(depth[r] for r in self.references[row].tolist()))
        kinds = np.array(depth[3:])
        self.levels = [torch.as_tensor(np.flatnonzero(kinds == d) + 3) for d in range(1, int(kinds.max()) + 1)]
        where = torch.cat([torch.arange(3), *self.levels])  # the order in which rows are placed
        self.placed = torch.argsort(where)

    def __len__(self) -> int:
        return len(self.rows)

    def from_positions(self, x: Tensor) -> Internal:
        """Internal coordinates of positions ``(..., n, 3)``."""
        p = x.index_select(-2, self.order.to(x.device))
        b, c, d = (p.index_select(-2, self.references[:, k].to(x.device)) for k in range(3))
        bond, back = p - b, c - b
        angles = torch.atan2(torch.linalg.cross(bond, back)[..., 2:, :].norm(dim=-1), (bond * back)[..., 2:, :].sum(-1))
        return Internal(bond[..., 1:, :].norm(dim=-1), angles, dihedral(p, b, c, d)[..., 3:])

    def to_positions(self, made: Internal) -> Tensor:
        """Positions ``(..., n, 3)`` of internal coordinates."""
        bonds, angles, torsions = made
        zero = torch.zeros_like(bonds[..., 0])
        first = torch.stack([zero, zero, zero], -1)
        second = torch.stack([bonds[..., 0], zero, zero], -1)
        cos, sin = (bonds[..., 1] * f(angles[..., 0]) for f in (torch.cos, torch.sin))
        is_chain = int(self.references[2, 0]) == 1  # bonded to the second atom, else to the first
        third = torch.stack([bonds[..., 0] - cos if is_chain else cos, sin, zero], -1)
        placed = torch.stack([first, second, third], -2)
        for rows in self.levels:
            at = rows.to(bonds.device)
            references = self.placed[self.references[rows]].to(bonds.device)
            c, b, a = (placed.index_select(-2, references[:, k]) for k in range(3))
            forward = _unit(c - b)
            normal = _unit(torch.linalg.cross(b - a, forward))
            across = torch.linalg.cross(normal, forward)
            r = bonds.index_select(-1, at - 1).unsqueeze(-1)
            theta, phi = angles.index_select(-1, at - 2).unsqueeze(-1), torsions.index_select(-1, at - 3).unsqueeze(-1)
            side = theta.sin() * (phi.cos() * across + phi.sin() * normal)
            placed = torch.cat([placed, c + r * (side - theta.cos() * forward)], -2)
        return placed.index_select(-2, self.placed[self.back].to(bonds.device))

    def log_volume(self, bonds: Tensor, angles: Tensor) -> Tensor:
        """Log of the volume element against positions, ``(...)``."""
        return 2 * bonds.log().sum(-1) + angles.sin().log().sum(-1)


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Torsion angles ``(...)`` about the bond from b to c, IUPAC sign, in (-pi, pi]."""
    u, v, w = b - a, c - b, d - c
    n, m = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    length = torch.sqrt((v * v).sum(-1).clamp_min(1e-30))
    return torch.atan2(length * (u * m).sum(-1), (n * m).sum(-1))


def make_z_matrix(bonds: Sequence[tuple[int, int]], start: Sequence[int]) -> np.ndarray:
    """A Z-matrix of a connected molecule, in which all but one of the atoms at the end of a bond turn with that one.

    The first atom placed at the end of a bond has the torsion about it; the others have their angle to the first, which is
    stiff. So there is one soft torsion for every bond that turns.

    Args:
        bonds: pairs of atoms.
        start: the first atoms in their order, at least three bonded ones of the backbone, ``a-b-c``; further ones
            keep that order.

    Returns:
        ``(n, 4)``.
    """
    neighbours: dict[int, list[int]] = {}
    for i, j in bonds:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)
    order = list(start)
    for atom in order:
        order += [n for n in sorted(neighbours[atom]) if n not in order]
    if len(order) != len(neighbours):
        raise ValueError(f"the molecule is not connected: {len(neighbours) - len(order)} atoms cannot be reached")
    rows, parent = [], {}
    for count, atom in enumerate(order):
        before = order[:count]
        bonded = [n for n in before if n in neighbours[atom]]
        if count and not bonded:
            raise ValueError(f"atom {atom} of start is bonded to none before it")
        c = bonded[0] if count else -1
        parent[atom] = c
        if count < 2:
            rows.append([atom, c, -1, -1])
            continue
        # what c hangs on: its parent, or for a first atom the one placed after it
        b = parent[c] if parent[c] >= 0 else next(n for n in before if n in neighbours[c])
        siblings = [n for n in before if n in neighbours[c] and n not in (b, atom)]
        onward = [n for n in before if n in neighbours[b] and n != c]
        a = siblings[0] if siblings else onward[0] if onward else -1
        rows.append([atom, c, b, a if count > 2 else -1])
    return np.asarray(rows)


class ConstrainedMolecule:
    r"""A molecule with rigid bonds under an OpenMM energy, in the coordinates that are left: a potential for generators.

    State: ``"line"`` ``(B, L)``, the free bonds, all angles and the stiff torsions, each minus its mean over its standard
    deviation; ``"turn"`` ``(B, T)``, the soft torsions in radians.

    Dynamics under rigid constraints s(x) = 0 does not sample :math:`e^{-u}` with the volume element of the internal coordinates
    alone: the momenta leave a factor :math:`\sqrt{\det Z}`, :math:`Z_{kl} = \sum_i m_i^{-1} \nabla_i s_k \cdot \nabla_i s_l`
    (Fixman 1974). With it the density in the coordinates that are left is exactly that of the constrained system,

    .. math::
        p \propto e^{-u} \prod b^2 \prod \sin\theta \; \sqrt{\det Z} .

    Args:
        energy: of positions ``(B, n, 3)``.
        coordinates: the Z-matrix.
        rigid: atom -> fixed length of the bond that places it.
        soft: atoms whose torsion is soft.
        mean, scale: of the ``"line"`` numbers, ``(L,)``; stiff torsions are measured from their mean.
        masses: ``(n,)``, any unit.
    """

    def __init__(
        self,
        energy: OpenMMEnergy | Any,
        coordinates: InternalCoordinates,
        *,
        rigid: Mapping[int, float],
        soft: Sequence[int],
        mean: Tensor,
        scale: Tensor,
        masses: Sequence[float],
    ) -> None:
        self.function, self.coordinates, self.rigid = energy, coordinates, dict(rigid)
        atoms = coordinates.rows[:, 0].tolist()
        is_rigid = torch.tensor([a in self.rigid for a in atoms[1:]])
        is_soft = torch.tensor([a in set(soft) for a in atoms[3:]])
        self.free_bonds, self.fixed_bonds = (m.nonzero().squeeze(-1) for m in (~is_rigid, is_rigid))
        self.stiff, self.soft = (m.nonzero().squeeze(-1) for m in (~is_soft, is_soft))
        self.lengths = torch.tensor([self.rigid[a] for a in atoms[1:] if a in self.rigid])
        self.sizes = [len(self.free_bonds), len(atoms) - 2, len(self.stiff)]
        self.mean, self.deviation = torch.as_tensor(mean), torch.as_tensor(scale)
        if len(self.mean) != sum(self.sizes):
            raise ValueError(f"mean and scale must have {sum(self.sizes)} numbers, got {len(self.mean)}")
        pairs = [(int(row[0]), int(row[1])) for row in coordinates.rows[1:] if int(row[0]) in self.rigid]
        self.pairs = torch.tensor(pairs)
        self.weight = 1 / torch.as_tensor(masses, dtype=torch.float64)

    @property
    def line(self) -> int:
        """Size of ``"line"``."""
        return sum(self.sizes)

    @property
    def turn(self) -> int:
        """Size of ``"turn"``."""
        return len(self.soft)

    def internal(self, x: State) -> Internal:
        """All internal coordinates of a state."""
        assert not isinstance(x, Tensor)
        line, turn = x["line"], x["turn"]
        bonds, angles, stiff = (line * self.deviation.to(line) + self.mean.to(line)).split(self.sizes, -1)
        every = line.new_zeros(*line.shape[:-1], len(self.coordinates) - 1)
        every = every.index_copy(-1, self.free_bonds, bonds)
        every = every.index_copy(-1, self.fixed_bonds, self.lengths.to(line).expand(*line.shape[:-1], -1))
        torsions = line.new_zeros(*line.shape[:-1], len(self.coordinates) - 3)
        torsions = torsions.index_copy(-1, self.stiff, stiff).index_copy(-1, self.soft, turn)
        return Internal(every, angles, torsions)

    def positions(self, x: State) -> Tensor:
        """Positions ``(B, n, 3)`` of a state."""
        return self.coordinates.to_positions(self.internal(x))

    def state(self, positions: Tensor) -> dict[str, Tensor]:
        """The state of positions; what rigid bonds measure there is dropped."""
        bonds, angles, torsions = self.coordinates.from_positions(positions)
        mean, deviation = self.mean.to(positions), self.deviation.to(positions)
        centre = mean[-self.sizes[2] :] if self.sizes[2] else mean[:0]
        stiff = torsions.index_select(-1, self.stiff) - centre
        stiff = (stiff + torch.pi).remainder(2 * torch.pi) - torch.pi + centre
        line = torch.cat([bonds.index_select(-1, self.free_bonds), angles, stiff], -1)
        turn = torsions.index_select(-1, self.soft).remainder(2 * torch.pi)
        return {"line": (line - mean) / deviation, "turn": turn}

    def energy(self, x: State) -> Tensor:
        """E / kT ``(B,)``; NaN where a bond or an angle has left its range."""
        made = self.internal(x)
        value = self.function(self.coordinates.to_positions(made))
        return torch.where(self._is_possible(made), value, torch.nan)

    def log_volume(self, x: State) -> Tensor:
        """Log of the volume element ``(B,)``, with the factor of the constraints."""
        made = self.internal(x)
        is_possible = self._is_possible(made)
        bonds = torch.where(is_possible.unsqueeze(-1), made.bonds, 1.0)
        angles = torch.where(is_possible.unsqueeze(-1), made.angles, 1.0)
        volume = self.coordinates.log_volume(bonds, angles) + self.deviation.log().sum()
        return volume + self.log_fixman(self.coordinates.to_positions(made._replace(bonds=bonds, angles=angles)))

    def log_fixman(self, positions: Tensor) -> Tensor:
        r""":math:`\tfrac12 \log\det Z` ``(B,)`` of the rigid bonds."""
        i, j = self.pairs.unbind(-1)
        unit = _unit(positions.index_select(-2, i) - positions.index_select(-2, j))
        cosine = (unit.unsqueeze(-2) * unit.unsqueeze(-3)).sum(-1)
        weight = self.weight.to(positions)

        def shared(a: Tensor, b: Tensor) -> Tensor:
            return (a.unsqueeze(-1) == b.unsqueeze(-2)).to(positions) * weight[a].unsqueeze(-1)

        factor = shared(i, i) + shared(j, j) - shared(i, j) - shared(j, i)
        return 0.5 * torch.logdet(cosine * factor)

    def _is_possible(self, made: Internal) -> Tensor:
        return (made.bonds > 0).all(-1) & ((made.angles > 0) & (made.angles < torch.pi)).all(-1)


def _unit(v: Tensor) -> Tensor:
    return v / torch.sqrt((v * v).sum(-1, keepdim=True).clamp_min(1e-20))
