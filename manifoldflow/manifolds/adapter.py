"""geoopt's manifolds as ours (hyperbolic, SPD, ...), and ours as geoopt's, for its optimisers."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.rotation import compose, hat, quaternion_conjugate, quaternion_multiply
from manifoldflow.manifolds.simplex import Simplex
from manifoldflow.manifolds.so3 import SO3


@dataclass(frozen=True)
class FromGeoopt(Manifold):
    """A geoopt manifold with our methods: ``FromGeoopt(geoopt.PoincareBall(), (3,))``.

    ======================  ==========================
    ours                    geoopt's
    ======================  ==========================
    exp, log                expmap, logmap
    project, to_tangent     projx, proju
    transport(x, u, y)      transp(x, y, u)
    ======================  ==========================

    Paths need ``logmap`` (PoincareBall, Lorentz, SymmetricPositiveDefinite, ... have it; Stiefel has none). Use
    float64:
    geoopt's formulas lose digits in float32.

    Args:
        manifold: a geoopt manifold object.
        shape: shape of one point, ``(n,)`` or ``(n, m)``: geoopt's objects do not hold it.

    Raises:
        ValueError: if the number of axes of ``shape`` is not that of the manifold.
    """

    manifold: Any
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != self.manifold.ndim:
            raise ValueError(f"{self.manifold.name}: a point has {self.manifold.ndim} axes, got shape {self.shape}")

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """Number of axes of a point."""
        return len(self.shape)

    @property
    def tangent_ndim(self) -> int:  # type: ignore[override]
        """Number of axes of a tangent, that of a point."""
        return len(self.shape)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def dim(self) -> int:
        """Rank of the projection onto a tangent space."""
        return _tangent_rank(self.manifold, self.shape)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return (
            self.manifold.origin(*self.shape, dtype=dtype, device=device)
            .as_subclass(Tensor)
            .detach()
            .expand(*shape, *self.shape)
        )

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return self.manifold.expmap(x, u)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.manifold.logmap(x, y)

    def project(self, x: Tensor) -> Tensor:
        return self.manifold.projx(x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return self.manifold.proju(x, u)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        # With keepdim: geoopt 0.5 broadcasts the conformal factor of a ball along a wrong axis without it.
        value = self.manifold.inner(x, u, v, keepdim=True)
        return value.reshape(value.shape[: value.ndim - len(self.shape)])

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return self.manifold.dist(x, y)

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.manifold.transp(x, y, u)

    def tangent_basis(self, x: Tensor) -> Tensor:
        """The projected coordinate axes, made orthonormal in the metric by an eigendecomposition of their Gram
        matrix."""
        axes = torch.eye(self.origin().numel(), dtype=x.dtype, device=x.device).unflatten(-1, self.shape)
        at = x.unsqueeze(-1 - len(self.shape))
        span = self.to_tangent(at, axes.expand(*x.shape[: x.ndim - len(self.shape)], *axes.shape))
        axis = -1 - len(self.shape)
        gram = self.inner(at.unsqueeze(axis), span.unsqueeze(axis), span.unsqueeze(axis - 1))
        value, vector = torch.linalg.eigh(gram)
        combine = vector[..., -self.dim :] * value[..., -self.dim :].rsqrt().unsqueeze(-2)
        return (combine.mT @ span.flatten(-len(self.shape))).unflatten(-1, self.shape)

    def residual(self, x: Tensor) -> Tensor:
        """Distance moved by the projection, in the largest coordinate."""
        return (self.project(x) - x).abs().flatten(x.ndim - len(self.shape)).amax(-1)


@functools.lru_cache(maxsize=64)
def _tangent_rank(manifold: Any, shape: tuple[int, ...]) -> int:
    x = manifold.origin(*shape, dtype=torch.float64).as_subclass(Tensor).detach()
    axes = torch.eye(x.numel(), dtype=torch.float64).unflatten(-1, shape)
    span = manifold.proju(x.expand_as(axes), axes).flatten(1)
    return int(torch.linalg.matrix_rank(span))


def ToGeoopt(manifold: Manifold) -> Any:
    """A ``geoopt.manifolds.Manifold`` for ``geoopt.ManifoldParameter`` and the Riemannian optimisers of geoopt.

    geoopt's tangents have the shape of a point. On :class:`SO3` they are ``R hat(w)``, on :class:`UnitQuaternion`
    ``q (0, w) / 2`` and on the Fisher-Rao :class:`Simplex` the rates of change of p; the metric stays ours (length on
    rotations is the angle), and Euclidean gradients become Riemannian ones by the transpose of these maps.

    Raises:
        ImportError: if geoopt is not installed.
    """
    return _geoopt_class()(manifold)


def _push(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """Our tangent as the ambient velocity of the point."""
    if isinstance(manifold, SO3):
        return compose(x, hat(u))
    if isinstance(manifold, UnitQuaternion):
        return 0.5 * quaternion_multiply(x, torch.cat([torch.zeros_like(u[..., :1]), u], -1))
    return manifold.rate(x, u) if isinstance(manifold, Simplex) else u


def _pull(manifold: Manifold, x: Tensor, v: Tensor) -> Tensor:
    """The inverse of :func:`_push` on tangent vectors; drops normal parts."""
    if isinstance(manifold, SO3):
        return 0.5 * _vee(compose(x.mT, v))
    if isinstance(manifold, UnitQuaternion):
        return 2 * quaternion_multiply(quaternion_conjugate(x), v)[..., 1:]
    if isinstance(manifold, Simplex) and manifold.metric == "fisher_rao":
        return manifold.to_tangent(x, torch.where(x > 0, v / x.clamp_min(torch.finfo(x.dtype).tiny).sqrt(), 0.0))
    return manifold.to_tangent(x, v)


def _gradient(manifold: Manifold, x: Tensor, g: Tensor) -> Tensor:
    """The transpose of :func:`_push`: the Riemannian gradient, as our tangent, of a function with Euclidean gradient
    g."""
    if isinstance(manifold, SO3):
        return _vee(compose(x.mT, g))
    if isinstance(manifold, UnitQuaternion):
        return 0.5 * quaternion_multiply(quaternion_conjugate(x), g)[..., 1:]
    if isinstance(manifold, Simplex):
        return manifold.to_tangent(x, manifold.rate(x, g))
    return manifold.to_tangent(x, g)


def _vee(a: Tensor) -> Tensor:
    return torch.stack([a[..., 2, 1] - a[..., 1, 2], a[..., 0, 2] - a[..., 2, 0], a[..., 1, 0] - a[..., 0, 1]], -1)


@functools.lru_cache(maxsize=1)
def _geoopt_class() -> Any:
    import geoopt  # type: ignore[import-untyped]

    class Adapted(geoopt.manifolds.Manifold):
        """Our manifold behind geoopt's interface."""

        reversible = True

        def __init__(self, ours: Manifold) -> None:
            super().__init__()
            self.ours = ours
            self.name = str(ours)
            self.ndim = ours.event_ndim

        def expmap(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.exp(x, _pull(self.ours, x, u))

        def retr(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.project(self.expmap(x, u))

        def logmap(self, x: Tensor, y: Tensor) -> Tensor:
            return _push(self.ours, x, self.ours.log(x, y))

        def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
            d = self.ours.dist(x, y)
            return d.reshape(d.shape + (1,) * self.ndim) if keepdim else d

        def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
            return _push(self.ours, y, self.ours.transport(x, _pull(self.ours, x, v), y))

        def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
            a = _pull(self.ours, x, u)
            value = self.ours.inner(x, a, a if v is None else _pull(self.ours, x, v))
            return value.reshape(value.shape + (1,) * self.ndim) if keepdim else value

        def proju(self, x: Tensor, u: Tensor) -> Tensor:
            return _push(self.ours, x, _pull(self.ours, x, u))

        def projx(self, x: Tensor) -> Tensor:
            return self.ours.project(x)

        def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
            return _push(self.ours, x, _gradient(self.ours, x, u))

        def origin(self, *size: Any, dtype: Any = None, device: Any = None, seed: int | None = 42) -> Any:
            shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
            point = self.ours.origin(tuple(shape)[: len(shape) - self.ndim], dtype=dtype, device=device)
            return geoopt.ManifoldTensor(point, manifold=self)

        def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
            off = float(self.ours.residual(x).max())
            return (True, None) if off <= atol + rtol else (False, f"the point lies {off:.3g} off {self.name}")

        def _check_vector_on_tangent(self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
            ok = torch.allclose(self.proju(x, u), u, atol=atol, rtol=rtol)
            return (True, None) if ok else (False, f"the vector is not tangent to {self.name}")

    return Adapted
