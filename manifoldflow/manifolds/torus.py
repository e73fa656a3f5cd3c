"""The flat torus T^d."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifoldflow.manifolds import radial
from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.flat import Flat
from manifoldflow.manifolds.laws import expand, image_numbers, log_normal, over_batch
from manifoldflow.numerics import checks_points, in_full_precision, upcast


@dataclass(frozen=True)
class Torus(Flat, Manifold):
    r"""The flat torus :math:`(R / L)^d`: vectors ``(..., d)`` whose entries are periodic, with the flat metric.

    Points are stored in [0, period); any real representative is a valid argument. Tangents are plain vectors ``(...,
    d)``
    in the unit of the period.

    Args:
        d: dimension.
        period: length L of every circle: 1 for fractional coordinates, ``2 * math.pi`` for angles in radians.
    """

    d: int
    period: float = 1.0

    def __post_init__(self) -> None:
        if self.d < 1:
            raise ValueError(f"Torus: d must be at least 1, got {self.d}")
        if not self.period > 0:
            raise ValueError(f"Torus: period must be positive, got {self.period}")

    @property
    def dim(self) -> int:
        return self.d

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.d,)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.zeros(*shape, self.d, dtype=dtype, device=device)

    def project(self, x: Tensor) -> Tensor:
        """The representative in [0, period)."""
        return self._wrap(upcast(x), x.dtype)

    @checks_points
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return self._wrap(upcast(x) + upcast(u), torch.promote_types(x.dtype, u.dtype))

    def _wrap(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        # remainder, and the cast to half precision, round -1e-8 up to the period itself, which is the point 0.
        wrapped = x.remainder(self.period).to(dtype)
        return torch.where(wrapped >= self.period, wrapped - self.period, wrapped).clamp_min(0)

    @in_full_precision
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest difference y - x, entries in [-period/2, period/2)."""
        return self._shortest(y - x)

    def _shortest(self, turn: Tensor) -> Tensor:
        """The representative of a difference in [-period/2, period/2)."""
        turn = turn - self.period * torch.round(turn / self.period)
        return torch.where(turn >= 0.5 * self.period, turn - self.period, turn)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return u

    @checks_points
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() and isinstance(t, Tensor):
            # Flat and of one shape, the compiler makes a single vector loop; an innermost axis of 3 would be scalar.
            x0, x1 = torch.broadcast_tensors(x0, x1)
            t = torch.as_tensor(expand_time(t, x1, 1)).expand(x1.shape)
            u = self._shortest(upcast(x1.reshape(-1)) - upcast(x0.reshape(-1))).to(
                torch.promote_types(x0.dtype, x1.dtype)
            )
            return self.project(x0.reshape(-1) + t.reshape(-1) * u).view(x0.shape), u.view(x0.shape)
        u = self.log(x0, x1)
        return self._wrap(upcast(x0) + expand_time(t, u, 1) * upcast(u), u.dtype), u

    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return v

    def tangent_basis(self, x: Tensor) -> Tensor:
        return torch.eye(self.d, dtype=x.dtype, device=x.device).expand(*x.shape[:-1], self.d, self.d)

    @property
    def coordinate_period(self) -> float:
        return self.period

    def log_wrapped_normal(self, mean: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        """The product of the wrapped normals of the circles."""
        images = self.log(mean, x).unsqueeze(-1) + self.period * image_numbers(scale, self.period, x)
        value = log_normal(images**2, expand(expand(scale)), 1).logsumexp(-1)
        if isinstance(scale, Tensor):  # wider laws than the images reach are uniform to 1e-9
            value = torch.where(scale.unsqueeze(-1) > self.period, -math.log(self.period), value)
        return value.sum(-1)

    def log_pushed_normal(
        self, x: Tensor, mean: Tensor, scale: float | Tensor, y: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """The product over the circles."""
        s = over_batch(scale, y, y.ndim - 1)
        images = self.log(x, y).unsqueeze(-1) + self.period * image_numbers(scale, self.period, x)
        return log_normal((images - mean.unsqueeze(-1)) ** 2, expand(expand(s)), 1).logsumexp(-1).sum(-1)

    def versine(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\sum_i 1 - \cos`, of the angles that make a turn a period."""
        return 2 * torch.sin((y - x) * (math.pi / self.period)).square().sum(-1)

    def log_fisher_normalizer(self, kappas: Tensor) -> Tensor:
        r""":math:`(L e^{-\kappa} I_0(\kappa))^{-d}`."""
        return -self.d * (math.log(self.period) + torch.special.i0e(kappas.double()).log())

    def draw_fisher(
        self, mean: Tensor, kappa: float, shape: tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """A product of von Mises laws."""
        place = torch.rand((*shape, self.d), generator=generator, dtype=torch.float64, device=mean.device)
        angle = radial.draw_distance(self, kappa, place).to(mean.dtype)
        side = torch.randn((*shape, self.d), generator=generator, dtype=mean.dtype, device=mean.device).sign()
        return self.exp(mean.expand(*shape, self.d), side * angle * (self.period / (2 * math.pi)))

    def radial_area(self) -> radial.Profile:
        """Of one circle, in radians."""
        return radial.Profile(math.pi, np.ones_like, 1)

    def from_shares(self, shares: Tensor) -> Tensor:
        return shares * self.period

    def to_shares(self, x: Tensor) -> Tensor:
        return (x / self.period).remainder(1)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        """Every entry shorter than half of the period."""
        return u.abs().amax(-1) < 0.5 * self.period

    def residual(self, x: Tensor) -> Tensor:
        """How far an entry lies outside [0, period)."""
        return (x.clamp(0, self.period) - x).abs().amax(-1)

    @property
    def log_volume(self) -> float:
        return self.d * math.log(self.period)

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.project(self.period * torch.rand(*shape, self.d, generator=generator, dtype=dtype, device=device))
