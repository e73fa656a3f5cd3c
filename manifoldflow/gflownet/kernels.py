"""Policies of an environment as kernels: actions forward, their undoing backward, with the log-probability of either."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldflow.gflownet.env import Env
from manifoldflow.gflownet.rollout import distinct, is_repeated
from manifoldflow.sampling.base import Memoryless
from manifoldflow.state import Move, State, first_tensor, map_cond, map_state

Logits = Callable[..., Tensor]

FEW = 64
"""Batches below this many are stepped whole; in larger ones, on the host, what is done is left out."""


class _Policy(Memoryless):
    """What both directions share: masked logits, draws, and the score of given moves.

    Steps carry the action just taken, -1 where nothing moved. On the host trajectories end when all are done; elsewhere looking
    would wait for the device, and all steps are made.

    Args:
        env: the environment.
        logits: states, and conditions if there are any -> ``(B, A)``; None for equal odds of all that is allowed.
        epsilon: share of actions that are drawn evenly from those allowed.
        temperature: logits are divided by it when actions are drawn. Neither changes the probabilities that are reported,
            which are those of the policy itself.
        merge: let the network see equal states of a large batch once, on the host, where the environment has a ``key``.
    """

    def __init__(
        self,
        env: Env,
        logits: Logits | None = None,
        *,
        epsilon: float = 0.0,
        temperature: float = 1.0,
        merge: bool = True,
    ) -> None:
        if not 0 <= epsilon <= 1 or not temperature > 0:
            raise ValueError(f"epsilon must lie in [0, 1] and temperature be positive, got {epsilon}, {temperature}")
        self.env, self.logits, self.epsilon, self.temperature = env, logits, epsilon, temperature
        self.merge = merge

    def mask(self, x: State) -> Tensor:
        """Allowed actions."""
        raise NotImplementedError

    def moved(self, x: State, action: Tensor) -> State:
        """The states after the actions."""
        raise NotImplementedError

    def action(self, x: State, y: State) -> Tensor:
        """The actions between two states."""
        raise NotImplementedError

    def stop(self, x: State, carry: Any) -> bool:
        """Whether nothing moves any more; looked at on the host only."""
        raise NotImplementedError

    def log_odds(self, x: State, cond: Any = None) -> Tensor:
        """Log-probabilities of all actions, ``(B, A)``; minus infinity where forbidden, zeros where nothing is allowed."""
        mask = self.mask(x)
        return masked_log_softmax(self._made(x, cond, mask), mask)

    def _made(self, x: State, cond: Any, mask: Tensor) -> Tensor:
        if self.logits is None:
            return mask.new_zeros(mask.shape, dtype=torch.get_default_dtype())
        if cond is not None:
            return self.logits(x, cond)
        if is_repeated(x):  # all trajectories begin in one state
            return self.logits(map_state(lambda v: v[:1], x)).expand(mask.shape[0], -1)
        some = distinct(self.env, x) if self.merge and mask.shape[0] >= FEW else None
        if some is not None:
            return self.logits(map_state(lambda v: v[some[0]], x))[some[1]]
        return self.logits(x)

    def _move(
        self, x: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        allowed = self.mask(x)
        moves, size = allowed.any(-1), allowed.shape[0]
        if allowed.device.type == "cpu":
            rows = moves.nonzero().squeeze(-1)
            if len(rows) == size:
                action = self._drawn(x, allowed, cond, generator)
                return Move(self.moved(x, action), action)
            if size >= FEW and 4 * len(rows) <= 3 * size:
                part = map_state(lambda v: v[rows], x)
                some = self._drawn(part, allowed[rows], map_cond(lambda v: v[rows], cond, size), generator)
                y = map_state(lambda v, w: v.index_copy(0, rows, w), x, self.moved(part, some))
                return Move(y, some.new_full((size,), -1).index_copy(0, rows, some))
        action = self._drawn(x, allowed, cond, generator)
        return Move(self.env.hold(~moves, x, self.moved(x, action)), torch.where(moves, action, -1))

    def _drawn(self, x: State, allowed: Tensor, cond: Any, generator: torch.Generator | None) -> Tensor:
        logits = self._made(x, cond, allowed).detach()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.epsilon > 0:
            even = torch.rand(len(logits), 1, generator=generator, device=logits.device) < self.epsilon
            logits = torch.where(even, 0.0, logits)
        # The first arrival of exponential clocks with the odds as rates: no sums, no look at the values.
        clock = torch.empty_like(logits, memory_format=torch.contiguous_format).exponential_(generator=generator).log_()
        return torch.where(allowed, logits - clock, -torch.inf).argmax(-1)

    def _log_prob(self, x: State, y: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        """Log-probability ``(B,)`` of the given moves; 0 where nothing moved."""
        value = self.log_odds(x, cond).gather(1, self.action(x, y).unsqueeze(1)).squeeze(1)
        return torch.where(self.env.same(x, y), 0.0, value)

    def log_prob_of(self, trajectory: Any, *, mask: Tensor | None = None, cond: Any = None) -> Tensor:
        """The sum over a trajectory, ``(B,)``."""
        return self.log_probs_of(trajectory, cond=cond).sum(0)

    def log_probs_of(self, trajectory: Any, *, cond: Any = None) -> Tensor:
        """All steps of a trajectory in one pass of the network, ``(T, B)``."""
        before = map_state(lambda v: v[:-1].flatten(0, 1), trajectory.states)
        after = map_state(lambda v: v[1:].flatten(0, 1), trajectory.states)
        count = len(trajectory.times) - 1
        if cond is not None:
            size = len(first_tensor(trajectory.states)[0])
            cond = map_cond(lambda v: v.repeat(count, *[1] * (v.ndim - 1)), cond, size)
        return self.log_prob(before, after, trajectory.times[0], trajectory.times[1], cond=cond).reshape(count, -1)


class ForwardPolicy(_Policy):
    """Builds objects: draws an allowed action and takes it; what is done stays."""

    def mask(self, x: State) -> Tensor:
        return self.env.forward_mask(x)

    def moved(self, x: State, action: Tensor) -> State:
        return self.env.step(x, action)

    def action(self, x: State, y: State) -> Tensor:
        return self.env.action(x, y)

    def stop(self, x: State, carry: Any) -> bool:
        done = self.env.is_done(x)
        return done.device.type == "cpu" and bool(done.all())


class BackwardPolicy(_Policy):
    """Takes objects apart: draws an action that may have led here and undoes it; the initial state stays."""

    def mask(self, x: State) -> Tensor:
        return self.env.backward_mask(x)

    def moved(self, x: State, action: Tensor) -> State:
        return self.env.undo(x, action)

    def action(self, x: State, y: State) -> Tensor:
        return self.env.action(y, x)

    def stop(self, x: State, carry: Any) -> bool:
        mask = self.env.backward_mask(x)
        return mask.device.type == "cpu" and not bool(mask.any())


class Recorder:
    """A policy that writes down the actions of one rollout.

    Args:
        policy: forward or backward.
    """

    def __init__(self, policy: _Policy) -> None:
        self.policy = policy
        self.actions: list[Tensor] = []
        self.start, self.stop = policy.start, policy.stop

    def __call__(self, x: State, carry: Any, t: Tensor, s: Tensor, **given: Any) -> Move:
        """One step of the policy."""
        move = self.policy(x, carry, t, s, **given)
        self.actions.append(move.carry)
        return move


def masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities over what is allowed; minus infinity where forbidden, zeros in rows where nothing is allowed."""
    rest = ~mask.any(-1, keepdim=True)
    return logits.masked_fill(~(mask | rest), -torch.inf).log_softmax(-1).masked_fill(rest, 0.0)


def action_times(env: Env, like: State) -> Tensor:
    """The grid of an environment: as many steps as its horizon, counted from 0."""
    return torch.arange(env.horizon + 1, dtype=torch.get_default_dtype(), device=first_tensor(like).device)
