"""The isotropic Gaussian of flat space, with or without its centre of mass."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.state import expand_mask

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Normal(Distribution):
    r"""Gaussian :math:`N(0, \mathrm{scale}^2 I)` on :class:`Euclidean` or :class:`Centered` space.

    On a centred space the draw over the last batch axis (the N points of a set) has its mean over real points removed,
    which is the Gaussian of the mean-free subspace.

    Args:
        manifold: flat space; :class:`manifoldflow.Flow` fills it in.
        scale: standard deviation of a coordinate, in the units of the coordinates.
    """

    scale: float = 1.0
    manifold: Manifold | None = None

    is_gaussian: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"Normal: scale must be positive, got {self.scale}")
        if self.manifold is not None and not self.manifold.is_linear:
            raise ValueError(
                f"Normal lives on flat space, not on {self.manifold}; use WrappedNormal (or IGSO3 on rotations)"
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
        if space.is_centered and not shape:
            raise ValueError("Normal on a Centered space draws sets of points: shape must end in the number of points")
        x = self.scale * torch.randn(*shape, *space.event_shape, generator=generator, dtype=dtype, device=device)
        return space.center(x, mask)

    def log_prob(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        r"""Log-density.

        On Euclidean space one value per point, ``(...)``, 0 at padding. On a centred space the points of a set are not
        independent, so one value per set, ``(B,)`` for ``x`` of shape ``(B, N, d)``: the density on the subspace of
        dimension (n - 1) d, where n counts real points.
        """
        if not self.space.is_centered:
            return super().log_prob(x, mask=mask)
        squared = (x / self.scale) ** 2
        if mask is None:
            count = torch.full(x.shape[:-2], x.shape[-2], dtype=x.dtype, device=x.device)
        else:
            squared = torch.where(expand_mask(mask, x), squared, 0.0)
            count = mask.sum(-1).to(x.dtype)
        freedom = (count - 1).clamp_min(0) * x.shape[-1]
        return -0.5 * squared.sum((-1, -2)) - freedom * (math.log(self.scale) + 0.5 * LOG_2PI)

    def _log_density(self, x: Tensor) -> Tensor:
        return -0.5 * ((x / self.scale) ** 2).sum(-1) - x.shape[-1] * (math.log(self.scale) + 0.5 * LOG_2PI)
