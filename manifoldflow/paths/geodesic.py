"""The conditional path along the shortest geodesic from source to data (Chen & Lipman 2024, eq. 14)."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.paths.schedule import Linear, Schedule


class PathPoint(NamedTuple):
    """One draw of a conditional path.

    Attributes:
        x: the point x_t, ``(..., *event)``.
        t: its time, leading batch axes of x.
        velocity: d x_t / dt, a tangent at x.
        endpoint: x_1.
    """

    x: Tensor
    t: Tensor
    velocity: Tensor
    endpoint: Tensor


@dataclass(frozen=True)
class Geodesic:
    r"""Geodesic path :math:`x_t = \exp_{x_0}(k(t) \log_{x_0} x_1)`, :math:`u_t = k'(t) [\log_{x_t} x_1 - \log_{x_t} x_0]`.

    Args:
        schedule: k of training.
        sample_schedule: k of sampling if it differs. A prediction is first turned into an endpoint direction with the
            training schedule and then followed with this one (FrameFlow and ReQFlow need ``Exponential(10)`` on rotations).
        predicts: what the network returns: ``"velocity"`` (a tangent at x_t) or ``"endpoint"`` (a point, the clean x_1).
        clip: floor of 1 - k(t) in the endpoint loss and in velocities near t = 1.
        manifold: the space; :class:`manifoldflow.Flow` fills it in.
    """

    schedule: Schedule = field(default_factory=Linear)
    sample_schedule: Schedule | None = None
    predicts: Literal["velocity", "endpoint"] = "velocity"
    clip: float = 0.1
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if self.predicts not in ("velocity", "endpoint"):
            raise ValueError(f"predicts must be 'velocity' or 'endpoint', got {self.predicts!r}")

    def bind(self, manifold: Manifold, predicts: Literal["velocity", "endpoint"] | None = None) -> "Geodesic":
        """A copy on ``manifold`` that reads predictions as ``predicts``."""
        return replace(self, manifold=self.manifold or manifold, predicts=predicts or self.predicts)

    @property
    def space(self) -> Manifold:
        """The manifold of a bound path."""
        if self.manifold is None:
            raise ValueError("this path has no manifold yet: use Geodesic(manifold=...) or path.bind(manifold)")
        return self.manifold

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> PathPoint:
        """The point and velocity at time ``t``; deterministic, so ``generator`` is unused.

        Args:
            x0, x1: source and data points ``(..., *event)``.
            t: times in [0, 1], leading batch axes of x0.
        """
        x, direction = self.space.geodesic(x0, x1, self.schedule.k(t))
        return PathPoint(x, t, expand_time(self.schedule.dk(t), direction, self.space.tangent_ndim) * direction, x1)

    def loss(self, pred: Tensor, point: PathPoint) -> Tensor:
        r"""Squared error per element, shape of the batch.

        Velocity: :math:`|v - u_t|^2`. Endpoint: :math:`|\log_{x_t} \hat x_1 - \log_{x_t} x_1|^2 / \max(1 - k, clip)^2`.
        """
        space = self.space
        if self.predicts == "velocity":
            error = space.to_tangent(point.x, pred) - point.velocity
            return space.inner(point.x, error, error)
        error = space.log(point.x, pred) - space.log(point.x, point.endpoint)
        squared = space.inner(point.x, error, error)
        left = self.schedule.remaining(point.t).clamp_min(self.clip)
        return squared / expand_time(left**2, squared, 0)

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The tangent that moves ``x`` at time ``t`` on the sampling schedule."""
        space, to = self.space, self.sample_schedule or self.schedule
        if self.predicts == "endpoint":
            rate = to.dk(t) / to.remaining(t).clamp_min(1e-3)
            u = space.log(x, pred)
            return expand_time(rate, u, space.tangent_ndim) * u
        u = space.to_tangent(x, pred)
        if self.sample_schedule is None:
            return u
        rate = (
            self.schedule.remaining(t)
            / self.schedule.dk(t).clamp_min(1e-6)
            * to.dk(t)
            / to.remaining(t).clamp_min(1e-3)
        )
        return expand_time(rate, u, space.tangent_ndim) * u

    def advance(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """One geodesic step from time ``t`` to ``s`` with the prediction held fixed.

        An endpoint prediction is followed exactly (no linearisation of the schedule), so a step to s = 1 lands on it.
        """
        space = self.space
        if self.predicts == "endpoint":
            fraction = (self.sample_schedule or self.schedule).fraction(t, s)
            u = space.log(x, pred)
            return space.exp(x, expand_time(fraction, u, space.tangent_ndim) * u)
        u = self.velocity(pred, x, t)
        return space.exp(x, expand_time(s - t, u, space.tangent_ndim) * u)
