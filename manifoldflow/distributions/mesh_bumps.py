"""Bumps on a mesh: a target whose density is known, for tests and demonstrations."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.mesh import Mesh, uniform_coordinates
from manifoldflow.manifolds.mesh_search import squared_distances
from manifoldflow.manifolds.mesh_tables import Tables, place, tables

Center = tuple[float, float, float]

ROUNDS = 200
"""Proposals of a draw. One is accepted with probability exp(-r h / s^2) or so for triangles of size h at distance r."""

PARTS = 4
"""The sides of a triangle are cut into as many parts for the normaliser."""


@dataclass(frozen=True)
class MeshBumps(Distribution):
    r"""A mixture of Gaussian bumps of the straight-line distance, on the surface of a mesh:

    .. math:: p(x) = \sum_k \frac{w_k}{Z_k} e^{-|x - c_k|^2 / 2 s^2}, \qquad Z_k = \int_M e^{-|x - c_k|^2 / 2 s^2} dA

    with :math:`Z_k` by quadrature on the triangles (relative error below 1e-6 where s is not smaller than an edge). Samples
    are exact: a triangle by its area and the highest value on it, a uniform point there, accepted by its height.

    Args:
        centers: points ``c_k``, on the surface or near it.
        scale: s, in the units of the mesh.
        weights: of the mixture, positive; equal if absent.
        manifold: the mesh; :class:`manifoldflow.Flow` fills it in.
    """

    centers: tuple[Center, ...]
    scale: float
    weights: tuple[float, ...] | None = None
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"MeshBumps: scale must be positive, got {self.scale}")
        if not self.centers or any(len(c) != 3 for c in self.centers):
            raise ValueError("MeshBumps: centers must be points of R^3, at least one")
        if self.weights is not None and (len(self.weights) != len(self.centers) or not min(self.weights) > 0):
            raise ValueError(f"MeshBumps: weights must be {len(self.centers)} positive numbers, got {self.weights}")
        if self.manifold is not None and not isinstance(self.manifold, Mesh):
            raise ValueError(f"MeshBumps is a distribution on a Mesh, not on {self.manifold}")

    @classmethod
    def spread(cls, mesh: Mesh, count: int = 3, *, scale: float | None = None) -> "MeshBumps":
        """Equal bumps at vertices far from each other (farthest-point sampling from the first vertex).

        Args:
            mesh: the mesh.
            count: number of bumps.
            scale: 0.07 roots of the area if absent: three bumps then have 1.4 nats less entropy than the uniform density.
        """
        vertices = mesh.geometry.vertices
        # The first vertex is anywhere; the one farthest from it is at an end of the shape.
        chosen = [int(np.linalg.norm(vertices - vertices[0], axis=1).argmax())]
        while len(chosen) < count:
            gaps = np.linalg.norm(vertices[:, None] - vertices[chosen], axis=-1).min(1)
            chosen.append(int(gaps.argmax()))
        centers = tuple((float(x), float(y), float(z)) for x, y, z in vertices[chosen])
        return cls(centers, 0.07 * math.sqrt(mesh.area) if scale is None else scale, manifold=mesh)

    @property
    def mixture(self) -> tuple[float, ...]:
        """Normalised weights."""
        weights = self.weights or (1.0,) * len(self.centers)
        return tuple(w / sum(weights) for w in weights)

    @property
    def _mesh(self) -> Mesh:
        space = self.space
        if not isinstance(space, Mesh):
            raise ValueError(f"MeshBumps is a distribution on a Mesh, not on {space}")
        return space

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        table = self._mesh.tables(dtype, device)
        cumulative, tops = (v.to(device) for v in _proposal(self._mesh, self.centers, self.scale))
        count = math.prod(shape)

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, generator=generator, dtype=torch.float64, device=device)

        steps = torch.tensor(np.cumsum(self.mixture), device=device)
        bump = torch.searchsorted(steps, uniform(count)).clamp_max(len(self.centers) - 1)
        center = torch.tensor(self.centers, dtype=torch.float64, device=device)[bump]
        x = torch.zeros(count, 3, dtype=dtype, device=device)
        waiting = torch.arange(count, device=device)
        for _ in range(ROUNDS):
            if len(waiting) == 0:
                break
            own = bump[waiting]
            face = torch.searchsorted(cumulative[own], uniform(len(waiting), 1)).squeeze(1)
            face = face.clamp_max(cumulative.shape[1] - 1)
            proposed = place(table, face, uniform_coordinates(uniform(len(waiting), 2)).to(dtype))
            squared = (proposed - center[waiting]).square().sum(-1)
            height = (-squared / (2 * self.scale**2) - tops[own, face]).exp()
            x[waiting] = proposed
            waiting = waiting[uniform(len(waiting)) >= height]
        return x.reshape(*shape, 3)

    def _log_density(self, x: Tensor) -> Tensor:
        centers = torch.tensor(self.centers, dtype=x.dtype, device=x.device)
        normalizers = _log_normalizers(self._mesh, self.centers, self.scale)
        logs = [math.log(w) - z for w, z in zip(self.mixture, normalizers, strict=True)]
        offset = torch.tensor(logs, dtype=x.dtype, device=x.device)
        squared = (x.unsqueeze(-2) - centers).square().sum(-1)
        return torch.logsumexp(offset - squared / (2 * self.scale**2), -1)


def _on_host(mesh: Mesh) -> Tables:
    return tables(mesh.geometry, torch.float64, torch.device("cpu"))


@functools.lru_cache(maxsize=32)
def _log_normalizers(mesh: Mesh, centers: tuple[Center, ...], scale: float) -> list[float]:
    """log Z_k: the three-point rule of degree 2 on PARTS^2 equal pieces of every triangle."""
    table = _on_host(mesh)
    points = []
    for i in range(PARTS):
        for j in range(PARTS - i):
            whole = [(i, j), (i + 1, j), (i, j + 1)]
            points.append(whole)
            if i + j < PARTS - 1:
                points.append([(i + 1, j + 1), (i + 1, j), (i, j + 1)])
    pieces = torch.tensor(points, dtype=torch.float64) / PARTS
    pieces = torch.cat([1 - pieces.sum(-1, keepdim=True), pieces], -1)  # (pieces, corner, barycentric)
    inner = torch.full((3, 3), 1 / 6, dtype=torch.float64).fill_diagonal_(2 / 3)
    b = (inner @ pieces).reshape(-1, 3)
    x = b @ table.corners  # (F, points, 3)
    out = []
    for center in centers:
        squared = (x - torch.tensor(center, dtype=torch.float64)).square().sum(-1)
        out.append(float(((-squared / (2 * scale**2)).exp().mean(-1) * table.areas).sum().log()))
    return out


@functools.lru_cache(maxsize=32)
def _proposal(mesh: Mesh, centers: tuple[Center, ...], scale: float) -> tuple[Tensor, Tensor]:
    """Per bump the cumulative probabilities of the faces and the largest log-height on each, ``(K, F)``."""
    table = _on_host(mesh)
    faces = torch.arange(len(table.areas))
    points = torch.tensor(centers, dtype=torch.float64)
    tops = -squared_distances(table, faces.expand(len(points), -1), points) / (2 * scale**2)
    mass = table.areas * tops.exp()
    return (mass / mass.sum(1, keepdim=True)).cumsum(1), tops
