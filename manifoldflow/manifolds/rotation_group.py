"""What the rotation group is in any representation: its tangents, volumes and laws."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from manifoldflow.manifolds import radial
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.laws import log_wrapped_turns
from manifoldflow.manifolds.rotation import inverse_right_jacobian, rotvec_to_matrix
from manifoldflow.numerics import cosc_of_square, cot_slope, dot, in_full_precision


class RotationGroup(Manifold):
    r"""Rotations of space. Tangents are body-frame rotation vectors ``(..., 3)`` in radians, with the plain inner product;
    a subclass says what a point is, and how points are made from quaternions and multiplied."""

    tangent_ndim: ClassVar[int] = 1
    any_vector_is_tangent: ClassVar[bool] = True

    @property
    def dim(self) -> int:
        return 3

    def from_quaternion(self, q: Tensor) -> Tensor:
        """Unit quaternions ``(..., 4)``, [w, x, y, z], as points ``(..., *event)``."""
        raise NotImplementedError

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """The rotation ``y`` followed by ``x``, points ``(..., *event)``."""
        raise NotImplementedError

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        batch = x.shape[: x.ndim - self.event_ndim]
        return torch.randn((*batch, 3), generator=generator, dtype=x.dtype, device=x.device)

    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return inverse_right_jacobian(w, v)

    def tangent_basis(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - self.event_ndim]
        return torch.eye(3, dtype=x.dtype, device=x.device).expand(*batch, 3, 3)

    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`\log \frac{2 - 2\cos r}{r^2}`, r = |u|."""
        return (2 * cosc_of_square(dot(u, u))).log().squeeze(-1)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        return dot(u, u).squeeze(-1) < math.pi**2

    @property
    def closed_geodesic(self) -> float:
        return 2 * math.pi

    @property
    def conjugate_radius(self) -> float:
        return 2 * math.pi

    @in_full_precision
    def volume_gradient(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        r"""Half of the slope on :math:`S^3` at half of the angle."""
        return 0.5 * cot_slope(0.25 * dot(u, u)) * v

    @in_full_precision
    def carry_noise(self, x: Tensor, motion: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u stays the same in the body frame, an isometry too.

        d/dt I Exp(u) = I hat(motion) Exp(u): in the body frame of the result the motion is turned back by u.
        """
        return self.exp(x, u), (rotvec_to_matrix(-u) * motion.unsqueeze(-2)).sum(-1), z

    def log_wrapped_normal(self, mean: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        return log_wrapped_turns(self.dist(mean, x), scale, 3, 2, 2.0)

    def log_fisher_normalizer(self, kappas: Tensor) -> Tensor:
        r""":math:`1 / 8\pi^2 e^{-\kappa}(I_0 - I_1)(\kappa)`."""
        from scipy import special

        k = kappas.double().numpy()
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            # I0 - I1 cancels: for large kappa from its expansion.
            series = (1 + 0.375 / k + 0.3515625 / k**2) / (2 * k * np.sqrt(2 * math.pi * k))
            gap = np.where(k > 1e4, series, special.i0e(k) - special.i1e(k))
        return torch.from_numpy(np.asarray(-self.log_volume - np.log(gap), dtype=np.float64))

    def radial_area(self) -> radial.Profile:
        return radial.Profile(math.pi, lambda r: np.sin(r / 2) ** 2, 2)

    @property
    def log_volume(self) -> float:
        r""":math:`\log 8 \pi^2`, the volume of the rotation group when length is the rotation angle."""
        return math.log(8 * math.pi**2)
