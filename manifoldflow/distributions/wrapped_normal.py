"""Gaussian noise in the tangent space, wrapped onto the manifold."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.distributions.normal import LOG_2PI
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.euclidean import Euclidean
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.so3 import SO3
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.manifolds.torus import Torus


@dataclass(frozen=True)
class WrappedNormal(Distribution):
    r"""The law of :math:`\exp_\mu(u)`, :math:`u \sim N(0, \mathrm{scale}^2 I)` in an orthonormal frame of the
    tangent space.

    The density sums over all tangents that reach a point (images), each divided by the volume factor of exp at its
    length r:
    :math:`|\sin r / r|^{d-1}` on :math:`S^d`, :math:`(2 - 2\cos r)/r^2` on rotations, 1 on flat spaces. Where exp is
    one-to-one (hyperbolic space, positive-definite matrices) there is one image, and the factor is
    :meth:`Manifold.log_exp_volume`. Where all images but one come together (at the mean and, on spheres, at its
    antipode) the density of a wide wrapped normal has an integrable pole; the logarithm stays finite here.

    Sampling works on every manifold with a ``tangent_basis``; the density on Euclidean, Torus, Sphere, SO3,
    UnitQuaternion, and on hyperbolic space and positive-definite matrices (ours and geoopt's).

    Args:
        manifold: the space; :class:`manifoldflow.Flow` fills it in.
        scale: standard deviation of a tangent coordinate, in units of length of the manifold.
        mean: centre :math:`\mu`, ``(..., *event)``, that broadcasts with the batch; ``manifold.origin`` if absent.
    """

    manifold: Manifold | None = None
    scale: float = 1.0
    mean: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"WrappedNormal: scale must be positive, got {self.scale}")

    def _centre(self, like: Tensor | None, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        return (
            self.space.origin((), dtype=dtype, device=device)
            if self.mean is None
            else self.mean.to(dtype=dtype, device=device)
        )

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        space = self.space
        event = space.event_shape
        mean = self._centre(None, dtype, device).expand(*shape, *event)
        noise = self.scale * torch.randn(*shape, space.dim, generator=generator, dtype=dtype, device=device)
        basis = space.tangent_basis(mean)
        weights = noise.reshape(noise.shape + (1,) * space.tangent_ndim)
        return space.exp(mean, (weights * basis).sum(-1 - space.tangent_ndim))

    def _log_density(self, x: Tensor) -> Tensor:
        space, s = self.space, self.scale
        mean = self._centre(x, x.dtype, x.device)
        if isinstance(space, Euclidean):
            return _log_normal(((x - mean) ** 2).sum(-1), s, space.dim)
        if isinstance(space, Torus):
            images = space.log(mean, x).unsqueeze(-1) + space.period * _image_numbers(s / space.period, x)
            return _log_normal(images**2, s, 1).logsumexp(-1).sum(-1)
        if getattr(space, "is_hadamard", False):
            u = space.log(mean, x)
            return _log_normal(space.inner(mean, u, u), s, space.dim) - space.log_exp_volume(mean, u)
        if not isinstance(space, Sphere | SO3 | UnitQuaternion):
            raise ValueError(
                f"WrappedNormal has no closed-form density on {space}; it has one on Euclidean, Torus, Sphere, rotations, "
                f"hyperbolic space and positive-definite matrices"
            )
        angle = space.dist(mean, x).unsqueeze(-1)
        radius = (angle + 2 * math.pi * _image_numbers(s / (2 * math.pi), x)).abs()
        # The volume factor of every image has the same numerator, a power of the sine of the one angle.
        power, half = (space.dim - 1, 1.0) if isinstance(space, Sphere) else (2, 2.0)
        floor = torch.finfo(x.dtype).tiny ** 0.25
        sine = half * torch.sin(angle / half).abs()
        nearest = torch.arange(radius.shape[-1], device=x.device) == radius.shape[-1] // 2
        ratio = torch.where(nearest & (radius < 1e-4), 1.0, radius.clamp_min(floor) / sine.clamp_min(floor))
        return (_log_normal(radius**2, s, space.dim) + power * ratio.log()).logsumexp(-1)


def _log_normal(squared: Tensor, scale: float, dim: int) -> Tensor:
    return -0.5 * squared / scale**2 - dim * (math.log(scale) + 0.5 * LOG_2PI)


def _image_numbers(relative_scale: float, like: Tensor) -> Tensor:
    """Whole turns whose Gaussian weight exceeds 1e-16 of the total: 9 standard deviations each way."""
    most = 1 + math.ceil(9 * relative_scale)
    return torch.arange(-most, most + 1, dtype=like.dtype, device=like.device)
