"""An O(3)-equivariant network of the crystal flows: messages that carry vectors and tensors of real space, with e3nn's spherical
harmonics and Clebsch-Gordan coefficients."""

import math

import torch
from torch import Tensor, nn

from manifoldflow.manifolds.spd import matrix_exp, matrix_log, matrix_log_rate
from manifoldflow.tasks.crystals.model import FAINT, SHELLS, CrystalNetwork, Messages, NetworkConfig, rows_of, zero

_SIZES = (1, 3, 5)
"""Components of the irreps 0e, 1o and 2e."""
_NEIGHBOURS = 0.25
"""Scale of sums over neighbours, of which an atom has about a dozen."""


class EquivariantCrystalNetwork(CrystalNetwork):
    r"""Predictions for the fields of a crystal from vectors and tensors in real space; in and out as :class:`CrystalNetwork`.

    Atoms hold ``width`` scalars (0e), ``vectors`` vectors (1o) and as many symmetric traceless matrices (2e). Two atoms see each
    other through all images in the 27 cells around,

    .. math:: A_{ij}^{kl} = \sum_R \varphi_k(d_{ijR}) \, Y_l(\hat r_{ijR}), \qquad r_{ijR} = (x_i - x_j + R) L,

    in shells :math:`\varphi_k` of the distance over the sum of covalent radii, so nothing jumps where two images are equally
    near, as it would with the nearest alone. A round makes a message of the scalars of both atoms and :math:`A^{k0}`, and from it
    the weights of the shells and channels of a tensor product of what the neighbour holds with :math:`A^{kl}`.

    L is a root of the metric tensor, :math:`G = L L^T`, here the symmetric one: another root is the crystal turned or mirrored,
    and the answer does not depend on it. A vector v moves an atom by :math:`v L^{-1} V^{1/3}`, a symmetric matrix S moves the
    cell by :math:`\dot G = L S L^T`, beside the six numbers of :class:`CrystalNetwork`. Neither depends on the choice of the
    cell vectors, as far as 27 cells hold all that is seen; what does are the six numbers of the cell, in and out, which the path
    is made of, and the waves of ``harmonics``.

    Args:
        config: size; ``radial`` must be at least 1, and ``harmonics`` 0 for a network that is blind to the cell vectors.
        outputs, frac_scale, centred, beliefs, lattice_mean, lattice_scale, affine, lattice_endpoint: as of
            :class:`CrystalNetwork`.

    Raises:
        ValueError: no shells.
        ModuleNotFoundError: e3nn is not installed.

    Source: Thomas et al. 2018 (tensor field networks), Geiger & Smidt 2022 (e3nn), Batatia et al. 2022 (sums over neighbours
    before products).
    """

    matrices: Tensor

    def _make_rounds(self, config: NetworkConfig, outputs: int) -> None:
        if config.radial < 1:
            raise ValueError(f"the e3nn network sees atoms in shells: radial must be at least 1, got {config.radial}")
        w, c = config.width, config.vectors
        self.register_buffer("matrices", _matrices(), persistent=False)
        pair_size = 6 * config.harmonics + config.radial
        self.layers = nn.ModuleList([Messages(w, pair_size) for _ in range(config.layers)])
        self.tensors = nn.ModuleList([_Tensors(w, c, config.radial, first=i == 0) for i in range(config.layers)])
        self.norm = nn.LayerNorm(w)
        self.force = nn.Linear(w, (outputs + 1) * config.radial)
        self.push = nn.Linear(c, outputs, bias=False)
        self.stretch = nn.Linear(c, 1, bias=False)
        zero(self.force, self.push, self.stretch)

    def _rounds(
        self, h: Tensor, gap: Tensor, lattice: Tensor, species: Tensor, count: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        root = self._root(lattice.double())
        seen = self._harmonics(gap, lattice.to(gap.dtype), root.to(gap.dtype), species, count)
        pairs = seen[..., 0, :]
        if self.config.harmonics:
            pairs = torch.cat([self._waves(gap)[0], pairs], -1)
        near = _NEIGHBOURS * (weight > 0).to(gap.dtype)
        tensors, message = None, pairs
        for layer, product in zip(self.layers, self.tensors, strict=True):
            h, message = layer(h, pairs, weight)
            h, tensors = product(h, tensors, message, seen, weight, near)
        h = self.norm(h)
        assert tensors is not None
        pull = self.force(message).to(gap.dtype).unflatten(-1, (self.outputs + 1, self.config.radial))
        vector = torch.einsum("bj,bijok,bijmk->biom", near, pull[..., :-1, :], seen[..., 1:4, :])
        vector = vector + self.push(tensors[..., :3, :]).mT
        tensor = torch.einsum("bi,bj,bijk,bijmk->bm", weight, near, pull[..., -1, :], seen[..., 4:, :])
        tensor = tensor + torch.einsum("bi,bim->bm", weight, self.stretch(tensors[..., 3:, :]).squeeze(-1))
        tangent = vector.to(gap.dtype) @ self._to_fractional(root).to(gap.dtype).unsqueeze(1)
        return h, tangent, self._strain(torch.einsum("bm,mxy->bxy", tensor, self.matrices), root, lattice)

    def _root(self, lattice: Tensor) -> Tensor:
        """The symmetric root of the metric tensor: a cell in some orientation, vectors in its rows."""
        return matrix_exp(0.5 * matrix_log(lattice))

    def _to_fractional(self, root: Tensor) -> Tensor:
        """From vectors in units of the cell's size to differences of fractional coordinates."""
        volume = torch.linalg.det(root).abs()
        return torch.linalg.inv_ex(root)[0] * volume.pow(1 / 3)[..., None, None]

    def _strain(self, tensor: Tensor, root: Tensor, lattice: Tensor) -> Tensor:
        """The numbers of the lattice's tangent that are the symmetric matrix ``tensor`` ``(B, 3, 3)`` of real space."""
        if self.affine:  # in the frame of the root that the tangent is multiplied by
            turn = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(lattice.double())[0], root, upper=False)
            rate = turn @ tensor.double() @ turn.mT
        else:
            rate = matrix_log_rate(lattice.double(), root @ tensor.double() @ root.mT)
        return torch.einsum("bij,kij->bk", rate, self.basis.double()).to(tensor.dtype)

    @torch.autocast("cpu", enabled=False)
    def _harmonics(self, gap: Tensor, lattice: Tensor, root: Tensor, species: Tensor, count: Tensor) -> Tensor:
        """Spherical harmonics of degree 0 to 2 of the images of each atom around each other, summed in shells:
        ``(B, N, N, 9, radial)``."""
        from e3nn import o3

        near, apart, between = self._near_images(gap, lattice, species, count)
        cell = root * count.pow(1 / 3).unsqueeze(-1)
        radius = rows_of(self.radii.to(gap.dtype), species)
        unit = (radius[:, between.i] + radius[:, between.j]).unsqueeze(-1) * apart.clamp_min(0.3)  # (B, P, 27)
        way = (near @ cell).unsqueeze(-2) + (self.images.to(gap.dtype) @ cell).unsqueeze(1)
        angular = o3.spherical_harmonics(
            [0, 1, 2], way / unit.unsqueeze(-1), normalize=False, normalization="component"
        )  # shorter vectors near 0: smooth there
        centres = torch.linspace(*SHELLS, self.config.radial, dtype=gap.dtype, device=gap.device)
        width = (SHELLS[1] - SHELLS[0]) / max(self.config.radial - 1, 1)
        inside = (
            (((apart.unsqueeze(-2) - centres.unsqueeze(-1)) / width).square() * -0.5).clamp_min(FAINT).exp()
        )  # (B, P, radial, 27)
        summed = (angular.mT @ inside.mT)[:, between.place]
        scalars, vectors, matrices = summed.split(_SIZES, -2)
        return torch.cat([scalars, vectors * between.sign[..., None, None], matrices], -2)


