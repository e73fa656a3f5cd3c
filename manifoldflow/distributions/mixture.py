"""Mixtures of distributions on one manifold."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold


@dataclass(frozen=True)
class Mixture(Distribution):
    r""":math:`p = \sum_k w_k p_k`.

    Args:
        components: distributions, bound to one manifold or to none.
        weights: one positive number per component, normalised; equal if absent.
        manifold: of all components; :class:`manifoldflow.Flow` fills it in.

    Raises:
        ValueError: no components, weights that do not match, components on different manifolds.
    """

    components: tuple[Distribution, ...]
    weights: tuple[float, ...] | None = None
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("Mixture: at least one component is needed")
        if self.weights is not None and (len(self.weights) != len(self.components) or not min(self.weights) > 0):
            raise ValueError(f"Mixture: weights must be {len(self.components)} positive numbers, got {self.weights}")
        spaces = {c.manifold for c in self.components if c.manifold is not None} | ({self.manifold} - {None})
        if len(spaces) > 1:
            raise ValueError(f"Mixture: the components live on different manifolds: {', '.join(map(str, spaces))}")
        if spaces:
            space = spaces.pop()
            assert space is not None
            object.__setattr__(self, "manifold", space)
            object.__setattr__(self, "components", tuple(c.bind(space) for c in self.components))

    def bind(self, manifold: Manifold) -> Self:
        """A copy whose components are on ``manifold``."""
        return self if self.manifold is not None else replace(self, manifold=manifold)

    @property
    def log_weights(self) -> list[float]:
        """Logs of the normalised weights."""
        weights = self.weights or (1.0,) * len(self.components)
        return [math.log(w / sum(weights)) for w in weights]

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        # Every component is drawn everywhere: counts per component would have to be fetched from the device.
        drawn = torch.stack([c.sample(shape, generator=generator, dtype=dtype, device=device) for c in self.components])
        share = torch.tensor(self.log_weights, dtype=torch.float64, device=device).exp().cumsum(0)
        place = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        which = torch.searchsorted(share, place).clamp_max(len(self.components) - 1)
        which = which.reshape(1, *shape, *(1,) * self.space.event_ndim).expand(1, *drawn.shape[1:])
        return drawn.gather(0, which).squeeze(0)

    def _log_density(self, x: Tensor) -> Tensor:
        parts = [c.log_prob(x) + w for c, w in zip(self.components, self.log_weights, strict=True)]
        return torch.logsumexp(torch.stack(parts), 0)
