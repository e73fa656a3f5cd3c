r"""Diffusion on flat space as a path: variance preserving and variance exploding (Song et al. 2021), time from noise to data.

.. math:: x_t = a(t)\, x_1 + s(t)\, \eta, \quad \eta \sim N(0, I)

with a and s of a linear stochastic equation that runs from the data (t = 1) to noise (t = 0), in the time :math:`\tau = 1 - t`.
The network predicts :math:`\eta`, so the score of the marginal is :math:`-\eta / s`: flows, equations with noise
(:class:`manifoldflow.SDE`) and Langevin corrections (:class:`manifoldflow.PredictorCorrector`) all follow from it. A state of
several fields, each with a diffusion of its own and one network that sees all, is a system of such equations (GDSS, Jo et al.
2022).
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from manifoldflow.distributions import Normal
from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import NoisyPoint, Path


@dataclass(frozen=True)
class DiffusionLaw:
    """Base class of the coefficients of a diffusion: subclasses give all but ``reverse``."""

    def signal(self, t: Tensor) -> Tensor:
        """a(t): 1 at the data."""
        raise NotImplementedError

    def level(self, t: Tensor) -> Tensor:
        """s(t), the standard deviation of the noise: 0 at the data."""
        raise NotImplementedError

    def rate(self, t: Tensor) -> Tensor:
        r""":math:`g^2`: the variance that the forward equation adds per unit of :math:`\tau`."""
        raise NotImplementedError

    def shrinking(self, t: Tensor) -> Tensor:
        r""":math:`-d \log a / d\tau`: how fast the forward equation forgets the data."""
        raise NotImplementedError

    def reverse(self, t: Tensor) -> Tensor:
        r""":math:`\epsilon = g^2 / 2`: with ``SDE(law.reverse)`` the sampler is the reverse-time equation of Anderson (1982)."""
        return 0.5 * self.rate(t)


@dataclass(frozen=True)
class VariancePreserving(DiffusionLaw):
    r""":math:`dx = -\frac12 \beta x\, d\tau + \sqrt\beta\, dW`, :math:`\beta` rising from ``low`` to ``high``.

    At the default nothing of the data is left at t = 0; with less noise the source is only about right, as in any diffusion.

    Args:
        low, high: :math:`\beta` at the data and at the noise.
    """

    low: float = 0.1
    high: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"VariancePreserving: needs 0 < low <= high, got {self.low} and {self.high}")

    def _integral(self, t: Tensor) -> Tensor:
        left = 1 - t
        return left * (self.low + 0.5 * (self.high - self.low) * left)

    def signal(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def level(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).clamp_min(0).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * (1 - t)

    def shrinking(self, t: Tensor) -> Tensor:
        return 0.5 * self.rate(t)


@dataclass(frozen=True)
class VarianceExploding(DiffusionLaw):
    r""":math:`dx = g\, dW`, the noise growing from nothing to ``high``: :math:`s^2 = \sigma^2(\tau) - \sigma^2(0)`,
    :math:`\sigma = \mathrm{low}\, (\mathrm{high} / \mathrm{low})^\tau`.

    The data stay in the source, which is therefore right only if ``high`` is far above their size.

    Args:
        low: smallest scale that is resolved, in the units of the data.
        high: standard deviation of the source.
    """

    low: float = 0.01
    high: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"VarianceExploding: needs 0 < low < high, got {self.low} and {self.high}")

    def _sigma(self, t: Tensor) -> Tensor:
        return self.low * torch.exp(math.log(self.high / self.low) * (1 - t))

    def signal(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def level(self, t: Tensor) -> Tensor:
        return self.low * torch.expm1(2 * math.log(self.high / self.low) * (1 - t)).clamp_min(0).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return 2 * math.log(self.high / self.low) * self._sigma(t).square()

    def shrinking(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


@dataclass(frozen=True)
class Diffusion(Path):
    r"""A diffusion whose network predicts the noise, or the data.

    The loss is :math:`|\hat\eta - \eta|^2`, which is the score-matching loss weighted by :math:`s^2`. A step without noise is
    that of DDIM (Song, Meng & Ermon 2021): the predicted data and the predicted noise are mixed anew, so a step to t = 1 lands.

    Args:
        law: :class:`VariancePreserving` or :class:`VarianceExploding`.
        predicts: ``"noise"``, or ``"endpoint"`` (its loss is that of the noise it means, up to the factor
            :math:`\min(a / s, 5)^2`).
        manifold, source: flat space, and the Gaussian of the law at t = 0; :class:`manifoldflow.Flow` fills them in.
    """

    law: DiffusionLaw = field(default_factory=VariancePreserving)
    predicts: Literal["noise", "endpoint"] = "noise"

    def __post_init__(self) -> None:
        if self.predicts not in ("noise", "endpoint"):
            raise ValueError(f"Diffusion: predicts must be 'noise' or 'endpoint', got {self.predicts!r}")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on flat space.

        Raises:
            TypeError: the space is curved or holds tokens.
            ValueError: the source is not the Gaussian of the law.
        """
        if not space.is_linear:
            raise TypeError(f"Diffusion lives on flat space, not on {space}; use Geodesic(), or Masking() for tokens")
        return super().bind(space, predicts, source)

    def with_source(self, source: Any) -> Any:
        """A copy that starts from the Gaussian of its law."""
        scale = float(self.law.level(torch.zeros((), dtype=torch.float64)))
        given: Any = source or self.source
        if given is not None and not (
            getattr(given, "is_gaussian", False) and math.isclose(given.scale, scale, rel_tol=1e-6)
        ):
            raise ValueError(f"Diffusion starts from Normal(scale={scale:g}), the noise of its law, not from {given}")
        return super().with_source(given or Normal(scale))

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        """The point between noise ``x0`` (of the standard deviation s(0)) and data ``x1`` at time ``t``."""
        n = self.space.tangent_ndim
        a = expand_time(self.law.signal(t), x1, n)
        return NoisyPoint(a * x1 + expand_time(self._level(t), x0, n) * (x0 / self._start), t, x1)

    def loss(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The squared error per element, batch shape."""
        n = self.space.tangent_ndim
        a, s = expand_time(self.law.signal(point.t), point.x, n), expand_time(self._level(point.t), point.x, n)
        if self.predicts == "endpoint":
            error = (pred - point.endpoint) * torch.clamp(torch.as_tensor(a / s), max=5.0)
        else:
            error = pred - (point.x - a * point.endpoint) / s
        return self.space.inner(point.x, error, error)

    def split(self, pred: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The data and the noise that a prediction means."""
        n = self.space.tangent_ndim
        a, s = expand_time(self.law.signal(t), x, n), expand_time(self._level(t), x, n)
        if self.predicts == "endpoint":
            return pred, (x - a * pred) / s
        return (x - s * pred) / a, pred

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r"""The velocity of the probability flow, :math:`a' \hat x_1 + s' \hat\eta`."""
        clean, noise = self.split(pred, x, t)
        a, s, g2 = self.law.signal(t), self._level(t), self.law.rate(t)
        # In t = 1 - tau: a' = a f with f the shrinking rate of the signal, and (s^2)' = 2 f s^2 - g^2.
        fall = self.law.shrinking(t)
        n = self.space.tangent_ndim
        return expand_time(a * fall, x, n) * clean + expand_time(fall * s - 0.5 * g2 / s, x, n) * noise

    def has_pole(self) -> bool:
        """The noise level falls like a root at t = 1, so its derivative grows without limit."""
        return True

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The predicted data and noise, mixed as at time ``s``: exact if the prediction is, and at s = 1 the predicted data."""
        clean, noise = self.split(pred, x, t)
        n = self.space.tangent_ndim
        return expand_time(self.law.signal(s), x, n) * clean + expand_time(self.law.level(s), x, n) * noise

    def rest(self, pred: Tensor) -> Tensor:
        """Zeros: noise, or the origin."""
        return torch.zeros_like(pred)

    def centred(self, pred: Tensor, mask: Tensor | None) -> Tensor:
        """Predictions without the drift of the centre, where the space has none."""
        return self.space.center(pred, mask)

    # ---------------------------------------------------------------- noise and score

    def check_score(self, coupling: Any) -> None:
        """The network learns the score, if noise and data are paired independently.

        Raises:
            TypeError: they are not.
        """
        if not getattr(coupling, "is_independent", False):
            raise TypeError(f"the score of a Diffusion belongs to the independent coupling, not to {coupling}")

    def noise_level(self, t: Tensor) -> Tensor:
        """s(t)."""
        return self.law.level(torch.as_tensor(t))

    def noise_prediction(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`\hat\eta`."""
        return self.split(pred, x, t)[1]

    def _level(self, t: Tensor) -> Tensor:
        """s(t), kept above what would divide by zero at the data."""
        return self.law.level(t).clamp_min(1e-4)

    @property
    def _start(self) -> float:
        return float(cast(Normal, self.bound_source).scale)
