"""Flat space, and flat space without its translations."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.flat import Linear
from manifoldflow.manifolds.laws import LOG_2PI
from manifoldflow.numerics import checks_points


@dataclass(frozen=True)
class Euclidean(Linear, Manifold):
    """:math:`R^d` with the flat metric; points and tangents have shape ``(..., d)``.

    Args:
        d: dimension.
    """

    d: int

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

    @checks_points
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return x + u

    @checks_points
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def project(self, x: Tensor) -> Tensor:
        return x

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return u

    @checks_points
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        u = x1 - x0
        return x0 + expand_time(t, u, 1) * u, u

    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return v

    def tangent_basis(self, x: Tensor) -> Tensor:
        return torch.eye(self.d, dtype=x.dtype, device=x.device).expand(*x.shape[:-1], self.d, self.d)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.ones_like(u[..., 0], dtype=torch.bool)

    def residual(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Centered(Linear, Manifold):
    r"""Sets of N points with their mean removed: :math:`\{x \in R^{N \times d} : \sum_i m_i x_i = 0\}` for a mask m.

    Points have shape ``(B, N, d)``. The subspace is flat, so exp and log are those of ``base``; only :meth:`center`
    needs the mask, which is data and therefore an argument. The flow centres sources, data and velocities with it.

    Args:
        base: the flat space of one point.
    """

    base: Euclidean
    is_centered: ClassVar[bool] = True
    any_vector_is_tangent: ClassVar[bool] = False

    @property
    def dim(self) -> int:
        return self.base.dim

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return self.base.origin(shape, dtype=dtype, device=device)

    def center(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Remove the mean over the second last axis, over real elements only; padding is set to 0.

        Args:
            x: ``(..., N, d)``.
            mask: bool ``(..., N)``, True where an element is real; all real if absent.
        """
        if x.ndim < 2 or x.shape[-1] != self.base.d:
            raise ValueError(f"{self}: sets of points need shape (..., N, {self.base.d}), got {tuple(x.shape)}")
        if mask is None:
            return x - x.mean(-2, keepdim=True)
        weight = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp_min(1)
        return (x - mean) * weight

    @checks_points
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return self.base.exp(x, u)

    @checks_points
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.base.log(x, y)

    def project(self, x: Tensor) -> Tensor:
        return self.center(x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return self.center(u)

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return u

    @checks_points
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        return self.base.geodesic(x0, x1, t)

    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return v

    def tangent_basis(self, x: Tensor) -> Tensor:
        return self.base.tangent_basis(x)

    def log_pushed_normal(
        self, x: Tensor, mean: Tensor, scale: float | Tensor, y: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """On the mean-free subspace of dimension (n - 1) d of a set of n real points: one value per set, ``(...)`` without N."""
        off = self.center(y - x - mean, mask)
        count = off.new_full(off.shape[:-2], off.shape[-2]) if mask is None else mask.sum(-1).to(off.dtype)
        freedom = (count - 1).clamp_min(0) * off.shape[-1]
        log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        return -0.5 * off.square().sum((-1, -2)) / scale**2 - freedom * (log_scale + 0.5 * LOG_2PI)

    def residual(self, x: Tensor) -> Tensor:
        return x.mean(-2, keepdim=True).norm(dim=-1).expand(x.shape[:-1])
