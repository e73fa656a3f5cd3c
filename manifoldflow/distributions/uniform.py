"""The uniform distribution of a compact manifold."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold


@dataclass(frozen=True)
class Uniform(Distribution):
    r"""Constant density :math:`1 / \mathrm{vol}(M)`: Haar measure on rotations, surface measure on spheres.

    On the simplex "uniform" is with respect to its metric: Dirichlet(1, ..., 1) when flat and Dirichlet(1/2, ..., 1/2)
    (Jeffreys' prior) with the Fisher-Rao metric.

    Args:
        manifold: a compact manifold; :class:`manifoldflow.Flow` fills it in.

    Raises:
        ValueError: on first use, if the volume of the manifold is infinite.
    """

    manifold: Manifold | None = None

    is_uniform: ClassVar[bool] = True

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        return self.space.sample_uniform(shape, generator=generator, dtype=dtype, device=device)

    def _log_density(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.ndim - self.space.event_ndim]
        return torch.full(batch, -self.space.log_volume, dtype=x.dtype, device=x.device)