class _Tensors(nn.Module):
    """The part of a round beyond scalars: a tensor product of what neighbours hold and the harmonics of where they are.

    It is e3nn's ``TensorProduct`` in mode "uvu" over all paths between 0e, 1o and 2e, with a weight for each pair, channel and
    degree of the neighbour. Being bilinear, it is summed over the neighbours first and coupled for each atom afterwards.
    """

    coupling: Tensor

    def __init__(self, width: int, channels: int, radial: int, first: bool) -> None:
        super().__init__()
        degrees = (0,) if first else (0, 1, 2)
        self.parts = [radial, radial, *[channels] * len(degrees)]
        self.counts, coupling = _couplings(degrees)
        self.register_buffer("coupling", coupling, persistent=False)
        self.norm = nn.LayerNorm(width)
        self.source = nn.Linear(width, channels)
        self.weights = nn.Linear(width, sum(self.parts))
        self.mixes = nn.ModuleList([nn.Linear(channels * count, channels, bias=False) for count in self.counts])
        self.gate = nn.Linear(width, 2 * channels)
        self.update = nn.Sequential(nn.Linear(3 * channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(
        self, h: Tensor, tensors: Tensor | None, message: Tensor, seen: Tensor, weight: Tensor, near: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scalars ``(B, N, W)`` and tensors ``(B, N, 8, channels)``, from a message for each pair ``(B, N, N, W)``, what is seen
        ``(B, N, N, 9, radial)``, and weights of the neighbours ``(B, N)`` at any distance and in the shells."""
        normed = self.norm(h)
        held = [self.source(normed).unsqueeze(-2)]  # (B, N, components, channels), one for each degree
        if tensors is not None:
            held += _normalised(tensors)
        vector_shells, matrix_shells, *gates = self.weights(message).split(self.parts, -1)
        where = torch.cat(
            [
                weight[:, None, :, None].expand(-1, weight.shape[1], -1, -1),
                _weighed(vector_shells, seen[..., 1:4, :]) * near[:, None, :, None],
                _weighed(matrix_shells, seen[..., 4:, :]) * near[:, None, :, None],
            ],
            -1,
        )  # (B, N, N, 9)
        carried = [(g.unsqueeze(-2) * p.unsqueeze(1)).flatten(-2) for g, p in zip(gates, held, strict=True)]
        summed = where.mT @ torch.cat(carried, -1).to(where.dtype)  # (B, N, 9, components * channels)
        both = summed.unflatten(-1, (-1, self.source.out_features)).flatten(-3, -2)
        coupled = (self.coupling.to(both.dtype) @ both).split(
            [n * s for n, s in zip(self.counts, _SIZES, strict=True)], -2
        )
        scalars, vectors, matrices = (
            mix(part.unflatten(-2, (-1, size)).transpose(-3, -2).flatten(-2))
            for mix, part, size in zip(self.mixes, coupled, _SIZES, strict=True)
        )
        vector_gate, matrix_gate = self.gate(normed).sigmoid().unsqueeze(-2).chunk(2, -1)
        change = torch.cat([vectors * vector_gate, matrices * matrix_gate], -2).to(where.dtype)
        tensors = change if tensors is None else tensors + change
        lengths = [(1 + part.square().sum(-2)).log() for part in tensors.split(_SIZES[1:], -2)]
        return h + self.update(torch.cat([scalars.squeeze(-2).to(where.dtype), *lengths], -1)), tensors


def _weighed(weights: Tensor, seen: Tensor) -> Tensor:
    """The sum over shells, ``(B, N, N, components)``."""
    return (weights.unsqueeze(-2) * seen).sum(-1)


def _normalised(tensors: Tensor) -> list[Tensor]:
    """Vectors and matrices whose mean square over the channels is 1 at most."""
    parts = tensors.split(_SIZES[1:], -2)
    return [part * (part.square().mean((-2, -1), keepdim=True) + 0.1).rsqrt() for part in parts]


def _couplings(degrees: tuple[int, ...]) -> tuple[list[int], Tensor]:
    """How many products of ``degrees`` with degrees 0 to 2 have degree 0, 1 and 2, and their Clebsch-Gordan coefficients: a row
    for each component of each product, a column for each two components, those of ``degrees`` changing first."""
    from e3nn import o3

    paths = [[(a, b) for a in degrees for b in range(3) if _is_path(a, b, c)] for c in range(3)]
    size = sum(_SIZES[a] for a in degrees)
    rows = []
    for c in range(3):
        for a, b in paths[c]:
            table = torch.zeros(_SIZES[c], 9, size)
            block = math.sqrt(_SIZES[c]) * o3.wigner_3j(a, b, c, dtype=torch.float32).permute(2, 1, 0)
            table[:, b * b : b * b + _SIZES[b], a * a : a * a + _SIZES[a]] = block
            rows.append(table.flatten(1))
    return [len(some) for some in paths], torch.cat(rows)


def _is_path(a: int, b: int, c: int) -> bool:
    """Whether irreps of natural parity couple to one: the triangle's rule, and an even sum."""
    return abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0


def _matrices() -> Tensor:
    """The symmetric traceless matrices of the components of 2e, ``(5, 3, 3)``."""
    from e3nn import o3

    return o3.wigner_3j(2, 1, 1, dtype=torch.float32)
