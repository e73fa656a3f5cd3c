"""What every manifold offers, and the parts that follow from exp and log alone."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds import radial
from manifoldflow.manifolds.laws import Laws
from manifoldflow.manifolds.views import Views


def expand_time(t: Tensor | float, like: Tensor, event_ndim: int) -> Tensor | float:
    """Give a time of batch shape ``(...)`` trailing axes so that it multiplies tangents of ``event_ndim`` axes.

    ``t`` may have fewer axes than the batch of ``like``; it is then taken as belonging to the leading axes.
    """
    if not isinstance(t, Tensor) or t.ndim == 0:
        return t
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim)) if t.ndim <= like.ndim - event_ndim else t


class Manifold(Laws, Views):
    r"""A Riemannian manifold with closed-form geodesics.

    A subclass is a frozen dataclass that holds hyper-parameters only (no tensors, no device, no dtype). Points are
    tensors of shape ``(..., *event)``; tangent vectors have shape ``(..., *tangent_event)``; all leading axes are batch
    and broadcast.

    It must give ``event_shape, origin, exp, log, project, to_tangent, tangent_basis`` and, if compact, ``log_volume`` and
    ``sample_uniform``. Everything else has a form here that is right on every manifold; a closed form is faster and has more
    digits. What distributions, paths and networks call is in :class:`~manifoldflow.manifolds.laws.Laws` and
    :class:`~manifoldflow.manifolds.views.Views`.

    Attributes:
        event_ndim: number of axes of one point (1 for vectors, 2 for matrices).
        tangent_ndim: number of axes of one tangent vector.
        dim: intrinsic dimension (a field or a property of the subclass).
    """

    event_ndim: ClassVar[int] = 1
    tangent_ndim: ClassVar[int] = 1
    is_discrete: ClassVar[bool] = False
    has_corners: ClassVar[bool] = False  # points may be categories, and networks may predict logits of them

    if TYPE_CHECKING:  # not a real property: a subclass may make it a dataclass field

        @property
        def dim(self) -> int:
            """Intrinsic dimension."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one point."""
        raise NotImplementedError

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """A fixed point of the manifold, repeated over the batch ``shape``; padding holds it."""
        raise NotImplementedError

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """The point ``(..., *event)`` reached from ``x`` ``(..., *event)`` in unit time along the geodesic with velocity ``u``
        ``(..., *tangent_event)``."""
        raise NotImplementedError

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest tangent vector at ``x`` with ``exp(x, log(x, y)) == y``: points ``(..., *event)`` to tangents
        ``(..., *tangent_event)``."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """The closest point of the manifold to an ambient ``x``, both ``(..., *event)``."""
        raise NotImplementedError

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The orthogonal projection of an ambient ``u`` onto the tangent space at ``x``, both ``(..., *tangent_event)``."""
        raise NotImplementedError

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Parallel transport of ``u`` ``(..., *tangent_event)`` from ``x`` to ``y`` ``(..., *event)``, the shortest way.

        Here by a rung of the pole ladder: exact on symmetric spaces.
        """
        return radial.pole_ladder(self, x, u, y)

    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        r"""The inverse differential of exp, :math:`(d\exp_x)_w^{-1} v`: what ``w`` must change by for exp(x, w) to move by ``v``.

        This generic form builds the Jacobian column by column (``dim`` forward-mode derivatives and one linear solve): it
        needs ``tangent_basis`` and tangents in the coordinates of points, and is slow. Subclasses have closed forms.

        Args:
            x: points ``(..., *event)``.
            w: tangents at ``x``, shorter than the distance to a conjugate point (pi on the sphere, 2 pi for rotations).
            v: tangents at ``exp(x, w)``.

        Returns:
            Tangents at ``x``.
        """
        basis = self.tangent_basis(x).movedim(-1 - self.tangent_ndim, 0)

        def move(at: Tensor) -> Tensor:
            return self.exp(x, at)

        moved = torch.stack([torch.func.jvp(move, (w,), (e.expand_as(w).contiguous(),))[1] for e in basis], -1)
        jacobian = moved.flatten(-1 - self.event_ndim, -2)
        gram = jacobian.mT @ jacobian
        coordinates = torch.linalg.solve(gram, jacobian.mT @ v.flatten(-self.tangent_ndim).unsqueeze(-1)).squeeze(-1)
        weights = coordinates.movedim(-1, 0)
        return (weights.reshape(weights.shape + (1,) * self.tangent_ndim) * basis).sum(0)

    def tangent_basis(self, x: Tensor) -> Tensor:
        """An orthonormal basis of the tangent space at ``x``, shape ``(..., dim, *tangent_event)``."""
        raise NotImplementedError

    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`\log |\det (d\exp_x)_u|`, the factor by which exp stretches volumes at the tangent ``u``, ``(...)``.

        0 on flat spaces, -inf at conjugate points. Here by the determinant of the derivatives of exp, in float64.
        """
        return radial.log_exp_volume(self, x, u)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        """Whether the geodesic with velocity ``u`` is the shortest way to its end, i.e. ends before the cut locus; ``(...)``."""
        length = self.inner(x, u, u).clamp_min(0).sqrt()
        return (self.dist(x, self.exp(x, u)) - length).abs() <= 1e-4 * (1 + length)

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""What the divergence of a tangent field v is made of: :math:`\sum_k \langle d_k, D_{m_k} v \rangle`.

        For an orthonormal frame :math:`e_k` of the tangent space, the velocity :math:`m_k` of the *point* that moves along
        :math:`e_k`, and the covector :math:`d_k` that takes the k-th coordinate of a tangent's rate of change.

        Returns:
            Moves ``(..., dim, *event)`` and duals ``(..., dim, *tangent_event)``. Here for tangents that are velocities of
            points: the frame and its dual in the coordinates, the same where the metric is that of the surrounding space.
        """
        basis = self.tangent_basis(x)
        if self.has_ambient_metric:
            return basis, basis
        rows = basis.flatten(-self.tangent_ndim)
        return basis, torch.linalg.solve(rows @ rows.mT, rows).reshape(basis.shape)

    def log_volume_element(self, x: Tensor) -> Tensor:
        r""":math:`\log\sqrt{\det g}` in the coordinates in which the sum of :meth:`frame_moves` is the divergence, ``(...)``.

        0 wherever that sum is the Riemannian divergence already. In general
        :math:`\mathrm{div}\, v = \sum_k \langle d_k, D_{m_k} v\rangle + D_v \log\sqrt{\det g}`.
        """
        if self.has_ambient_metric or type(self).frame_moves is not Manifold.frame_moves:
            return torch.zeros(x.shape[: x.ndim - self.event_ndim], dtype=x.dtype, device=x.device)
        rows = self.tangent_basis(x).flatten(-self.tangent_ndim)
        return -0.5 * torch.linalg.slogdet(rows @ rows.mT)[1]

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        """The velocity of the coordinates of a point that moves with the tangent ``u``, ``(..., *event)``.

        ``u`` itself where tangents are such velocities; here the derivative of exp.
        """
        zero, one = torch.zeros((), dtype=u.dtype, device=u.device), torch.ones((), dtype=u.dtype, device=u.device)
        return torch.func.jvp(lambda s: self.exp(x, s * u), (zero,), (one,))[1]

    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        """The inverse of :meth:`rate` on velocities ``v`` ``(..., *event)`` of points of the manifold, a tangent
        ``(..., *tangent_event)``; what is normal to the manifold is dropped."""
        frame = radial.frame_matrix(self, x)
        flat = v.flatten(-self.event_ndim).unsqueeze(-1)
        weight = torch.linalg.solve(frame.mT @ frame, frame.mT @ flat).squeeze(-1)
        return self._combine(x, weight)

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        r"""The Riemannian gradient, as a tangent, of a function whose derivatives by the coordinates are ``g``:
        :math:`\sum_k \langle g, m_k \rangle e_k` with the frame :math:`e_k` and its velocities :math:`m_k`.

        Args:
            x: points ``(..., *event)``.
            g: what autograd returns for them.
        """
        return self._combine(
            x, (radial.frame_matrix(self, x).mT @ g.flatten(-self.event_ndim).unsqueeze(-1)).squeeze(-1)
        )

    def _combine(self, x: Tensor, weight: Tensor) -> Tensor:
        """The tangent with these coordinates ``(..., dim)`` in :meth:`tangent_basis`."""
        n = self.tangent_ndim
        return (weight.reshape(weight.shape + (1,) * n) * self.tangent_basis(x)).sum(-1 - n)

    def residual(self, x: Tensor) -> Tensor:
        """How far ``x`` is off the manifold, shape ``(...)``; 0 on it. Here the largest coordinate that projection moves."""
        return (self.project(x) - x).abs().flatten(-self.event_ndim).amax(-1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Riemannian inner product of two tangent vectors at ``x``, shape ``(...)``."""
        return (u * v).sum(dim=tuple(range(-self.tangent_ndim, 0)))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance, shape ``(...)``."""
        u = self.log(x, y)
        squared = self.inner(x, u, u)
        is_zero = squared <= 0
        return torch.where(is_zero, 0.0, squared.where(~is_zero, 1.0).sqrt())

    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""Point and velocity at time ``t`` of the shortest geodesic from ``x0`` (t = 0) to ``x1`` (t = 1).

        .. math:: x_t = \exp_{x_0}(t \log_{x_0} x_1), \quad u_t = \log_{x_t} x_1 - \log_{x_t} x_0

        Args:
            x0, x1: points ``(..., *event)``.
            t: number, or tensor whose axes are leading batch axes of ``x0``.
        """
        u = self.log(x0, x1)
        xt = self.exp(x0, expand_time(t, u, self.tangent_ndim) * u)
        return xt, self.transport(x0, u, xt)

    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """The point ``(..., *event)`` of :meth:`geodesic` alone, where the velocity is not asked for: noised data, pictures."""
        return self.geodesic(x0, x1, t)[0]

    @property
    def log_volume(self) -> float:
        """Logarithm of the Riemannian volume of a compact manifold."""
        raise ValueError(f"{self} has infinite volume, so no uniform distribution; use Normal or WrappedNormal")

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Independent uniform points (with respect to the Riemannian volume) of a compact manifold, ``(*shape, *event)``."""
        raise ValueError(f"{self} has infinite volume, so no uniform distribution; use Normal or WrappedNormal")

    def check(self, x: Tensor, atol: float = 1e-4) -> None:
        """Raise ``ValueError`` if ``x`` has a wrong shape, holds NaN or lies off the manifold by more than ``atol``.

        This looks at values and so waits for the device: call it on input, not inside a sampler.
        """
        event = self.event_shape
        if tuple(x.shape[x.ndim - len(event) :]) != event:
            raise ValueError(f"{self}: points need shape (..., {', '.join(map(str, event))}), got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{self}: the points hold NaN or infinity")
        off = float(self.residual(x).max()) if x.numel() else 0.0
        if off > atol:
            raise ValueError(
                f"{self}: a point lies {off:.3g} off the manifold (tolerance {atol:g}); call .project(x) first"
            )
