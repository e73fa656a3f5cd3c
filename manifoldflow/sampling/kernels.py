"""Kernels of a velocity field, and walks: what needs no flow."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldflow.field import per_element
from manifoldflow.manifolds.base import expand_time
from manifoldflow.sampling.base import Memoryless
from manifoldflow.sampling.steps import Step, Velocity, get_step
from manifoldflow.sampling.volume import log_volume_change
from manifoldflow.state import Move, State, fields, first_tensor, like, where_mask


class OdeKernel(Memoryless):
    """Integrates ``velocity(x, t) -> tangent state``.

    Its steps are maps; their log-probability is minus the log of the factor by which they stretch volumes, so that the sum over
    a trajectory is what the density of its start is divided by.

    Args:
        velocity: the field; t arrives as a scalar tensor.
        spaces: manifold of the state, or a dict of them.
        method: ``"euler"``, ``"midpoint"``, ``"heun"``, ``"rk4"`` or a step function.
    """

    def __init__(self, velocity: Velocity, spaces: Any, method: str | Step = "euler") -> None:
        self.velocity, self.spaces, self.step = velocity, spaces, get_step(method)

    def _move(
        self, x: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        return Move(self.step(self.velocity, self.spaces, x, t, s))

    def _log_prob(self, x: State, y: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        """Minus the log of the volume factor of the step at ``x``; ``y`` is taken to be where it leads."""
        return -log_volume_change(lambda at: self.step(self.velocity, self.spaces, at, t, s), self.spaces, x, mask=mask)


def ode_kernel(velocity: Callable[..., State], spaces: Any, method: str | Step = "euler") -> OdeKernel:
    """A kernel that integrates ``velocity(x, t) -> tangent state`` with one of the integrators; see :class:`OdeKernel`."""
    return OdeKernel(velocity, spaces, method)


class RandomWalk(Memoryless):
    r"""Geodesic random walk :math:`y = \exp_x(h\, b(x, t) + \sigma \sqrt{|h|}\, \xi)`, h = s - t, on every field.

    Where the manifold has walls exp is reflected there, and so is the walk. As steps shrink it is the diffusion
    :math:`dx = b\, dt + \sigma\, dW` (Jørgensen 1975; with a drift the process that score-based models run backward).

    Args:
        spaces: manifold of the state, or a dict of them.
        scale: :math:`\sigma`, length per root of unit time: a number, or a function of the time.
        drift: b, ``(x, t) -> tangent state``; none if absent.
    """

    def __init__(
        self, spaces: Any, scale: float | Callable[[Tensor], Tensor] = 1.0, drift: Velocity | None = None
    ) -> None:
        self.spaces, self.scale, self.drift = spaces, scale, drift

    def _move(
        self, x: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        sigma, means = self._law(x, t, s)
        out = {}
        for n, value in fields(x).items():
            space = fields(self.spaces)[n]
            noise = space.random_tangent(value, generator=generator)
            u = space.center(expand_time(sigma, noise, space.tangent_ndim) * noise, mask)
            out[n] = where_mask(mask, space.exp(value, u if means is None else means[n] + u), value)
        return Move(like(out, x))

    def _log_prob(self, x: State, y: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        """Log-density of the step, the images that lead to ``y`` around closed geodesics or off walls added up, ``(B,)``."""
        sigma, means = self._law(x, t, s)
        total: Any = 0.0
        for n, value in fields(x).items():
            space = fields(self.spaces)[n]
            mean = torch.zeros_like(space.log(value, value)) if means is None else means[n]
            element = space.log_pushed_normal(value, mean, sigma, fields(y)[n], mask=mask)
            total = total + per_element(element, mask, first_tensor(x))
        return total

    def _law(self, x: State, t: Tensor, s: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Standard deviation and mean tangents of a step."""
        h = s - t
        sigma = (self.scale(t) if callable(self.scale) else self.scale) * h.abs().sqrt()
        if self.drift is None:
            return sigma, None
        made = fields(self.drift(x, t))
        space_of = fields(self.spaces)
        return sigma, {n: expand_time(h, v, space_of[n].tangent_ndim) * v for n, v in made.items()}
