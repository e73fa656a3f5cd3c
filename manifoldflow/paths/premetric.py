r"""The conditional path of a premetric: descent of the distance to the data point (Chen & Lipman 2024, eq. 13)."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import Path, PathPoint
from manifoldflow.paths.schedule import Linear, Schedule


@dataclass(frozen=True)
class Premetric(Path):
    r"""The path along which the premetric falls to 0 in proportion, :math:`d(x_t, x_1) = (1 - k(t))\, d(x_0, x_1)`:

    .. math:: u_t(x \mid x_1) = -\frac{k'(t)}{1 - k(t)}\, d(x, x_1)\, \frac{\nabla_x d(x, x_1)}{|\nabla_x d(x, x_1)|^2}

    The manifold has ``premetric(x, y) -> (d, grad_x d)``; with the geodesic distance this is :class:`Geodesic`. There is no
    closed form of x_t, so training follows the field from x_0. A step aims at the distance of its end, and the next one
    starts from the distance that was really reached, so errors do not add up.

    Args:
        steps: number of steps of a simulated path from x_0 to x_t.
        top_speed: bound on \|u_t\| / k'(t). The gradient of a distance vanishes at its maximum and at saddles, where the field
            is infinite. On a compact surface 4 roots of the area if absent, elsewhere none.
        schedule: k.
        manifold: the space; :class:`manifoldflow.Flow` fills it in.
    """

    steps: int = 50
    top_speed: float | None = None
    schedule: Schedule = field(default_factory=Linear)
    predicts: Literal["velocity", "endpoint"] = "velocity"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Premetric: steps must be at least 1, got {self.steps}")
        if self.top_speed is not None and not self.top_speed > 0:
            raise ValueError(f"Premetric: top_speed must be positive, got {self.top_speed}")
        if self.predicts != "velocity":
            raise ValueError(f"Premetric: a network predicts the velocity here, not {self.predicts!r}")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space``.

        Raises:
            TypeError: the manifold has no premetric.
        """
        if not hasattr(space, "premetric"):
            raise TypeError(f"{space} has no premetric(x, y) -> (distance, gradient); use Geodesic()")
        return super().bind(space, predicts, source)

    @property
    def _top(self) -> float | None:
        if self.top_speed is not None:
            return self.top_speed
        try:
            return 4 * math.exp(self.space.log_volume / self.space.dim)
        except ValueError:  # infinite volume
            return None

    def field_to(self, x: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """The conditional field u_t(x | x1), tangents at ``x``."""
        distance, gradient = self.space.premetric(x, x1)
        steepness = self.space.inner(x, gradient, gradient).clamp_min(1e-30)
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        rate = expand_time(self.schedule.dk(t) / self.schedule.remaining(t).clamp_min(1e-4), distance, 0)
        scale = rate * distance / steepness
        if self._top is not None:
            scale = torch.minimum(scale, self._top * expand_time(self.schedule.dk(t), distance, 0) / steepness.sqrt())
        return -expand_time(scale, gradient, self.space.tangent_ndim) * gradient

    @torch.no_grad()
    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> PathPoint:
        """The simulated point at time ``t`` and the field there; deterministic, so ``generator`` is unused.

        Args:
            x0, x1: source and data points ``(..., *event)``.
            t: times in [0, 1], leading batch axes of x0.
        """
        t = torch.as_tensor(t, dtype=x0.dtype, device=x0.device)
        x = self.trajectory(x0, x1, t)[-1]
        return PathPoint(x, t, self.field_to(x, x1, t), x1)

    @torch.no_grad()
    def trajectory(self, x0: Tensor, x1: Tensor, t: Tensor | float = 1.0) -> Tensor:
        """The simulated paths at times 0, t / steps, ..., t: ``(steps + 1, ..., *event)``."""
        x0, x1 = torch.broadcast_tensors(x0, x1)
        event = x0.ndim - self.space.event_ndim
        batch, shape = x0.shape[:event], x0.shape[event:]
        # One time per row: (B,) beside (B, N) elements is repeated.
        t = torch.as_tensor(t, dtype=x0.dtype, device=x0.device)
        times = t.reshape(t.shape + (1,) * (len(batch) - t.ndim)).expand(batch).reshape(-1)
        grid = torch.linspace(0, 1, self.steps + 1, dtype=x0.dtype, device=x0.device).unsqueeze(-1) * times
        shares = self.schedule.fraction(grid[:-1], grid[1:])
        top = self._top
        reach = None if top is None else top * (self.schedule.k(grid[1:]) - self.schedule.k(grid[:-1]))
        start, end = x0.reshape(-1, *shape), x1.reshape(-1, *shape)
        own = getattr(self.space, "premetric_path", None)  # a manifold may know a quicker way
        made = self._follow(start, end, shares, reach) if own is None else own(start, end, shares, reach)
        return made.reshape(self.steps + 1, *x0.shape)

    def _follow(self, x: Tensor, x1: Tensor, shares: Tensor, reach: Tensor | None) -> Tensor:
        seen = [x]
        for i, share in enumerate(shares):
            distance, gradient = self.space.premetric(x, x1)
            steepness = self.space.inner(x, gradient, gradient).clamp_min(1e-30)
            scale = share * distance / steepness
            if reach is not None:
                scale = torch.minimum(scale, reach[i] / steepness.sqrt())
            x = self.space.exp(x, -expand_time(scale, gradient, self.space.tangent_ndim) * gradient)
            seen.append(x)
        return torch.stack(seen)

    def loss(self, pred: Tensor, point: PathPoint) -> Tensor:
        r"""Squared error :math:`|v - u_t|^2` per element, shape of the batch."""
        error = self.space.to_tangent(point.x, pred) - point.velocity
        return self.space.inner(point.x, error, error)

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The tangent that moves ``x`` at time ``t``."""
        return self.space.to_tangent(x, pred)
