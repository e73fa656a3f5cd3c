"""geoopt's manifolds as ours (hyperbolic, SPD, ...), and ours as geoopt's, for its optimisers."""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.checked import forward_to
from manifoldflow.manifolds.hyperbolic import Lorentz, PoincareBall
from manifoldflow.manifolds.spd import SPD
from manifoldflow.manifolds.sphere import Sphere


@dataclass(frozen=True, eq=False)
class FromGeoopt(Manifold):
    r"""A geoopt manifold with our methods: ``FromGeoopt(geoopt.PoincareBall(), (3,))``.

    ======================  ==========================
    ours                    geoopt's
    ======================  ==========================
    exp, log                expmap, logmap
    project, to_tangent     projx, proju
    transport(x, u, y)      transp(x, y, u)
    inner                   inner
    ======================  ==========================

    geoopt's ``PoincareBall``, ``Lorentz``, ``SymmetricPositiveDefinite`` (affine-invariant) and ``Sphere`` are computed by
    :class:`~manifoldflow.manifolds.hyperbolic.PoincareBall`, :class:`~manifoldflow.manifolds.hyperbolic.Lorentz`,
    :class:`~manifoldflow.manifolds.spd.SPD` and :class:`Sphere`, the same geometry in the same coordinates: geoopt's formulas
    lose half of the digits of close points and have no derivatives in forward mode, or none where eigenvalues coincide.
    Their curvature is read once, here. Every other manifold is geoopt's own; use float64 there. Paths need its ``logmap``
    (Stiefel has none),
    likelihoods a metric that is that of the surrounding space.

    Args:
        manifold: a geoopt manifold object.
        shape: shape of one point, ``(n,)`` or ``(n, m)``: geoopt's objects do not hold it.

    Raises:
        ValueError: if the number of axes of ``shape`` is not that of the manifold, the matrices are not square, or the
            metric is one that geoopt has only the distance of.
    """

    manifold: Any
    shape: tuple[int, ...]
    closed_form: Manifold | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.shape) != self.manifold.ndim:
            raise ValueError(f"{self.manifold.name}: a point has {self.manifold.ndim} axes, got shape {self.shape}")
        object.__setattr__(self, "closed_form", _closed_form(self.manifold, tuple(self.shape)))

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
        return self.closed_form.dim if self.closed_form else _tangent_rank(self.manifold, self.shape)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        if self.closed_form:
            return self.closed_form.origin(shape, dtype=dtype, device=device)
        return (
            self.manifold.origin(*self.shape, dtype=dtype, device=device)
            .as_subclass(Tensor)
            .detach()
            .expand(*shape, *self.shape)
        )

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return self.closed_form.exp(x, u) if self.closed_form else self.manifold.expmap(x, u)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.closed_form.log(x, y) if self.closed_form else self.manifold.logmap(x, y)

    def project(self, x: Tensor) -> Tensor:
        return self.closed_form.project(x) if self.closed_form else self.manifold.projx(x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return self.closed_form.to_tangent(x, u) if self.closed_form else _projected(self.manifold, x, u)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        if self.closed_form:
            return self.closed_form.inner(x, u, v)
        # With keepdim: geoopt 0.5 broadcasts the conformal factor of a ball along a wrong axis without it.
        value = self.manifold.inner(x, u, v, keepdim=True)
        return value.reshape(value.shape[: value.ndim - len(self.shape)])

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return self.closed_form.dist(x, y) if self.closed_form else self.manifold.dist(x, y)

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.closed_form.transport(x, u, y) if self.closed_form else self.manifold.transp(x, y, u)

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        return self.closed_form.rate(x, u) if self.closed_form else u

    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        return self.closed_form.from_rate(x, v) if self.closed_form else self.to_tangent(x, v)

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        if self.closed_form:
            return self.closed_form.riemannian_gradient(x, g)
        if _is_birkhoff(self.manifold):
            return _birkhoff(
                x, self.shape[-1] * x * g
            )  # geoopt's inner product is a mean over rows, its gradient is not
        return self.manifold.egrad2rgrad(x, g)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FromGeoopt) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        """What makes two of them the same geometry: geoopt's objects are equal to themselves alone."""
        made = self.closed_form or tuple((k, str(v.tolist())) for k, v in sorted(self.manifold.state_dict().items()))
        return (type(self), type(self.manifold), str(self.manifold), made, tuple(self.shape))

    def tangent_basis(self, x: Tensor) -> Tensor:
        """The projected coordinate axes, made orthonormal in the metric by an eigendecomposition of their Gram
        matrix."""
        if self.closed_form:
            return self.closed_form.tangent_basis(x)
        span, at = self._span(x), x.unsqueeze(-1 - len(self.shape))
        axis = -1 - len(self.shape)
        gram = self.inner(at.unsqueeze(axis), span.unsqueeze(axis), span.unsqueeze(axis - 1))
        value, vector = torch.linalg.eigh(gram)
        combine = vector[..., -self.dim :] * value[..., -self.dim :].rsqrt().unsqueeze(-2)
        return (combine.mT @ span.flatten(-len(self.shape))).unflatten(-1, self.shape)

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The basis, and :math:`d_k[j] = \langle e_k, P_x a_j\rangle_x` for the coordinate axes :math:`a_j`."""
        if self.closed_form:
            return self.closed_form.frame_moves(x)
        _check_embedded(self.manifold)
        basis, span = self.tangent_basis(x), self._span(x)
        axis = -1 - len(self.shape)
        at = x.unsqueeze(axis).unsqueeze(axis)
        return basis, self.inner(at, basis.unsqueeze(axis), span.unsqueeze(axis - 1)).unflatten(-1, self.shape)

    def log_volume_element(self, x: Tensor) -> Tensor:
        if self.closed_form:
            return self.closed_form.log_volume_element(x)
        _check_embedded(self.manifold)
        return super().log_volume_element(x)

    def residual(self, x: Tensor) -> Tensor:
        """Distance moved by the projection, in the largest coordinate."""
        if self.closed_form:
            return self.closed_form.residual(x)
        return (self.project(x) - x).abs().flatten(x.ndim - len(self.shape)).amax(-1)

    def _span(self, x: Tensor) -> Tensor:
        """The coordinate axes, projected onto the tangent space at x, ``(..., numbers of a point, *event)``."""
        axes = torch.eye(self.origin().numel(), dtype=x.dtype, device=x.device).unflatten(-1, self.shape)
        at = x.unsqueeze(-1 - len(self.shape))
        return self.to_tangent(at, axes.expand(*x.shape[: x.ndim - len(self.shape)], *axes.shape))


forward_to(FromGeoopt, lambda adapted: adapted.closed_form)


def _closed_form(manifold: Any, shape: tuple[int, ...]) -> Manifold | None:
    """Our manifold of the same geometry and coordinates, where there is one."""
    import geoopt

    if isinstance(manifold, geoopt.PoincareBall):
        return PoincareBall(shape[0], -float(manifold.c.detach()))
    if isinstance(manifold, geoopt.Lorentz):
        return Lorentz(shape[0] - 1, -1 / float(manifold.k.detach()))
    if isinstance(manifold, geoopt.SymmetricPositiveDefinite):
        if shape[0] != shape[1]:
            raise ValueError(f"{manifold.name}: matrices must be square, got shape {shape}")
        if manifold.default_metric.value != "AIM":
            raise ValueError(
                f"geoopt has only the distance of the metric {manifold.default_metric.value!r}, its exp and log are the "
                "affine-invariant ones; use 'AIM', or manifoldflow's LogEuclideanSPD"
            )
        return SPD(shape[0])
    if isinstance(manifold, geoopt.Sphere) and getattr(manifold, "projector", None) is None and len(shape) == 1:
        return Sphere(shape[0] - 1)  # geoopt's transport projects, which shortens tangents
    return None


def _projected(manifold: Any, x: Tensor, u: Tensor) -> Tensor:
    """geoopt's ``proju``, but for two that change what is tangent already: applied again they would go on changing it."""
    import geoopt

    if isinstance(manifold, geoopt.CanonicalStiefel):
        inside = x.mT @ u
        return u - 0.5 * x @ (inside + inside.mT)
    return _birkhoff(x, u) if _is_birkhoff(manifold) else manifold.proju(x, u)


