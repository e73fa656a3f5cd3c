"""Gaussian noise that the walls of a domain reflect."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.distributions.normal import LOG_2PI
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.domains import Box, Domain, HalfSpace


@dataclass(frozen=True)
class ReflectedNormal(Distribution):
    r"""The law of :math:`\exp_\mu(u)`, :math:`u \sim N(0, \mathrm{scale}^2 I)`, on a domain with walls.

    The density sums over the mirror images of a point: two on a half-space, two per period and coordinate on a box,

    .. math:: p(x) = \prod_i \sum_{n \in Z} N(x_i + 2 n s_i; \mu_i, \mathrm{scale}^2)
        + N(2 l_i - x_i + 2 n s_i; \mu_i, \mathrm{scale}^2)

    with lower corner l and sides s. The walls of a ball or a simplex have no such images: there the law can be sampled, but
    its density is unknown (use Uniform as the source of a likelihood).

    Args:
        manifold: a domain; :class:`manifoldflow.Flow` fills it in.
        scale: standard deviation of a coordinate, in the units of the coordinates.
        mean: the point :math:`\mu` inside, one number per coordinate; ``manifold.origin`` if absent.
    """

    manifold: Manifold | None = None
    scale: float = 1.0
    mean: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"ReflectedNormal: scale must be positive, got {self.scale}")
        if self.manifold is None:
            return
        if not isinstance(self.manifold, Domain):
            raise ValueError(f"ReflectedNormal lives on a domain with walls, not on {self.manifold}; use WrappedNormal")
        if self.mean is not None:
            if len(self.mean) != self.manifold.event_shape[0]:
                raise ValueError(f"ReflectedNormal: mean needs {self.manifold.event_shape[0]} numbers, got {self.mean}")
            if float(self.manifold.residual(torch.tensor(self.mean, dtype=torch.float64))) > 1e-9:
                raise ValueError(f"ReflectedNormal: the mean {self.mean} lies outside of {self.manifold}")

    def _centre(self, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        if self.mean is None:
            return self.space.origin((), dtype=dtype, device=device)
        return torch.tensor(self.mean, dtype=dtype, device=device)

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
        mean = self._centre(dtype, device).expand(*shape, *space.event_shape)
        noise = self.scale * torch.randn(*shape, space.dim, generator=generator, dtype=dtype, device=device)
        return space.exp(mean, (noise.unsqueeze(-1) * space.tangent_basis(mean)).sum(-2))

    def _log_density(self, x: Tensor) -> Tensor:
        space, mean = self.space, self._centre(x.dtype, x.device)
        constant = math.log(self.scale) + 0.5 * LOG_2PI
        if isinstance(space, HalfSpace):
            mirrored = x - 2 * (space._beyond(x)[0]) * space._beyond(x)[1]
            squares = torch.stack([((v - mean) / self.scale).square().sum(-1) for v in (x, mirrored)], -1)
            return (-0.5 * squares).logsumexp(-1) - space.dim * constant
        if isinstance(space, Box):
            low, high = space.corners(x)
            most = 1 + math.ceil(
                9 * self.scale / (2 * min(b - a for a, b in zip(space.lower, space.upper, strict=True)))
            )
            number = torch.arange(-most, most + 1, dtype=x.dtype, device=x.device)
            shift = 2 * (high - low).unsqueeze(-1) * number
            images = torch.cat([x.unsqueeze(-1) + shift, (2 * low - x).unsqueeze(-1) + shift], -1)
            squares = ((images - mean.unsqueeze(-1)) / self.scale).square()
            return (-0.5 * squares).logsumexp(-1).sum(-1) - space.dim * constant
        raise ValueError(f"ReflectedNormal has no closed-form density on {space}; use Uniform as the source there")
