"""What flat spaces share: nothing bends, so noise is carried along as it is and exp keeps volumes."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds.laws import log_normal


class Flat:
    """Mixin for spaces whose tangents are the velocities of the coordinates, with the plain inner product everywhere."""

    any_vector_is_tangent: ClassVar[bool] = True
    has_ambient_metric: ClassVar[bool] = True

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def from_rate(self: Any, x: Tensor, v: Tensor) -> Tensor:
        return self.to_tangent(x, v)

    def riemannian_gradient(self: Any, x: Tensor, g: Tensor) -> Tensor:
        return self.to_tangent(x, g)

    def random_tangent(self: Any, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.to_tangent(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))

    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(u[..., 0])

    def volume_gradient(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return torch.zeros_like(v)

    def carry_noise(self: Any, x: Tensor, motion: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.exp(x, u), motion, z


class Linear(Flat):
    """Mixin for :math:`R^d`: its Gaussians need no images."""

    is_linear: ClassVar[bool] = True

    def log_wrapped_normal(self: Any, mean: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        return log_normal((x - mean).square().sum(-1), scale, self.dim)

    def versine(self, x: Tensor, y: Tensor) -> Tensor:
        """Half of the squared distance, which 1 - cos is for small ones."""
        return 0.5 * (y - x).square().sum(-1)

    def log_fisher_normalizer(self: Any, kappas: Tensor) -> Tensor:
        r""":math:`(\kappa / 2\pi)^{d/2}`."""
        return 0.5 * self.dim * (kappas.double() / (2 * math.pi)).log()

    def rotate(self: Any, rotation: Tensor, x: Tensor) -> Tensor:
        if self.dim != 3:
            return x
        return (align_batch(rotation, x, 2, 1) @ x.unsqueeze(-1)).squeeze(-1)

    def translate(self: Any, shift: Tensor, x: Tensor) -> Tensor:
        return x + align_batch(shift, x, 1, 1) if self.dim == 3 else x


def align_batch(value: Tensor, like: Tensor, value_ndim: int, event_ndim: int) -> Tensor:
    """``value`` with batch axes of size 1 so that its own belong to the leading ones of ``like``."""
    own = value.shape[: value.ndim - value_ndim]
    missing = like.ndim - event_ndim - len(own)
    return value.reshape(own + (1,) * max(0, missing) + value.shape[len(own) :])
