"""Rotations of space: as matrices."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.manifolds import compiled
from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.rotation import (
    compose,
    hat,
    inverse_right_jacobian,
    matrix_to_rotvec,
    quaternion_to_matrix,
    rotvec_to_matrix,
    sixd_to_matrix,
)
from manifoldflow.manifolds.rotation_rows import matrix_of_quaternion, power, quaternion_of_matrix
from manifoldflow.manifolds.rows import compiled_as, matrices, rows, times
from manifoldflow.numerics import cosc_of_square, dot, in_full_precision


@dataclass(frozen=True)
class SO3(Manifold):
    r"""The rotation group SO(3) as matrices ``(..., 3, 3)``, with the metric in which length is the angle in radians.

    Tangent vectors are body-frame rotation vectors ``(..., 3)``:
    :math:`\exp_R(w) = R\,\mathrm{Exp}(w)`, :math:`\log_R(S) = \mathrm{Log}(R^T S)`, so the inner product is the plain
    one and a tangent needs no projection. :class:`UnitQuaternion` has the same tangents and can take its place.
    """

    event_ndim = 2

    @property
    def dim(self) -> int:
        return 3

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3, 3)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.eye(3, dtype=dtype, device=device).expand(*shape, 3, 3)

    @in_full_precision
    @compiled_as(compiled.so3_exp)
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return compose(x, rotvec_to_matrix(u))

    @in_full_precision
    @compiled_as(compiled.so3_log)
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return matrix_to_rotvec(compose(x.mT, y))

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        """Gram-Schmidt on the first two columns: no SVD, so the backward pass is finite wherever they are independent."""
        return sixd_to_matrix(torch.cat([x[..., :, 0], x[..., :, 1]], -1))

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    @in_full_precision
    @compiled_as(compiled.so3_geodesic)
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        # In the body frame the velocity of a one-parameter subgroup is constant.
        u = self.log(x0, x1)
        return self.exp(x0, expand_time(t, u, 1) * u), u

    @in_full_precision
    @compiled_as(compiled.so3_interpolate)
    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """Turn ``x0`` by the share ``t`` of the rotation to ``x1``, through quaternions: no rotation vector is made."""
        turn = quaternion_of_matrix(rows(compose(x0.mT, x1), 2))
        return compose(x0, matrices(matrix_of_quaternion(power(turn, times(t, turn[0])))))

    @in_full_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        r"""Parallel transport along the geodesic :math:`x \mathrm{Exp}(s w)`: in the body frame, :math:`\mathrm{Exp}(-w/2) u`."""
        w = self.log(x, y)
        return (rotvec_to_matrix(-0.5 * w) * u.unsqueeze(-2)).sum(-1)

    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return inverse_right_jacobian(w, v)

    def tangent_basis(self, x: Tensor) -> Tensor:
        return torch.eye(3, dtype=x.dtype, device=x.device).expand(*x.shape[:-2], 3, 3)

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``R hat(e_k)`` and ``e_k``: the frame of left-invariant fields, which have no divergence of their own."""
        frame = self.tangent_basis(x)
        return compose(x.unsqueeze(-3), hat(frame)), frame

    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`\log \frac{2 - 2\cos r}{r^2}`, r = |u|."""
        return (2 * cosc_of_square(dot(u, u))).log().squeeze(-1)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        return dot(u, u).squeeze(-1) < math.pi**2

    def residual(self, x: Tensor) -> Tensor:
        identity = torch.eye(3, dtype=x.dtype, device=x.device)
        return (compose(x.mT, x) - identity).abs().amax((-1, -2)).maximum((torch.linalg.det(x) - 1).abs())

    @property
    def log_volume(self) -> float:
        r""":math:`\log 8 \pi^2`, the volume of the rotation group when length is the rotation angle."""
        return math.log(8 * math.pi**2)

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        q = torch.randn(*shape, 4, generator=generator, dtype=dtype, device=device)
        return quaternion_to_matrix(torch.nn.functional.normalize(q, dim=-1))