def _is_birkhoff(manifold: Any) -> bool:
    import geoopt

    return isinstance(manifold, geoopt.BirkhoffPolytope)


def _birkhoff(x: Tensor, u: Tensor) -> Tensor:
    r"""The projection that is orthogonal in the metric :math:`\sum u v / x`: :math:`u - (a_i + b_j) x_{ij}` with row and column
    sums 0."""
    rows, columns = x.sum(-1, keepdim=True), x.sum(-2, keepdim=True)
    inner = torch.diag_embed(columns.squeeze(-2)) - x.mT @ (x / rows)
    # a + const, b - const is the same: fixed by adding a matrix of ones
    right = u.sum(-2).unsqueeze(-1) - x.mT @ (u.sum(-1, keepdim=True) / rows)
    b = torch.linalg.solve(inner + torch.ones_like(inner) / x.shape[-1], right)
    a = (u.sum(-1, keepdim=True) - x @ b) / rows
    return u - (a + b.mT) * x


def _check_embedded(manifold: Any) -> None:
    import geoopt

    flat = (geoopt.Euclidean, geoopt.Sphere, geoopt.EuclideanStiefel)
    if not isinstance(manifold, flat):
        raise NotImplementedError(
            f"no divergence on geoopt's {manifold.name}: its volume element is not known here. Subclass FromGeoopt and give "
            "frame_moves and log_volume_element"
        )


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
    rotations is the angle), and Euclidean gradients become Riemannian ones by :meth:`Manifold.riemannian_gradient`.

    geoopt's own manifolds are handed back as they are, those that have a closed form here in that form.

    Raises:
        ImportError: if geoopt is not installed.
    """
    if isinstance(manifold, FromGeoopt):
        return manifold.manifold if manifold.closed_form is None else _geoopt_class()(manifold.closed_form)
    return _geoopt_class()(manifold)


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

        def __reduce__(self) -> Any:
            return ToGeoopt, (self.ours,)  # the class is made on first use, so pickle cannot find it by name

        def expmap(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.exp(x, self.ours.from_rate(x, u))

        def retr(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.project(self.expmap(x, u))

        def logmap(self, x: Tensor, y: Tensor) -> Tensor:
            return self.ours.rate(x, self.ours.log(x, y))

        def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
            d = self.ours.dist(x, y)
            return d.reshape(d.shape + (1,) * self.ndim) if keepdim else d

        def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
            return self.ours.rate(y, self.ours.transport(x, self.ours.from_rate(x, v), y))

        def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
            a = self.ours.from_rate(x, u)
            value = self.ours.inner(x, a, a if v is None else self.ours.from_rate(x, v))
            return value.reshape(value.shape + (1,) * self.ndim) if keepdim else value

        def proju(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.rate(x, self.ours.from_rate(x, u))

        def projx(self, x: Tensor) -> Tensor:
            return self.ours.project(x)

        def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
            return self.ours.rate(x, self.ours.riemannian_gradient(x, u))

        def origin(self, *size: Any, dtype: Any = None, device: Any = None, seed: int | None = 42) -> Any:
            shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
            point = self.ours.origin(tuple(shape)[: len(shape) - self.ndim], dtype=dtype, device=device)
            return geoopt.ManifoldTensor(point, manifold=self)

        def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
            off = float(self.ours.residual(x.detach()).max())
            return (True, None) if off <= atol + rtol else (False, f"the point lies {off:.3g} off {self.name}")

        def _check_vector_on_tangent(self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
            ok = torch.allclose(self.proju(x, u), u, atol=atol, rtol=rtol)
            return (True, None) if ok else (False, f"the vector is not tangent to {self.name}")

    return Adapted
