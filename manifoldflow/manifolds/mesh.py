"""Closed triangle meshes in R^3, with straight lines that are exact and distances from the Laplacian's spectrum."""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.mesh_reading import Geometry, checked_geometry, read_arrays
from manifoldflow.manifolds.mesh_search import closest
from manifoldflow.manifolds.mesh_spectral import KERNELS, Kernel, eigenpairs, spectral_weights
from manifoldflow.manifolds.mesh_tables import Tables, locate, place, tables, walk
from manifoldflow.numerics import HALF, in_full_precision, upcast

MOST_CROSSINGS = 4096
"""Edges that one straight line may cross: a bound on the loop, not a length that steps of a sampler come near to."""


@dataclass(frozen=True)
class Mesh(Manifold):
    r"""A closed triangle mesh in R^3 with the flat metric of its triangles: a surface that is curved at its vertices alone.

    Points are ``(..., 3)`` on the surface, in the units of the file; tangents ``(..., 3)`` lie in the plane of the triangle
    of their point. ``exp`` walks straight lines, unfolding triangle after triangle, so it preserves area and never leaves
    the surface. There is no closed form of ``log``: train with :class:`manifoldflow.paths.Premetric`, whose distance is

    .. math:: d(x, y)^2 = \sum_{k=1}^{n} w(\lambda_k) (\phi_k(x) - \phi_k(y))^2

    with eigenfunctions of the Laplacian, linear on triangles, and the weights :math:`\lambda^{-2}` (biharmonic),
    :math:`e^{-2 \tau \lambda}` (diffusion) or :math:`\lambda^{-1}` (commute) (Chen & Lipman 2024, section 3.2).

    Make one with :meth:`from_file` or :meth:`from_arrays`.

    Args:
        geometry: checked vertices and faces.
        name: shown in messages.
        kernel: ``"biharmonic"``, ``"diffusion"`` or ``"commute"``.
        pairs: number n of eigenpairs of the premetric.
        tau: diffusion time in length^2; area / (16 pi) if absent, 0.25 on the unit sphere.
    """

    geometry: Geometry
    name: str = "mesh"
    kernel: Kernel = "biharmonic"
    pairs: int = 100
    tau: float | None = None
    is_homogeneous: ClassVar[bool] = False
    has_ambient_metric: ClassVar[bool] = True
    dim: ClassVar[int] = 2  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"Mesh: kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"Mesh: tau must be positive, got {self.tau}")
        if self.pairs < 1:
            raise ValueError(f"Mesh: pairs must be at least 1, got {self.pairs}")

    @classmethod
    def from_arrays(cls, vertices: ArrayLike, faces: ArrayLike, *, name: str = "mesh", **options: Any) -> "Mesh":
        """A mesh from ``(V, 3)`` vertices and ``(F, 3)`` faces, vertex numbers from 0.

        Args:
            vertices, faces: the mesh; unused vertices are dropped.
            name: shown in messages.
            options: ``kernel``, ``pairs``, ``tau``.

        Raises:
            ValueError: it is not a closed, edge-manifold, consistently oriented mesh in one piece.
        """
        return cls(checked_geometry(vertices, faces, name), name, **options)

    @classmethod
    def from_file(cls, path: str | Path, **options: Any) -> "Mesh":
        """A mesh from an OBJ, OFF, PLY or STL file, as it lies there; see :meth:`from_arrays`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or is not a closed manifold mesh.
        """
        path = Path(path)
        return cls.from_arrays(*read_arrays(path), name=path.name, **options)

    def with_premetric(self, kernel: Kernel, *, pairs: int | None = None, tau: float | None = None) -> "Mesh":
        """The same mesh with another premetric."""
        return replace(self, kernel=kernel, pairs=self.pairs if pairs is None else pairs, tau=tau)

    def __str__(self) -> str:
        return f"Mesh({self.name}: {self.geometry.counts[0]} vertices, {self.geometry.counts[1]} faces)"

    __repr__ = __str__

    # ---------------------------------------------------------------- points

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3,)

    @property
    def area(self) -> float:
        """Total area."""
        return tables(self.geometry, torch.float64, torch.device("cpu")).area

    @property
    def log_volume(self) -> float:
        return math.log(self.area)

    def tables(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tables:
        """Connectivity, normals, areas and the rest, see :class:`Tables`."""
        dtype = dtype or torch.get_default_dtype()
        return tables(self.geometry, torch.float32 if dtype in HALF else dtype, torch.device(device or "cpu"))

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """The middle of the first face."""
        return self.tables(dtype, device).corners[0].mean(0).to(dtype).expand(*shape, 3).clone()

    def face_of(self, x: Tensor) -> Tensor:
        """Number of the face that holds ``x``, shape ``(...)``; of the nearest one, for points a little off the surface."""
        return locate(self._at(x), upcast(x).reshape(-1, 3))[0].reshape(x.shape[:-1])

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        """The closest point of the surface, exact for any ``x``; of several the one on the face of the lowest number."""
        flat = x.reshape(-1, 3)
        return place(self._at(x), *closest(self._at(x), flat)).reshape(x.shape)

    def residual(self, x: Tensor) -> Tensor:
        """Distance to the surface."""
        return torch.linalg.vector_norm(upcast(x) - self.project(upcast(x)), dim=-1)

    def check(self, x: Tensor, atol: float = 1e-4) -> None:
        """As :meth:`Manifold.check`; on meshes larger than 1 the tolerance grows with the root of their area."""
        super().check(x, atol * max(1.0, math.sqrt(self.area)))

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniform by area: a face with probability proportional to its area, then a uniform point on it."""
        table = self.tables(dtype, device)
        draws = torch.rand(math.prod(shape), 3, generator=generator, dtype=torch.float64, device=device)
        face = torch.searchsorted(table.cumulative, draws[:, 0].contiguous()).clamp_max(len(table.areas) - 1)
        return place(table, face, uniform_coordinates(draws[:, 1:]).to(table.corners.dtype)).reshape(*shape, 3)

    # ---------------------------------------------------------------- tangents

    @in_full_precision
    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        r"""Turn an ambient vector into a tangent: first orthogonal to a continuous normal, then in the plane of the face.

        .. math:: P_x u = w - \langle w, n \rangle K(x), \quad w = u - \langle u, N \rangle N / |N|^2, \quad
            K = \sum_i \omega_i \frac{n_i + c_i e_i}{\langle n_i, n \rangle}, \quad
            \omega_i = \frac{b_j b_k}{b_1 b_2 + b_2 b_3 + b_3 b_1}, \quad
            c_i = \frac{\langle N, e_i \rangle}{\langle N, n_i \rangle}

        with the normal n of the face, its edges' directions :math:`e_i` and mean normals :math:`n_i` of both faces there, and
        :math:`N = \sum_j b_j N_j` of the vertex normals. A tangent is returned as it is.

        On an edge K is the same for both faces and lies in the plane of :math:`e_i` and :math:`n_i`, so as much of a
        continuous ambient field leaves one face as enters the other. The orthogonal projection (K = n, w = u) does not do
        that: what it loses at the edges adds up to the mean curvature times the normal part, the divergence on the faces
        misses it, and densities would not integrate to 1. K turns quickly near a vertex, whose flattened neighbourhood does
        not close; w has so little left of the normal part that this does not matter.
        """
        x, u = torch.broadcast_tensors(x, u)
        table, flat, vector = self._at(x), x.reshape(-1, 3), u.reshape(-1, 3)
        face, b = locate(table, flat)
        flat_normal = table.normals[face]
        height = (flat_normal * vector).sum(-1, keepdim=True)
        along, middles = table.along[face], table.middles[face]
        normal = (b.unsqueeze(-2) @ table.corner_normals[face]).squeeze(-2)
        slant = (along @ normal.unsqueeze(-1)) / (middles @ normal.unsqueeze(-1)).clamp_min(0.2)
        products = b.clamp_min(1e-6)
        products = products.roll(-1, -1) * products.roll(1, -1)
        weights = products / (products.sum(-1, keepdim=True) * table.leans[face])
        direction = (weights.unsqueeze(-2) @ (middles + slant * along)).squeeze(-2)
        share = (normal * vector).sum(-1, keepdim=True) / normal.square().sum(-1, keepdim=True).clamp_min(1e-12)
        level = vector - share * normal
        left = (flat_normal * level).sum(-1, keepdim=True) / (flat_normal * direction).sum(-1, keepdim=True)
        size = vector.detach().abs().amax(-1, keepdim=True)
        is_tangent = height.detach().abs() <= (1e-4 if u.dtype == torch.float32 else 1e-9) * size
        out = torch.where(is_tangent, vector - height * flat_normal, level - left * direction)
        return out.reshape(x.shape)

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def tangent_basis(self, x: Tensor) -> Tensor:
        face = locate(self._at(x), upcast(x).reshape(-1, 3))[0]
        return self._at(x).basis[face].reshape(*x.shape[:-1], 2, 3).to(x.dtype)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """The end of the straight line from ``x`` with velocity ``u``: unfolded over every edge that it meets."""
        return self.walk(x, u)[0]

    @in_full_precision
    def walk(self, x: Tensor, u: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Go straight from ``x`` with velocity ``u`` for unit time and take vectors along.

        Args:
            x: points ``(..., 3)``.
            u: tangents ``(..., 3)``.
            carried: tangents at ``x``, transported along the line; ``u`` alone if absent.

        Returns:
            The end point, and the transported vectors.
        """
        x, u, *others = torch.broadcast_tensors(x, u, *(carried or (u,)))
        table = self._at(u)
        face, b = locate(table, x.reshape(-1, 3).to(u.dtype))
        hats = table.hats[face]
        rates = (hats @ u.reshape(-1, 3, 1)).squeeze(-1)
        vectors = torch.stack([v.reshape(-1, 3) for v in others], 1)
        turned = (vectors @ hats.mT) if carried else None
        face, b, rates, turned = walk(table, face, b, rates, turned, MOST_CROSSINGS)
        turned = rates.unsqueeze(1) if turned is None else turned
        ends = turned @ table.corners[face]
        return place(table, face, b).reshape(u.shape), *(v.reshape(u.shape) for v in ends.unbind(1))

    @in_full_precision
    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        """``v`` at ``exp(x, w)`` brought back along that line: triangles are flat, so exp is an isometry of the strip."""
        x, w, v = torch.broadcast_tensors(x, w, v)
        basis = self.tangent_basis(x)
        _, first, second = self.walk(x, w, basis[..., 0, :], basis[..., 1, :])
        along = torch.stack([(first * v).sum(-1), (second * v).sum(-1)], -1)
        return (along.unsqueeze(-1) * basis).sum(-2)

    @in_full_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        r"""Turn ``u`` by the smallest rotation that takes the normal of the face of ``x`` to that of ``y``.

        Exact within a face and between neighbours; farther apart it differs from the transport along a path by the
        curvature enclosed, which is of second order in the distance. Along a known line :meth:`walk` and
        :meth:`dexp_inv` are exact.
        """
        x, u, y = torch.broadcast_tensors(x, u, y)
        table = self._at(u)
        n, m = (table.normals[locate(table, p.reshape(-1, 3).to(u.dtype))[0]] for p in (x, y))
        vector = u.reshape(-1, 3)
        # R u = u - (m.u)(n + m) / (1 + n.m) for u orthogonal to n.
        share = (m * vector).sum(-1, keepdim=True) / (1 + (n * m).sum(-1, keepdim=True)).clamp_min(1e-6)
        return (vector - share * (n + m)).reshape(u.shape)

    def log(self, x: Tensor, y: Tensor) -> NoReturn:  # type: ignore[override]
        """Not available in closed form.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{self} has no closed form of log, dist or geodesic; "
            "use path=Premetric() (manifoldflow.paths) in the flow, and premetric(x, y) for distances"
        )

    # ---------------------------------------------------------------- spectrum

    @property
    def eigenvalues(self) -> Tensor:
        """The ``pairs`` smallest positive eigenvalues, float64 ``(pairs,)``, in 1 / length^2."""
        return torch.from_numpy(eigenpairs(self.geometry, self.pairs)[0])

    def features(self, x: Tensor, count: int | None = None) -> Tensor:
        """Eigenfunctions at ``x`` as inputs of networks, ``(..., count)``, with mean square 1 over the surface.

        Args:
            x: points ``(..., 3)``.
            count: number of eigenfunctions, all ``pairs`` if absent.
        """
        count = self.pairs if count is None else count
        table = self._at(x)
        functions = _functions(self.geometry, self.pairs, table.corners.dtype, x.device)[:, :count]
        face, b = locate(table, upcast(x).reshape(-1, 3))
        return (b.unsqueeze(-1) * functions[table.faces[face]]).sum(-2).reshape(*x.shape[:-1], count).to(x.dtype)

    @in_full_precision
    def premetric(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The spectral distance and its gradient with respect to ``x``.

        Args:
            x, y: points ``(..., 3)``.

        Returns:
            Distances ``(...)``, and tangents ``(..., 3)`` at ``x``; the gradient is 0 where the distance is.
        """
        x, y = torch.broadcast_tensors(x, y)
        table = self._at(x)
        face, b = locate(table, x.reshape(-1, 3))
        squared, slopes = self._descent(table, face, b, self._embed(table, y.reshape(-1, 3)))
        distance = squared.sqrt()
        gradient = (slopes.unsqueeze(-1) * table.hats[face]).sum(-2) / (2 * distance).clamp_min(1e-12).unsqueeze(-1)
        return distance.reshape(x.shape[:-1]), gradient.reshape(x.shape)

    def premetric_path(self, x0: Tensor, x1: Tensor, shares: Tensor, reach: Tensor | None = None) -> Tensor:
        r"""Follow :math:`-d \nabla d / |\nabla d|^2` from ``x0``: each step shortens d(x, x1) by the given share of itself.

        The same as the loop over ``premetric`` and ``exp``, in barycentric coordinates throughout.

        Args:
            x0, x1: points ``(N, 3)``.
            shares: ``(steps, N)`` or ``(steps, 1)``, each in [0, 1].
            reach: longest steps in length, of the shape of ``shares``; no bound if absent.

        Returns:
            Points ``(steps + 1, N, 3)``, the first of them x0.
        """
        table = self._at(x0)
        target = self._embed(table, x1)
        grams = _stiffness(self.geometry, x0.dtype, x0.device)
        face, b = locate(table, x0)
        seen = [place(table, face, b)]
        for i, share in enumerate(shares):
            squared, slopes = self._descent(table, face, b, target)
            gradient = (slopes.unsqueeze(-2) @ grams[face]).squeeze(-2)  # barycentric rates of the gradient of d^2
            steepness = (gradient * slopes).sum(-1)
            # d grad d / |grad d|^2 = 2 d^2 grad(d^2) / |grad(d^2)|^2
            scale = 2 * share * squared / steepness.clamp_min(1e-30)
            if reach is not None:
                scale = torch.minimum(scale, reach[i] / steepness.clamp_min(1e-30).sqrt())
            face, b, _, _ = walk(table, face, b, -scale.unsqueeze(-1) * gradient, None, MOST_CROSSINGS)
            seen.append(place(table, face, b))
        return torch.stack(seen)

    def _embed(self, table: Tables, y: Tensor) -> Tensor:
        """Spectral coordinates whose Euclidean distance is the premetric, ``(N, pairs)``."""
        face, b = locate(table, y)
        return (b.unsqueeze(-2) @ self._embedding(y)[table.faces[face]]).squeeze(-2)

    def _descent(self, table: Tables, face: Tensor, b: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """d^2 ``(N,)`` and its derivatives by the barycentric coordinates ``(N, 3)``."""
        at_corners = self._embedding(b)[table.faces[face]]
        difference = (b.unsqueeze(-2) @ at_corners) - target.unsqueeze(-2)
        slopes = 2 * (at_corners @ difference.mT).squeeze(-1)
        return difference.square().sum((-2, -1)), slopes

    def _embedding(self, like: Tensor) -> Tensor:
        return _embedding(self.geometry, self.pairs, self.kernel, self.tau, like.dtype, like.device)

    def _at(self, x: Tensor) -> Tables:
        return tables(self.geometry, torch.float32 if x.dtype in HALF else x.dtype, x.device)


def uniform_coordinates(draws: Tensor) -> Tensor:
    """Barycentric coordinates ``(N, 3)`` uniform on a triangle from two uniform numbers ``(N, 2)``."""
    root = draws[:, :1].sqrt()
    return torch.cat([1 - root, root * (1 - draws[:, 1:]), root * draws[:, 1:]], -1)


@functools.lru_cache(maxsize=32)
def _functions(geometry: Geometry, pairs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    area = tables(geometry, torch.float64, torch.device("cpu")).area
    return torch.from_numpy(eigenpairs(geometry, pairs)[1] * math.sqrt(area)).to(device, dtype)


@functools.lru_cache(maxsize=32)
def _embedding(
    geometry: Geometry, pairs: int, kernel: Kernel, tau: float | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Eigenfunctions times the roots of their weights, ``(V, pairs)``."""
    values, functions = eigenpairs(geometry, pairs)
    if tau is None:
        tau = tables(geometry, torch.float64, torch.device("cpu")).area / (16 * math.pi)
    return torch.from_numpy(functions * spectral_weights(values, kernel, tau) ** 0.5).to(device, dtype)


@functools.lru_cache(maxsize=32)
def _stiffness(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Inner products of the gradients of the barycentric coordinates, ``(F, 3, 3)``."""
    hats = tables(geometry, torch.float64, torch.device("cpu")).hats
    return (hats @ hats.mT).to(device, dtype)
