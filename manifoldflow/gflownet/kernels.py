"""Policies of an environment as kernels: actions forward, their undoing backward, with the log-probability of either."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldflow.discrete import draw_categorical
from manifoldflow.gflownet.env import Env
from manifoldflow.sampling.base import Trajectory
from manifoldflow.state import Move, State, first_tensor, map_state

Logits = Callable[[State], Tensor]


class _Policy:
    """What both directions share: masked logits, draws, and the score of given moves.

    Args:
        env: the environment.
        logits: states -> ``(B, A)``; None for equal odds of all that is allowed.
        epsilon: share of actions that are drawn evenly from those allowed.
        temperature: logits are divided by it when actions are drawn. Neither changes the probabilities that are reported,
            which are those of the policy itself.
    """

    def __init__(
        self, env: Env, logits: Logits | None = None, *, epsilon: float = 0.0, temperature: float = 1.0
    ) -> None:
        if not 0 <= epsilon <= 1 or not temperature > 0:
            raise ValueError(f"epsilon must lie in [0, 1] and temperature be positive, got {epsilon}, {temperature}")
        self.env, self.logits, self.epsilon, self.temperature = env, logits, epsilon, temperature

    def mask(self, x: State) -> Tensor:
        """Allowed actions."""
        raise NotImplementedError

    def moved(self, x: State, action: Tensor) -> State:
        """The states after the actions."""
        raise NotImplementedError

    def action(self, x: State, y: State) -> Tensor:
        """The actions between two states."""
        raise NotImplementedError

    def log_odds(self, x: State) -> Tensor:
        """Log-probabilities of all actions, ``(B, A)``; minus infinity where forbidden, zeros where nothing is allowed."""
        mask = self.mask(x)
        made = mask.new_zeros(mask.shape, dtype=torch.get_default_dtype()) if self.logits is None else self.logits(x)
        rest = ~mask.any(-1, keepdim=True)
        return made.masked_fill(~(mask | rest), -torch.inf).log_softmax(-1).masked_fill(rest, 0.0)

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> None:
        """Nothing is carried."""

    def __call__(
        self,
        x: State,
        carry: Any,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> Move:
        log_p = self.log_odds(x)
        allowed = self.mask(x)
        stays = ~allowed.any(-1)
        drawn = draw_categorical(log_p.detach(), temperature=self.temperature, generator=generator)
        if self.epsilon > 0:
            even = draw_categorical(
                torch.zeros_like(log_p).masked_fill(~(allowed | stays.unsqueeze(-1)), -torch.inf), generator=generator
            )
            coin = torch.rand(drawn.shape, generator=generator, device=drawn.device) < self.epsilon
            drawn = torch.where(coin, even, drawn)
        y = self.env.hold(stays, x, self.moved(x, drawn))
        value = log_p.gather(1, drawn.unsqueeze(1)).squeeze(1)
        return Move(y, None, torch.where(stays, 0.0, value))

    def log_prob(
        self,
        x: State,
        y: State,
        t: Tensor,
        s: Tensor,
        *,
        carry: Any = None,
        mask: Tensor | None = None,
        cond: Any = None,
    ) -> Tensor:
        """Log-probability ``(B,)`` of the given moves; 0 where nothing moved."""
        value = self.log_odds(x).gather(1, self.action(x, y).unsqueeze(1)).squeeze(1)
        return torch.where(self.env.same(x, y), 0.0, value)

    def log_prob_of(self, trajectory: Trajectory, *, mask: Tensor | None = None, cond: Any = None) -> Tensor:
        """The sum over a trajectory, ``(B,)``."""
        return self.log_probs_of(trajectory).sum(0)

    def log_probs_of(self, trajectory: Trajectory) -> Tensor:
        """All steps of a trajectory in one pass of the network, ``(T, B)``."""
        before = map_state(lambda v: v[:-1].flatten(0, 1), trajectory.states)
        after = map_state(lambda v: v[1:].flatten(0, 1), trajectory.states)
        count = len(trajectory.times) - 1
        return self.log_prob(before, after, trajectory.times[0], trajectory.times[1]).reshape(count, -1)


class ForwardPolicy(_Policy):
    """Builds objects: draws an allowed action and takes it; what is done stays."""

    def mask(self, x: State) -> Tensor:
        return self.env.forward_mask(x)

    def moved(self, x: State, action: Tensor) -> State:
        return self.env.step(x, action)

    def action(self, x: State, y: State) -> Tensor:
        return self.env.action(x, y)


class BackwardPolicy(_Policy):
    """Takes objects apart: draws an action that may have led here and undoes it; the initial state stays."""

    def mask(self, x: State) -> Tensor:
        return self.env.backward_mask(x)

    def moved(self, x: State, action: Tensor) -> State:
        return self.env.undo(x, action)

    def action(self, x: State, y: State) -> Tensor:
        return self.env.action(y, x)


def action_times(env: Env, like: State) -> Tensor:
    """The grid of an environment: as many steps as its horizon, counted from 0."""
    return torch.arange(env.horizon + 1, dtype=torch.get_default_dtype(), device=first_tensor(like).device)
