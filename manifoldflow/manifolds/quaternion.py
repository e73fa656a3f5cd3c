"""Rotations of space: as unit quaternions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.manifolds import compiled
from manifoldflow.manifolds.base import expand_time
from manifoldflow.manifolds.flat import align_batch
from manifoldflow.manifolds.rotation import (
    matrix_to_quaternion,
    quaternion_conjugate,
    quaternion_multiply,
    quaternion_rotate,
    quaternion_to_rotvec,
    rotvec_to_quaternion,
)
from manifoldflow.manifolds.rotation_group import RotationGroup
from manifoldflow.manifolds.rows import compiled_as
from manifoldflow.numerics import dot, in_full_precision, polar_angle, smooth_norm, to_unit


@dataclass(frozen=True)
class UnitQuaternion(RotationGroup):
    r"""The rotation group as unit quaternions ``(..., 4)`` in the order ``[w, x, y, z]``; q and -q are the same point.

    Tangent vectors are those of :class:`SO3`, body-frame rotation vectors ``(..., 3)`` in radians:
    :math:`\exp_q(w) = q \otimes (\cos(|w|/2), \mathrm{sinc}(|w|/2)\, w/2)`. Length is the rotation angle, which is
    twice the
    arc on :math:`S^3`. ``exp`` keeps the sign of its base point, so a geodesic is continuous in the four numbers, and
    ends at ``x1`` or ``-x1``, whichever is nearer to ``x0``.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (4,)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.eye(1, 4, dtype=dtype, device=device).squeeze(0).expand(*shape, 4)

    @in_full_precision
    @compiled_as(compiled.quaternion_exp)
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return to_unit(quaternion_multiply(x, rotvec_to_quaternion(u)))

    @in_full_precision
    @compiled_as(compiled.quaternion_log)
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return quaternion_to_rotvec(quaternion_multiply(quaternion_conjugate(x), y))

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=-1)

    @in_full_precision
    @compiled_as(compiled.quaternion_geodesic)
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        tangential, sine, half = self._polar(x0, x1)
        turned = expand_time(t, tangential, 1) * half
        # In the body frame the velocity of a one-parameter subgroup is constant.
        u = (2 * half / sine) * quaternion_multiply(quaternion_conjugate(x0), tangential)[..., 1:]
        return torch.addcmul(turned.cos() * x0, turned.sin() / sine, tangential), u

    @in_full_precision
    @compiled_as(compiled.quaternion_interpolate)
    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """Spherical linear interpolation along the shorter arc."""
        tangential, sine, half = self._polar(x0, x1)
        turned = expand_time(t, tangential, 1) * half
        return torch.addcmul(turned.cos() * x0, turned.sin() / sine, tangential)

    def _polar(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""The part of the nearer of ``y`` and ``-y`` across ``x``, its length (never 0), and half of the angle."""
        cosine = dot(x, y)
        chord = torch.addcmul(-x, torch.where(cosine < 0, -1.0, 1.0).to(y.dtype), y)
        tangential = torch.addcmul(chord, dot(x, chord), x, value=-1)
        sine = smooth_norm(tangential)
        return tangential, sine, polar_angle(sine, cosine.abs())

    @in_full_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        r"""Parallel transport along the geodesic with body velocity w = log(x, y): :math:`\mathrm{Exp}(-w/2) u`."""
        return quaternion_rotate(rotvec_to_quaternion(-0.5 * self.log(x, y)), u)

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        """``q (0, u) / 2``."""
        return 0.5 * quaternion_multiply(x, torch.cat([torch.zeros_like(u[..., :1]), u], -1))

    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        return 2 * quaternion_multiply(quaternion_conjugate(x), v)[..., 1:]

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return 0.5 * quaternion_multiply(quaternion_conjugate(x), g)[..., 1:]

    def from_quaternion(self, q: Tensor) -> Tensor:
        return q

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        return quaternion_multiply(x, y)

    def rotate(self, rotation: Tensor, x: Tensor) -> Tensor:
        turn = align_batch(matrix_to_quaternion(rotation), x, 1, 1)
        return quaternion_multiply(turn.expand_as(x), x)

    def embed(self, x: Tensor, harmonics: int = 1) -> Tensor:
        """The ten products of two numbers, which are the same for q and -q."""
        w, i, j, k = x.unbind(-1)
        return torch.stack([w * w, w * i, w * j, w * k, i * i, i * j, i * k, j * j, j * k, k * k], -1)

    def embedding_size(self, harmonics: int = 1) -> int:
        return 10

    def coordinate_gap(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.minimum((x - y).abs().amax(-1), (x + y).abs().amax(-1))

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``q (0, e_k) / 2`` and ``e_k``: the frame of left-invariant fields, which have no divergence of their own."""
        frame = self.tangent_basis(x)
        pure = torch.nn.functional.pad(0.5 * frame, (1, 0))
        return quaternion_multiply(x.unsqueeze(-2), pure), frame

    def residual(self, x: Tensor) -> Tensor:
        return (torch.linalg.vector_norm(x, dim=-1) - 1).abs()

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.project(torch.randn(*shape, 4, generator=generator, dtype=dtype, device=device))
