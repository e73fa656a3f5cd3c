r"""An equivariant network of whole molecules: atoms, unordered pairs of atoms, and vectors at atoms.

Every pair of atoms is looked at, once: what it carries is the same from both sides, so a field of edges costs half of a matrix.
What differs between the two ends enters where a message arrives, as a factor from the atom it comes from. Vectors at the atoms
(:math:`v_i = \sum_j g_{ij} r_{ij}`) carry directions from layer to layer, so that angles are seen (Schütt et al. 2021), and move
the atoms (Satorras et al. 2021). Turned and reflected input gives turned and reflected positions and the same logits; shifts
change nothing.

Atoms are moved by :math:`\sqrt{(1 - t)^2 + 0.1^2}` times what the layers say, the scale of what is left to go.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, silu

from manifoldflow.field import edge_ends

FURTHEST = 7.0
"""Angstrom up to which distances are told apart finely."""


class MoleculeNetwork(nn.Module):
    """Endpoint of the positions, and logits of elements, charges and bonds, from a noisy molecule.

    Args:
        kinds, charges, bonds: categories of the three fields of tokens.
        width: channels of an atom.
        pair_width: channels of a pair.
        vectors: vectors at an atom.
        depth: layers.
        radial: Gaussian functions of a distance.
    """

    def __init__(
        self,
        kinds: int,
        charges: int,
        bonds: int,
        *,
        width: int = 96,
        pair_width: int = 48,
        vectors: int = 8,
        depth: int = 5,
        radial: int = 16,
    ) -> None:
        super().__init__()
        self.kinds, self.charges, self.bonds, self.vectors = kinds, charges, bonds, vectors
        self.radial = Radial(radial)
        atom, pair = kinds + charges + bonds, self.radial.size + bonds
        self.atom_in = nn.Linear(2 * atom + TIMES + 1, width)
        self.pair_in = nn.Linear(2 * pair, pair_width)
        self.layers = nn.ModuleList(Layer(width, pair_width, vectors, self.radial) for _ in range(depth))
        self.atom_out = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, kinds + charges)
        )
        self.pair_norm = nn.LayerNorm(pair_width)
        self.pair_out = nn.Sequential(
            nn.Linear(pair_width + self.radial.size, pair_width), nn.SiLU(), nn.Linear(pair_width, bonds)
        )
        self.atom_to_pair = nn.Linear(width, pair_width)

    def forward(
        self, x: dict[str, Tensor], t: Tensor, *, mask: Tensor | None = None, previous: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Predictions at a noisy molecule.

        Args:
            x: ``pos`` ``(B, N, 3)`` in angstrom, tokens ``kind`` and ``charge`` ``(B, N)``, ``bond`` ``(B, P)``.
            t: times ``(B,)``.
            mask: bool ``(B, N)`` of real atoms.
            previous: the network's own last prediction (self-conditioning).
        """
        pos = x["pos"]
        batch, n, _ = pos.shape
        ends = Ends(n, pos.device)
        real = pos.new_ones(batch, n, 1) if mask is None else mask.unsqueeze(-1).to(pos.dtype)
        both = ends.first(real) * ends.second(real)
        kind, charge = hot(x["kind"], self.kinds, pos), hot(x["charge"], self.charges, pos)
        bond = hot(x["bond"], self.bonds, pos)
        if previous is None:
            past_atom = pos.new_zeros(batch, n, self.kinds + self.charges + self.bonds)
            past_pair = pos.new_zeros(batch, bond.shape[1], self.radial.size + self.bonds)
        else:
            past_bond = previous["bond"].softmax(-1)
            past_atom = torch.cat(
                [previous["kind"].softmax(-1), previous["charge"].softmax(-1), ends.to_atoms(past_bond * both)], -1
            )
            past_pair = torch.cat([self.radial(ends.difference(previous["pos"]).square().sum(-1)), past_bond], -1)
        valence = ends.to_atoms(bond * both)
        size = (real.sum(1, keepdim=True) / 16 - 1).expand(-1, n, -1)
        time = time_features(t, pos).unsqueeze(1).expand(-1, n, -1)
        h = self.atom_in(torch.cat([kind, charge, valence, past_atom, time, size], -1)) * real
        e = self.pair_in(torch.cat([self.radial(ends.difference(pos).square().sum(-1)), bond, past_pair], -1))
        v = pos.new_zeros(batch, n, 3, self.vectors)
        where = pos
        # What is left to go shrinks with 1 - t: the network need not learn small steps, and what was disturbed can be mended.
        pace = ((1 - t.to(pos.dtype)).square() + 0.01).sqrt().reshape(-1, 1, 1)
        for layer in self.layers:
            h, e, v, where = layer(h, e, v, where, ends, real, both, pace)
        made = self.atom_out(h)
        last = self.radial(ends.difference(where).square().sum(-1))
        pair = silu(self.pair_norm(e) + ends.to_pairs(self.atom_to_pair(h)))
        count = real.sum(1, keepdim=True).clamp_min(1)
        where = (where - (where * real).sum(1, keepdim=True) / count) * real
        return {
            "pos": where,
            "kind": made[..., : self.kinds],
            "charge": made[..., self.kinds :],
            "bond": self.pair_out(torch.cat([pair, last], -1)),
        }


