"""Rotations of space: as matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.manifolds import compiled
from manifoldflow.manifolds import rotation_products as products
from manifoldflow.manifolds.base import expand_time
from manifoldflow.manifolds.flat import align_batch
from manifoldflow.manifolds.rotation import (
    compose,
    hat,
    matrix_to_rotvec,
    quaternion_to_matrix,
    rotvec_to_matrix,
    sixd_to_matrix,
)
from manifoldflow.manifolds.rotation_group import RotationGroup
from manifoldflow.manifolds.rotation_rows import matrix_of_quaternion, power, quaternion_of_matrix
from manifoldflow.manifolds.rows import compiled_as, matrices, rows, times
from manifoldflow.numerics import in_full_precision


@dataclass(frozen=True)
class SO3(RotationGroup):
    r"""The rotation group SO(3) as matrices ``(..., 3, 3)``, with the metric in which length is the angle in radians.

    Tangent vectors are body-frame rotation vectors ``(..., 3)``:
    :math:`\exp_R(w) = R\,\mathrm{Exp}(w)`, :math:`\log_R(S) = \mathrm{Log}(R^T S)`, so the inner product is the plain
    one and a tangent needs no projection. :class:`UnitQuaternion` has the same tangents and can take its place.
    """

    event_ndim = 2

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
        if (tables := products.usable(x0)) is not None:
            x0, x1 = torch.broadcast_tensors(x0, x1)
            return products.interpolate(x0, x1, expand_time(t, x0[..., 0], 1), tables)
        turn = quaternion_of_matrix(rows(compose(x0.mT, x1), 2))
        return compose(x0, matrices(matrix_of_quaternion(power(turn, times(t, turn[0])))))

    @in_full_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        r"""Parallel transport along the geodesic :math:`x \mathrm{Exp}(s w)`: in the body frame, :math:`\mathrm{Exp}(-w/2) u`."""
        w = self.log(x, y)
        return (rotvec_to_matrix(-0.5 * w) * u.unsqueeze(-2)).sum(-1)

    @in_full_precision
    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        """``R hat(u)``."""
        return compose(x, hat(u))

    @in_full_precision
    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        return 0.5 * _vee(compose(x.mT, v))

    @in_full_precision
    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return _vee(compose(x.mT, g))

    def from_quaternion(self, q: Tensor) -> Tensor:
        return quaternion_to_matrix(q)

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        return compose(x, y)

    def rotate(self, rotation: Tensor, x: Tensor) -> Tensor:
        return align_batch(rotation, x, 2, 2) @ x

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``R hat(e_k)`` and ``e_k``: the frame of left-invariant fields, which have no divergence of their own."""
        frame = self.tangent_basis(x)
        return compose(x.unsqueeze(-3), hat(frame)), frame

    @in_full_precision
    def residual(self, x: Tensor) -> Tensor:
        identity = torch.eye(3, dtype=x.dtype, device=x.device)
        return (compose(x.mT, x) - identity).abs().amax((-1, -2)).maximum((torch.linalg.det(x) - 1).abs())

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


def _vee(a: Tensor) -> Tensor:
    """The vector of the skew part of matrices, twice: the transpose of ``hat``."""
    return torch.stack([a[..., 2, 1] - a[..., 1, 2], a[..., 0, 2] - a[..., 2, 0], a[..., 1, 0] - a[..., 0, 1]], -1)
