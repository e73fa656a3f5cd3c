"""Continuous steps: the policy of a GFlowNet on a manifold is a wrapped normal law whose centre and width are learned."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.distributions import WrappedNormal
from manifoldflow.manifolds.base import Manifold
from manifoldflow.nn import Coordinates, TangentMLP
from manifoldflow.sampling.base import Memoryless
from manifoldflow.state import Move


class WrappedSteps(Memoryless, nn.Module):
    r"""Steps :math:`y \sim \mathrm{WrappedNormal}(\exp_x f(x, t), \sigma(x, t))`: a kernel with exact log-densities.

    On tori, spheres, rotations, flat space: wherever there is a wrapped normal density. Two of them, one forward and one that
    leads back, or one and a :class:`manifoldflow.RandomWalk` without drift, are a :class:`Balance`; a fixed number of steps makes
    an object, so no action stops (Lahlou et al. 2023). Untrained it is a walk without drift and with width ``scale``.

    Args:
        space: the manifold.
        scale: width of a step at the beginning of training, in units of length of the space.
        range: by which factor the width may be learned to differ, up and down; 1 for a fixed width.
        width, depth: of the networks.
        condition: size of a condition.
    """

    def __init__(
        self,
        space: Manifold,
        scale: float,
        *,
        range: float = 5.0,
        width: int = 64,
        depth: int = 2,
        condition: int = 0,
    ) -> None:
        super().__init__()
        if not (scale > 0 and range >= 1):
            raise ValueError(f"WrappedSteps: scale must be positive and range at least 1, got {scale}, {range}")
        self.space, self.scale, self.range = space, scale, range
        self.drift = TangentMLP(space, width, depth, condition=condition)
        self.features = Coordinates(space)
        self.spread = nn.Sequential(
            nn.Linear(self.features.size + 2 + condition, width), nn.SiLU(), nn.Linear(width, 1)
        )
        lasts: Any = (self.drift.net[-1], self.spread[-1])
        for last in lasts:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def law(self, x: Tensor, t: Tensor, cond: Any = None) -> WrappedNormal:
        """Where a step from x at time t ends."""
        size = x.shape[0]
        when = t.expand(size).to(x.dtype)
        centre = self.space.exp(x, self.drift(x, when, cond=cond))
        seen = [self.features(x), (math.pi * when).sin().unsqueeze(-1), (math.pi * when).cos().unsqueeze(-1)]
        raw = self.spread(torch.cat(seen if cond is None else [*seen, cond], -1)).squeeze(-1)
        return WrappedNormal(self.space, scale=self.scale * (math.log(self.range) * raw.tanh()).exp(), mean=centre)

    def _move(
        self, x: Tensor, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        y = self.law(x, t, cond).sample((x.shape[0],), generator=generator, dtype=x.dtype, device=x.device)
        return Move(y)

    def _log_prob(self, x: Tensor, y: Tensor, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        """Log-density by the volume of the space."""
        return self.law(x, t, cond).log_prob(y)

    def log_probs_of(self, trajectory: Any, *, cond: Any = None) -> Tensor:
        """All steps of a trajectory in one pass, ``(T, B)``."""
        states, times = trajectory.states, trajectory.times
        steps, size = len(times) - 1, states.shape[1]
        before, after = states[:-1].flatten(0, 1), states[1:].flatten(0, 1)
        given = None if cond is None else cond.repeat(steps, 1)
        return self.log_prob(before, after, times[:-1].repeat_interleave(size), times[1:], cond=given).reshape(
            steps, size
        )
