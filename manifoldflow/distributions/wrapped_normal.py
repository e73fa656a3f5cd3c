"""Gaussian noise in the tangent space, wrapped onto the manifold."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.laws import expand, over_batch


@dataclass(frozen=True, eq=False)
class WrappedNormal(Distribution):
    r"""The law of :math:`\exp_\mu(u)`, :math:`u \sim N(0, \mathrm{scale}^2 I)` in an orthonormal frame of the
    tangent space.

    The density sums over all tangents that reach a point (images), each divided by the volume factor of exp at its
    length r:
    :math:`|\sin r / r|^{d-1}` on :math:`S^d`, :math:`(2 - 2\cos r)/r^2` on rotations, 1 on flat spaces. Where exp is
    one-to-one (hyperbolic space, positive-definite matrices) there is one image, and the factor is
    :meth:`Manifold.log_exp_volume`. Where all images but one come together (at the mean and, on spheres, at its
    antipode) the density of a wide wrapped normal has an integrable pole; the logarithm stays finite here.

    Sampling works on every manifold with a ``tangent_basis``, the density wherever there are no walls or folds: see
    :meth:`Manifold.log_wrapped_normal`.

    Args:
        manifold: the space; :class:`manifoldflow.Flow` fills it in.
        scale: standard deviation of a tangent coordinate, in units of length of the manifold: a number, or one per sample as a
            tensor ``(...)`` over leading batch axes. Densities of tensors count 10 images each way, enough up to a scale of a
            whole turn.
        mean: centre :math:`\mu`, ``(..., *event)``, that broadcasts with the batch; ``manifold.origin`` if absent.

    With tensors it is the head of a policy: draws and log-densities are differentiable in both.
    """

    manifold: Manifold | None = None
    scale: float | Tensor = 1.0
    mean: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.scale, Tensor) and not self.scale > 0:  # a look at a tensor would wait for the device
            raise ValueError(f"WrappedNormal: scale must be positive, got {self.scale}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrappedNormal) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        """Equal are laws of equal numbers; those of tensors are equal to themselves alone."""
        return type(self), self.manifold, id(self.scale) if isinstance(self.scale, Tensor) else self.scale

    def _scale(self, axes: int, dtype: torch.dtype, device: torch.device | str | None) -> float | Tensor:
        """With the axes of a batch."""
        if not isinstance(self.scale, Tensor):
            return self.scale
        scale = self.scale.to(dtype=dtype, device=device)
        return over_batch(scale, scale, axes)

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
        scale = expand(self._scale(len(shape), dtype, device))
        noise = scale * torch.randn(*shape, space.dim, generator=generator, dtype=dtype, device=device)
        basis = space.tangent_basis(mean)
        weights = noise.reshape(noise.shape + (1,) * space.tangent_ndim)
        return space.exp(mean, (weights * basis).sum(-1 - space.tangent_ndim))

    def _log_density(self, x: Tensor) -> Tensor:
        scale = self._scale(x.ndim - self.space.event_ndim, x.dtype, x.device)
        return self.space.log_wrapped_normal(self._centre(x, x.dtype, x.device), x, scale)
