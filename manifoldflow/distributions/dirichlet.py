"""The Dirichlet law on the simplex."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.simplex import ProbabilityVectors


@dataclass(frozen=True)
class Dirichlet(Distribution):
    r""":math:`p(x) \propto \prod_k x_k^{\alpha_k - 1}` with respect to :math:`dx_1 \dots dx_{K-1}`.

    ``log_prob`` is with respect to the Riemannian volume, as everywhere: divided by :math:`d vol / dx`, which is
    :math:`\prod_k x_k^{-1/2}` for Fisher-Rao and :math:`\sqrt K` for the flat metric. On a side where the density is infinite
    (alpha below 1/2 and 1) it is the one at the smallest positive number of the dtype: draws with a small alpha round to 0.

    Args:
        alpha: one positive number per category, or one for all.
        manifold: a :class:`manifoldflow.Simplex` or ReflectedSimplex; :class:`manifoldflow.Flow` fills it in.
    """

    alpha: tuple[float, ...] | float = 1.0
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if not min(self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)) > 0:
            raise ValueError(f"Dirichlet: alpha must be positive, got {self.alpha}")
        if self.manifold is None:
            return
        if isinstance(self.alpha, tuple) and len(self.alpha) != self._simplex.categories:
            raise ValueError(f"Dirichlet: {len(self.alpha)} alphas for {self._simplex.categories} categories")

    @property
    def concentration(self) -> tuple[float, ...]:
        """alpha, one per category."""
        return self.alpha if isinstance(self.alpha, tuple) else (self.alpha,) * self._simplex.categories

    @property
    def _simplex(self) -> ProbabilityVectors:
        space = self.space
        if not isinstance(space, ProbabilityVectors):
            raise ValueError(f"Dirichlet is a distribution on a Simplex, not on {space}")
        return space

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        alpha = torch.tensor(self.concentration, dtype=dtype, device=device)
        # gamma(a) = gamma(a + 1) u^(1/a), taken in logs: small alphas would give 0 / 0.
        gamma = torch._standard_gamma((alpha + 1).expand(*shape, -1).contiguous(), generator=generator)
        u = torch.rand(gamma.shape, generator=generator, dtype=dtype, device=device)
        return torch.softmax(gamma.log() + u.clamp_min(torch.finfo(dtype).tiny).log() / alpha, -1)

    def _log_density(self, x: Tensor) -> Tensor:
        alpha = torch.tensor(self.concentration, dtype=x.dtype, device=x.device)
        front = math.lgamma(sum(self.concentration)) - sum(map(math.lgamma, self.concentration))
        power, constant = self._simplex.volume_power
        powers = alpha - 1 - power
        # The density is infinite where a negative power meets 0; there it is that of the smallest number, which draws round to.
        least = x.clamp_min(torch.finfo(x.dtype).tiny)
        terms = torch.where(powers < 0, powers * least.log(), torch.special.xlogy(powers, x))
        return front - constant + terms.sum(-1)
