"""The probability simplex, with the Fisher-Rao or the flat metric."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.numerics import in_full_precision

# Of starts outside of the simplex: nats per unit of length, and at most. Ten times steeper is nearer to the exact law by 1e-4
# nats, but integrators of 20 steps lose their way: 4 times the sampling error of 100,000 draws instead of none.
_STEEP, _MOST_PENALTY = 1e3, 60.0


class ProbabilityVectors(Manifold):
    """Spaces whose points are probability vectors ``(..., categories)``, whatever their metric."""

    categories: int

    @property
    def volume_power(self) -> tuple[float, float]:
        r"""(a, b) of the Riemannian volume :math:`e^b \prod_k p_k^a\, dp_1 \dots dp_{K-1}`; here of the flat metric."""
        return 0.0, 0.5 * math.log(self.categories)


@dataclass(frozen=True)
class Simplex(ProbabilityVectors):
    r"""Probability vectors ``(..., categories)``: non-negative, sum 1. The boundary and the corners (one-hot) belong
    to it.

    ``metric="fisher_rao"``: :math:`z = \sqrt p` lies on the positive orthant of a sphere and the distance is
    :math:`2 \arccos \langle \sqrt p, \sqrt q \rangle \in [0, \pi]`. A tangent at p is stored as the vector
    :math:`u = 2 \dot z = \dot p / \sqrt p`, orthogonal to :math:`\sqrt p`, with the plain inner product: the rate
    :math:`\dot p` itself vanishes at the boundary, where it could not tell directions apart (recover it as
    :meth:`rate`). A geodesic that would leave the simplex is reflected by the square.

    ``metric="flat"``: straight lines; a tangent is :math:`\dot p`, with sum 0, and ``exp`` stops at the boundary.

    Args:
        categories: number K of categories; the dimension is K - 1.
        metric: ``"fisher_rao"`` or ``"flat"``.
    """

    has_walls: ClassVar[bool] = True
    is_homogeneous: ClassVar[bool] = False

    categories: int
    metric: Literal["fisher_rao", "flat"] = "fisher_rao"

    has_corners: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.categories < 2:
            raise ValueError(f"Simplex: categories must be at least 2, got {self.categories}")
        if self.metric not in ("fisher_rao", "flat"):
            raise ValueError(f"Simplex: metric must be 'fisher_rao' or 'flat', got {self.metric!r}")

    @property
    def dim(self) -> int:
        return self.categories - 1

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.categories,)

    @property
    def _is_flat(self) -> bool:
        return self.metric == "flat"

    @property
    def _sphere(self) -> Sphere:
        return Sphere(self.categories - 1)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """The uniform distribution."""
        return torch.full((*shape, self.categories), 1 / self.categories, dtype=dtype, device=device)

    @in_full_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        if self._is_flat:
            return self.project(x + u)
        return self._sphere.exp(_root(x), 0.5 * u).square()

    @in_full_precision
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x if self._is_flat else 2 * self._sphere.log(_root(x), _root(y))

    @in_full_precision
    def mean_log(self, x: Tensor, p: Tensor) -> Tensor:
        r"""The mean of the tangents at ``x`` that lead to the corners, :math:`\sum_i p_i \log_x e_i`, in O(K).

        Fisher-Rao: :math:`\sum_i p_i\, g_i\, (e_i - z_i z)` with :math:`z = \sqrt x,\; g_i = 2 \arccos(z_i) / \sqrt{1 - x_i}`.

        Args:
            x: points ``(..., K)``.
            p: probabilities of the corners ``(..., K)``.
        """
        if self._is_flat:
            return p - x * p.sum(-1, keepdim=True)
        z, sine = _root(x), _root(1 - x)
        is_far = sine > 1e-3
        g = torch.where(is_far, torch.atan2(sine, z) / torch.where(is_far, sine, 1.0), 1 + sine.square() / 6)
        weighted = 2 * p * g
        return weighted - z * (weighted * z).sum(-1, keepdim=True)

    @in_full_precision
    def corner_evidence(self, x: Tensor, left: Tensor) -> Tensor:
        r"""Log-densities of ``x`` on the geodesics from a uniform point to each corner, up to what they share, ``(..., K)``.

        When the share r of a geodesic is left, its start is 1 / r times as far from the corner. Fisher-Rao, with
        :math:`\theta_i = \arccos \sqrt{x_i}`:

        .. math:: (K - 2) \log \frac{\sin(\theta_i / r)}{\sin \theta_i} \quad \text{where } \theta_i / r \le \pi / 2,

        and minus infinity beyond, as the start would lie outside of the simplex. Flat: 0 where :math:`x_i \ge 1 - r`. In place
        of minus infinity a penalty rises steeply, as integrators stray a little.

        Args:
            x: points ``(..., K)``.
            left: r, ``(..., 1)``, in [0, 1].
        """
        left = left.clamp_min(1e-5)
        if self._is_flat:
            return -(_STEEP * (1 - x - left).clamp_min(0) / left).clamp_max(_MOST_PENALTY)
        z, sine = _root(x), _root(1 - x)
        angle = torch.atan2(sine, z).clamp_min(1e-6)
        start, reach = angle / left, 0.5 * math.pi
        stretch = start.clamp_max(reach).sin().log() - angle.sin().log()
        return (self.categories - 2) * stretch - (_STEEP * (start - reach).clamp_min(0)).clamp_max(_MOST_PENALTY)

    def one_hot(self, tokens: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Tokens ``(...)`` in 0 .. K - 1 as corners ``(..., K)``."""
        made = torch.zeros(*tokens.shape, self.categories, dtype=dtype, device=tokens.device)
        return made.scatter_(-1, tokens.unsqueeze(-1), 1.0)

    @in_full_precision
    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return super().dist(x, y) if self._is_flat else 2 * self._sphere.dist(_root(x), _root(y))

    @in_full_precision
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        if self._is_flat:
            u = x1 - x0
            return x0 + expand_time(t, u, 1) * u, u
        z, v = self._sphere.geodesic(_root(x0), _root(x1), t)
        return z.square(), 2 * v

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        r"""The closest point in the plain Euclidean sense, :math:`\max(x - \tau, 0)` (Held et al. 1974; Duchi et al.
        2008)."""
        falling = x.sort(-1, descending=True).values
        count = torch.arange(1, self.categories + 1, dtype=x.dtype, device=x.device)
        thresholds = (falling.cumsum(-1) - 1) / count
        support = (falling > thresholds).sum(-1, keepdim=True).clamp_min(1)
        return (x - thresholds.gather(-1, support - 1)).clamp_min(0)

    @in_full_precision
    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u - u.mean(-1, keepdim=True) if self._is_flat else self._sphere.to_tangent(_root(x), u)

    @in_full_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return u if self._is_flat else self._sphere.transport(_root(x), u, _root(y))

    @in_full_precision
    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        """Flat: ``v``, as long as exp(x, w) stays inside. Fisher-Rao: that of the sphere, reflected where the
        geodesic was."""
        if self._is_flat:
            return v
        z = _root(x)
        is_reflected = self._sphere.exp(z, 0.5 * w) < 0
        return self._sphere.dexp_inv(z, 0.5 * w, torch.where(is_reflected, -v, v))

    @in_full_precision
    def tangent_basis(self, x: Tensor) -> Tensor:
        # Flat: the plane of sum 0 is the tangent space of the sphere at (1, ..., 1) / sqrt(K).
        z = torch.full_like(x, self.categories**-0.5) if self._is_flat else _root(x)
        return self._sphere.tangent_basis(z)

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        r"""The rate of change :math:`\dot p` of the probabilities that belongs to the tangent ``u``."""
        return u if self._is_flat else _root(x) * u

    @in_full_precision
    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        """Of the geodesic before any reflection, which keeps volumes: that of the sphere of radius 2."""
        return torch.zeros_like(u[..., 0]) if self._is_flat else self._sphere.log_exp_volume(_root(x), 0.5 * u)

    @in_full_precision
    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        """Whether the geodesic ends before it meets a side."""
        end = x + u if self._is_flat else self._sphere.exp(_root(x), 0.5 * u)
        return (end >= 0).all(-1)

    @in_full_precision
    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        if self._is_flat:
            return self.to_tangent(x, v)
        return self.to_tangent(x, torch.where(x > 0, v / x.clamp_min(torch.finfo(x.dtype).tiny).sqrt(), 0.0))

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self.to_tangent(x, self.rate(x, g))

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.to_tangent(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))

    @property
    def cover(self) -> Manifold:
        r"""Fisher-Rao: the sphere of :math:`z = \sqrt p`. Flat: itself, as exp stops at the walls."""
        return self if self._is_flat else self._sphere

    def lift(self, x: Tensor) -> Tensor:
        return x if self._is_flat else x.sqrt()

    def fold(self, z: Tensor) -> Tensor:
        return z if self._is_flat else z.square()

    def lift_tangent(self, z: Tensor, u: Tensor) -> Tensor:
        # A tangent p' / sqrt(p) is 2 z'.
        return u if self._is_flat else self._sphere.to_tangent(z, 0.5 * u)

    def is_inside(self, z: Tensor, atol: float = 1e-6) -> Tensor:
        return super().is_inside(z) if self._is_flat else (z >= -atol).all(-1)

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        basis = self.tangent_basis(x)
        return (basis if self._is_flat else _root(x).unsqueeze(-2) * basis), basis

    @property
    def volume_power(self) -> tuple[float, float]:
        return super().volume_power if self._is_flat else (-0.5, 0.0)

    def log_volume_per_lebesgue(self, x: Tensor) -> Tensor:
        r"""Logarithm of the Riemannian volume over :math:`dp_1 \dots dp_{K-1}`, ``(...)``: add it to a log-density with
        respect to the volume to get the one that papers print.

        Flat: :math:`\tfrac12 \log K`. Fisher-Rao: :math:`-\tfrac12 \sum_k \log p_k`, infinite on the boundary.
        """
        if self._is_flat:
            return torch.full(x.shape[:-1], 0.5 * math.log(self.categories), dtype=x.dtype, device=x.device)
        return -0.5 * x.log().sum(-1)

    def without_flux(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        r"""A field that does not cross the sides: each component times :math:`\tanh(c_k / \mathrm{width})`, then tangent again.

        c is :math:`\sqrt p` for Fisher-Rao and p for the flat metric. See :class:`manifoldflow.nn.NoFlux`.

        Args:
            x: points ``(..., K)``.
            v: tangents there.
            width: of the layer at the sides, in the units of c.
        """
        depth = x if self._is_flat else x.clamp_min(0).sqrt()
        faded = v * torch.tanh(depth / width)
        if not self._is_flat:
            return self.to_tangent(x, faded)
        # The sum must be 0 again, by a correction that fades at the sides as well.
        share = torch.tanh(depth / width)
        return faded - share * (faded.sum(-1, keepdim=True) / share.sum(-1, keepdim=True))

    def residual(self, x: Tensor) -> Tensor:
        """The larger of |sum - 1| and the most negative entry."""
        return (x.sum(-1) - 1).abs().maximum((-x).amax(-1))

    @property
    def log_volume(self) -> float:
        """Flat: sqrt(K) / (K - 1)!. Fisher-Rao: one orthant of the sphere of radius 2."""
        k = self.categories
        return 0.5 * math.log(k) - math.lgamma(k) if self._is_flat else self._sphere.log_volume - math.log(2)

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Flat: Dirichlet(1, ..., 1). Fisher-Rao: Dirichlet(1/2, ..., 1/2), uniform on the orthant."""
        full = (*shape, self.categories)
        if self._is_flat:
            weight = torch.empty(full, dtype=dtype, device=device).exponential_(generator=generator)
            return weight / weight.sum(-1, keepdim=True)
        return self._sphere.sample_uniform(shape, generator=generator, dtype=dtype, device=device).square()


def _root(p: Tensor) -> Tensor:
    """sqrt(p), with gradient 0 instead of infinity where p = 0 (or is negative by round-off)."""
    is_positive = p > 0
    return torch.where(is_positive, torch.where(is_positive, p, 1.0).sqrt(), 0.0)