class Layer(nn.Module):
    """One round: pairs look at their atoms, atoms at their pairs, and both at distances and directions.

    Args:
        width, pair_width, vectors: as for :class:`MoleculeNetwork`.
        radial: functions of a distance.
    """

    def __init__(self, width: int, pair_width: int, vectors: int, radial: "Radial") -> None:
        super().__init__()
        self.radial, self.vectors = radial, vectors
        self.norm = nn.LayerNorm(width)
        self.from_atoms = nn.Linear(width, 2 * pair_width)
        self.geometry = nn.Linear(radial.size + 2 * vectors, pair_width)
        self.pair_norm = nn.LayerNorm(pair_width)
        self.message = nn.Linear(pair_width, pair_width)
        self.gates = nn.Linear(pair_width, pair_width + vectors + 1)
        self.update = nn.Sequential(nn.Linear(width + pair_width + vectors, width), nn.SiLU(), nn.Linear(width, width))
        self.mix = nn.Parameter(torch.randn(vectors, vectors) / vectors**0.5)
        self.push = nn.Linear(width, vectors)
        with torch.no_grad():
            self.gates.weight[-1].mul_(0.1)
            self.push.weight.mul_(0.1)

    def forward(
        self, h: Tensor, e: Tensor, v: Tensor, x: Tensor, ends: "Ends", real: Tensor, both: Tensor, pace: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Atoms ``(B, N, width)``, pairs ``(B, P, pair_width)``, vectors ``(B, N, 3, vectors)`` and positions after the round."""
        r = ends.difference(x)
        squared = r.square().sum(-1)
        unit = (r * (squared + 1e-2).rsqrt().unsqueeze(-1)).unsqueeze(-1)
        # Both are the same seen from either end: the sign of the difference turns with that of the direction.
        one, other = ends.first(v), ends.second(v)
        seen = torch.cat([self.radial(squared), (one * other).sum(-2), ((other - one) * unit).sum(-2)], -1)
        normed = self.norm(h)
        own, value = self.from_atoms(normed).chunk(2, -1)
        e = e + silu(self.pair_norm(self.geometry(seen) + ends.to_pairs(own) + e))
        m = silu(self.message(e))
        gate, g = self.gates(m).split([m.shape[-1], self.vectors + 1], -1)
        m, g = m * both, g * both
        came = ends.to_atoms(m * ends.second(value), m * ends.first(value)) / SOME
        e = e + gate
        pulled = (unit * g.unsqueeze(-2)).flatten(2)
        toward = (ends.to_atoms(pulled, -pulled) / SOME).unflatten(2, (3, -1))
        v = v @ self.mix + toward[..., 1:]
        v = v * (v.square().sum(-2, keepdim=True) + 1).rsqrt()  # never longer than 1
        length = v.square().sum(-2)
        h = h + self.update(torch.cat([normed, came, length], -1)) * real
        step = toward[..., 0] + (v * self.push(self.norm(h)).unsqueeze(-2)).sum(-1)
        return h, e, v, x + pace * step * real


SOME = 4.0
"""What sums over the pairs of an atom are divided by: about the square root of their number."""


class Ends:
    """Both atoms of every edge of the complete graph of ``nodes``, and sums over the edges of every atom.

    Args:
        nodes: N.
        device: of the tables.
    """

    def __init__(self, nodes: int, device: torch.device) -> None:
        self.nodes = nodes
        self._first, self._second = edge_ends(nodes, device)

    def first(self, h: Tensor) -> Tensor:
        """What the first atom of every pair has, ``(B, P, ...)`` from ``(B, N, ...)``."""
        return h.index_select(1, self._first)

    def second(self, h: Tensor) -> Tensor:
        """What the second has."""
        return h.index_select(1, self._second)

    def to_pairs(self, h: Tensor) -> Tensor:
        """The sum of both."""
        return self.first(h) + self.second(h)

    def difference(self, x: Tensor) -> Tensor:
        """The second less the first."""
        return self.second(x) - self.first(x)

    def to_atoms(self, m: Tensor, other: Tensor | None = None) -> Tensor:
        """For every atom the sum over its pairs, ``(B, N, ...)`` from ``(B, P, ...)``.

        Args:
            m: what a pair gives to its first atom.
            other: and to its second; the same if absent.
        """
        zero = m.new_zeros(m.shape[0], self.nodes, *m.shape[2:])
        return zero.index_add(1, self._first, m).index_add(1, self._second, m if other is None else other)


class Radial(nn.Module):
    """Functions of a squared distance: Gaussians up to :data:`FURTHEST`, and its logarithm for what lies beyond.

    Args:
        count: number of Gaussians.
    """

    centres: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.size = count + 1
        self.register_buffer("centres", torch.linspace(0.0, FURTHEST, count), persistent=False)
        self.sharpness = 0.5 * ((count - 1) / FURTHEST) ** 2

    def forward(self, squared: Tensor) -> Tensor:
        """``(..., size)`` of squared distances ``(...)``."""
        d = (squared + 1e-8).sqrt().unsqueeze(-1)
        return torch.cat([torch.exp(-self.sharpness * (d - self.centres).square()), torch.log1p(d)], -1)


TIMES = 8
"""Features of a time."""


def time_features(t: Tensor, like: Tensor) -> Tensor:
    """Smooth functions of a time ``(B,)``, finer near 1, ``(B, TIMES)``."""
    t = t.to(like.dtype)
    late = -torch.log1p(-0.99 * t)
    waves = torch.arange(1, 4, device=t.device, dtype=like.dtype) * math.pi * t.unsqueeze(-1)
    return torch.cat([t.unsqueeze(-1), late.unsqueeze(-1), waves.sin(), waves.cos()], -1)


def hot(x: Tensor, size: int, like: Tensor) -> Tensor:
    """One-hot tokens in the precision of ``like``; the mask token is all zeros."""
    return one_hot(x, size + 1)[..., :size].to(like.dtype)
