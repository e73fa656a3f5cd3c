r"""Bayesian flow of real numbers (Graves et al. 2023): the state is the posterior mean of the data after noisy observations."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.paths.base import NoisyPoint, Path


@dataclass(frozen=True, eq=False)
class Fixed(Distribution):
    """One point, always: a belief before any observation.

    Args:
        manifold: the space.
        point: ``(*event)``; the origin if absent.
    """

    manifold: Manifold | None = None
    point: Tensor | None = field(default=None, compare=False)

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        if self.point is None:
            return self.space.origin(shape, dtype=dtype, device=device)
        return self.point.to(dtype=dtype, device=device).expand(*shape, *self.space.event_shape)

    def _log_density(self, x: Tensor) -> Tensor:
        raise TypeError("a single point has no density")


@dataclass(frozen=True)
class GaussianBayes(Path):
    r"""Posterior means of the data: :math:`\theta_t = \exp_o(\gamma \log_o x_1 + s \sqrt{\gamma (1 - \gamma)}\, \epsilon)`.

    They are what is believed after Gaussian observations of growing accuracy :math:`\beta = \sigma_1^{-2t} - 1`, that is
    :math:`\gamma = \beta / (1 + \beta) = 1 - \sigma_1^{2t}`, in units of the prior :math:`N(o, s^2)`. The state starts at the
    prior mean and ends at the data to :math:`\sigma_1 s`. The network predicts the data point; the loss is the bound of
    continuous time, :math:`-\ln \sigma_1\, \sigma_1^{-2t}\, |x_1 - \hat x|^2 / s^2` nats. A step draws the next mean,
    either anew from the law at the prediction (``resample``, the state is "brought back" from the predicted end), or by
    the Bayesian update of the present one with an observation of the prediction.

    Args:
        noise: :math:`\sigma_1`, what is not resolved at t = 1, in units of the prior.
        scale: s, one number, or one per direction of the frame at the prior mean.
        centre: o, the numbers of the point in a row; the origin if absent.
        resample: how a step draws.
        manifold: a space where :math:`\log_o` is one-to-one and flat: Euclidean, log-Euclidean matrices.
    """

    noise: float = 0.03
    scale: float | tuple[float, ...] = 1.0
    centre: tuple[float, ...] | None = None
    resample: bool = True

    predicts = "endpoint"
    is_flow: ClassVar[bool] = False
    takes_coupling: ClassVar[bool] = False
    uses_source_point: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.noise < 1:
            raise ValueError(f"GaussianBayes: noise must lie in (0, 1), got {self.noise}")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space``.

        Raises:
            TypeError: the space is not flat.
            ValueError: another prediction, or another start than the prior mean.
        """
        if predicts not in (None, "endpoint"):
            raise ValueError(f"GaussianBayes: the network predicts the data point, not {predicts!r}")
        if source is not None and not isinstance(source, Fixed):
            raise ValueError(f"GaussianBayes starts from its prior mean, not from {source}")
        if getattr(space, "is_discrete", False) or not (space.is_linear or space.is_hadamard) or space.is_centered:
            raise TypeError(
                f"GaussianBayes is for flat space and matrices with the log-Euclidean metric, not for {space}"
            )
        bound = super().bind(space, None, source)
        centre = None if self.centre is None else torch.tensor(self.centre).reshape(space.event_shape)
        own: Any = bound
        return replace(own, source=Fixed(space, centre))

    def with_source(self, source: Any) -> Any:
        """The prior mean."""
        own: Any = self
        return replace(own, source=source or Fixed(self.space))

    def gamma(self, t: Tensor) -> Tensor:
        r""":math:`\gamma(t)`."""
        return -torch.expm1(2 * math.log(self.noise) * t)

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        """A draw of the posterior mean; ``x0`` is unused."""
        return NoisyPoint(self._at(x1, self.gamma(t), generator), t, x1)

    def _at(self, x1: Tensor, gamma: Tensor, generator: torch.Generator | None) -> Tensor:
        n = self.space.tangent_ndim
        centre = self._centre(x1)
        ahead = self.space.log(centre, x1)
        share = torch.as_tensor(expand_time(gamma, ahead, n))
        noise = self._normal(x1, generator)
        return self.space.exp(centre, share * ahead + (share * (1 - share)).sqrt() * noise)

    def _centre(self, like: Tensor) -> Tensor:
        shape = like.shape[: like.ndim - self.space.event_ndim]
        start: Any = self.bound_source
        return start.sample(tuple(shape), dtype=like.dtype, device=like.device)

    def _normal(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """A tangent at the prior mean, of the prior's deviations."""
        centre = self._centre(like)
        basis = self.space.tangent_basis(centre)
        batch = like.shape[: like.ndim - self.space.event_ndim]
        numbers = torch.randn(*batch, self.space.dim, generator=generator, dtype=like.dtype, device=like.device)
        numbers = numbers * torch.as_tensor(self.scale, dtype=like.dtype, device=like.device)
        return (numbers.reshape(numbers.shape + (1,) * self.space.tangent_ndim) * basis).sum(
            -1 - self.space.tangent_ndim
        )

    def loss(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The integrand of the bound per element, with respect to t."""
        centre = self._centre(point.endpoint)
        off = self.space.log(centre, pred) - self.space.log(centre, point.endpoint)
        basis = self.space.tangent_basis(centre)
        n = self.space.tangent_ndim
        numbers = (off.unsqueeze(-1 - n) * basis).flatten(-n).sum(-1) if n else off
        squared = (numbers / torch.as_tensor(self.scale, dtype=numbers.dtype, device=numbers.device)).square().sum(-1)
        rate = -math.log(self.noise) * torch.exp(-2 * math.log(self.noise) * point.t)
        return expand_time(rate, squared, 0) * squared

    def bound(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """As the loss."""
        return self.loss(pred, point)

    def rest(self, pred: Tensor) -> Tensor:
        """The origin."""
        return self.space.origin(pred.shape[: pred.ndim - self.space.event_ndim], dtype=pred.dtype, device=pred.device)

    def is_random(self, how: Any = None) -> bool:
        """Every step draws."""
        return True

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The next posterior mean; a step to t = 1 ends at the prediction."""
        if self.resample:
            moved = self._at(pred, self.gamma(s), generator)
        else:
            n, centre = self.space.tangent_ndim, self._centre(pred)
            before, after = (
                torch.exp(-2 * math.log(self.noise) * when) for when in (t, s)
            )  # precisions, the prior's is 1
            gained = (after - before).clamp_min(0)
            mean, here = self.space.log(centre, pred), self.space.log(centre, x)
            kept, new, wide = (expand_time(v, mean, n) for v in (before / after, gained / after, gained.sqrt() / after))
            moved = self.space.exp(centre, kept * here + new * mean + wide * self._normal(pred, generator))
        return torch.where(torch.as_tensor(expand_time(s >= 1, pred, self.space.event_ndim)), pred, moved)
