"""Denoising diffusion on tori and flat space: noise that wraps around, from wide to narrow (Jiao et al. 2023)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import Path


class DiffusedPoint(NamedTuple):
    """One draw of a diffusion.

    Attributes:
        x: the noisy point ``(..., *event)``.
        t: its time, leading batch axes of x.
        noise: the target, the normalised score of the draw with the sign of noise; a tangent at x.
        endpoint: x_1.
    """

    x: Tensor
    t: Tensor
    noise: Tensor
    endpoint: Tensor


@dataclass(frozen=True)
class WrappedDiffusion(Path):
    r"""The path :math:`x_t = \exp_{x_1}(\sigma \epsilon)`, :math:`\sigma(t) = \sigma_0^{1-t} \sigma_1^{t}`, from wide to narrow.

    On a torus the noise wraps around, and at :math:`\sigma_0` of half a period it is uniform to 1.5 % of the density. The score
    of the wrapped normal is the weighted mean over the images of the data point. The network predicts

    .. math:: \eta = -\frac{\sigma}{n(\sigma)}\, E[\nabla \log p(x_t | x_1) \mid x_t],

    with the root mean square n of the numerator's numbers, so that its targets are of size 1 at every level (n is 1 for narrow
    noise and on flat space, and falls as the wide noise forgets the data). Samples follow the probability flow
    :math:`\dot x = \sigma' n\, \eta`, whose steps take the level exactly; the last one removes all noise that is expected. With
    ``method=mf.SDE(r)`` noise is renewed on the way.

    Args:
        most: :math:`\sigma_0`, in the units of length of the space.
        least: :math:`\sigma_1`.
        manifold: :class:`Torus` or :class:`Euclidean`; :class:`manifoldflow.Flow` fills it in.
        source: uniform on a torus; on flat space give ``Normal(scale=most)``.
    """

    most: float = 0.5
    least: float = 0.005

    predicts = "noise"
    takes_coupling: ClassVar[bool] = False
    uses_source_point: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.least < self.most:
            raise ValueError(f"WrappedDiffusion: needs 0 < least < most, got {self.least} and {self.most}")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space``.

        Raises:
            TypeError: neither a torus nor flat space.
            ValueError: another prediction is asked for.
        """
        if predicts not in (None, "noise"):
            raise ValueError(f"WrappedDiffusion: the network predicts the noise, not {predicts!r}")
        flat = getattr(space, "is_linear", False) or getattr(space, "coordinate_period", None) is not None
        if not (flat and getattr(space, "any_vector_is_tangent", False)):
            raise TypeError(
                f"WrappedDiffusion is for Torus and Euclidean, not for {space}; use StochasticInterpolant there"
            )
        return super().bind(space, None, source)

    def level(self, t: Tensor) -> Tensor:
        r""":math:`\sigma(t)`, the limit :math:`\sigma_1` at t = 1."""
        return self.most * torch.exp(math.log(self.least / self.most) * t)

    def noise_level(self, t: Tensor) -> Tensor:
        r""":math:`\sigma(t)`; 0 from t = 1 on, where what is left has been removed."""
        t = torch.as_tensor(t)
        return torch.where(t >= 1, 0.0, self.level(t))

    def size(self, level: Tensor) -> Tensor:
        """n, the root mean square of a number of the noise that is seen at a level."""
        period = self.space.coordinate_period
        if period is None:
            return torch.ones_like(level)
        grid, table = _sizes(period)
        at = ((level.clamp_min(1e-9).log() - grid[0]) / (grid[-1] - grid[0]) * (len(grid) - 1)).clamp(
            0, len(grid) - 1.001
        )
        low = at.floor()
        values = torch.as_tensor(table, dtype=level.dtype, device=level.device)
        left, right = values[low.long()], values[low.long() + 1]
        return torch.exp(left + (at - low) * (right - left))

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> DiffusedPoint:
        """The noisy point at time ``t`` and the noise in it that can be seen.

        Args:
            x0: unused: the noise is drawn around the data.
            x1: data points ``(..., *event)``.
            t: times, leading batch axes of x1; from 1 on there is no noise.
            generator: of the noise.
        """
        level = torch.as_tensor(expand_time(self.noise_level(t), x1, 1))
        noise = torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
        x = self.space.exp(x1, level * noise)
        return DiffusedPoint(x, t, self.visible(x, x1, level), x1)

    def visible(self, x: Tensor, x1: Tensor, level: Tensor) -> Tensor:
        r"""The target :math:`-\sigma \nabla \log p(x | x_1) / n(\sigma)`; 0 where there is no noise.

        Args:
            x, x1: points ``(..., d)``.
            level: broadcasts with them.
        """
        safe = torch.where(level > 0, level, 1.0)
        gap, period = self.space.log(x1, x), self.space.coordinate_period
        if period is None:
            seen = gap / safe
        else:
            images = gap.unsqueeze(-1) + period * torch.arange(-3, 4, dtype=x.dtype, device=x.device)
            weight = (-0.5 * (images / safe.unsqueeze(-1)) ** 2).softmax(-1)
            seen = (weight * images).sum(-1) / safe
        return torch.where(level > 0, seen / self.size(safe), 0.0)

    def loss(self, pred: Tensor, point: DiffusedPoint) -> Tensor:
        """Squared error of the noise per element, batch shape."""
        return (pred - point.noise).square().sum(-1)

    def noise_prediction(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`-\sigma \nabla \log p_t(x)`."""
        return torch.as_tensor(expand_time(self.size(self.level(torch.as_tensor(t))), pred, 1)) * pred

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r"""That of the probability flow, :math:`\sigma'(t)\, n\, \eta`."""
        rate = self.level(t) * math.log(self.least / self.most)
        return torch.as_tensor(expand_time(rate, pred, 1)) * self.noise_prediction(pred, x, t)

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""One step of the probability flow, :math:`\exp_x((\sigma(s) - \sigma(t))\, n\, \eta)`; to s = 1 with no noise left."""
        gained = torch.as_tensor(expand_time(self.noise_level(s) - self.noise_level(t), pred, 1))
        return self.space.exp(x, gained * self.noise_prediction(pred, x, t))

    def check_score(self, coupling: Any) -> None:
        """The network learns the score."""


@lru_cache(maxsize=16)
def _sizes(period: float) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of sigma and of the root mean square of sigma times the score of the wrapped normal, by quadrature."""
    log_level = np.linspace(math.log(1e-3 * period), math.log(2 * period), 240)
    level = np.exp(log_level)[:, None, None]
    share = (np.arange(500) + 0.5) / 500  # midpoints between 0 and 12 sigma, or half a period if that is nearer
    reach = np.minimum(12 * level, 0.5 * period)
    images = (share[None, :, None] * reach) + period * np.arange(-12, 13)
    log_weight = -0.5 * (images / level) ** 2
    top = log_weight.max(-1, keepdims=True)
    weight = np.exp(log_weight - top)
    total = weight.sum(-1)
    seen = (weight * images).sum(-1) / total / level[..., 0]
    density = total * np.exp(top[..., 0])
    squared = (density * seen**2).sum(-1) / density.sum(-1)
    return log_level, 0.5 * np.log(squared.clip(1e-20))
