"""Exact evaluation of policies on environments whose states can be listed."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldflow.state import State, map_state


class Enumeration(NamedTuple):
    """All states of an environment.

    Attributes:
        states: all of them, S, the initial one first.
        next: number of the state that an action leads to, ``(S, A)``; the state itself where it is forbidden.
        allowed: bool ``(S, A)``.
        done: bool ``(S,)``.
        horizon: most steps to a done state.
    """

    states: State
    next: Tensor
    allowed: Tensor
    done: Tensor
    horizon: int

    @property
    def objects(self) -> State:
        """The states that are done."""
        return map_state(lambda v: v[self.done], self.states)

    def terminal_log_prob(self, log_odds: Tensor) -> Tensor:
        """Log-probability of ending in every object, float64, of a policy with log-probabilities ``(S, A)`` of actions."""
        p = torch.zeros(len(self.done), dtype=torch.float64)
        p[0] = 1.0
        move = torch.where(self.allowed, log_odds.double().cpu().exp(), 0.0)
        for _ in range(self.horizon):
            gained = (p.unsqueeze(1) * move).flatten()
            p = torch.where(self.done, p, 0.0).index_add(0, self.next.flatten(), gained)
        return p[self.done].log()


def enumerate_env(env: Any, *, most: int = 2_000_000) -> Enumeration:
    """List all states of an environment with a ``key(states)`` of whole numbers.

    Raises:
        ValueError: there are more than ``most``.
    """
    found = env.initial(1)
    keys = env.key(found)
    fresh = found
    while True:
        count = len(env.key(fresh))
        spread = map_state(lambda v: v.repeat_interleave(env.actions, 0), fresh)
        action = torch.arange(env.actions).repeat(count)
        allowed = env.forward_mask(fresh).flatten()
        made = map_state(lambda v, ok=allowed: v[ok], env.step(spread, action))
        own, index = _unique(env.key(made))
        new = ~torch.isin(own, keys)
        if not bool(new.any()):
            break
        fresh = map_state(lambda v, at=index[new]: v[at], made)
        found = map_state(lambda a, b: torch.cat([a, b]), found, fresh)
        keys = torch.cat([keys, own[new]])
        if len(keys) > most:
            raise ValueError(f"{type(env).__name__} has more than {most} states: too many to list")
    return _linked(env, found, keys)


def _linked(env: Any, states: State, keys: Tensor) -> Enumeration:
    count = len(keys)
    order = keys.argsort()
    allowed = env.forward_mask(states)
    spread = map_state(lambda v: v.repeat_interleave(env.actions, 0), states)
    made = env.key(env.step(spread, torch.arange(env.actions).repeat(count)))
    at = torch.searchsorted(keys[order], made).clamp_max(count - 1)
    leads = order[at].reshape(count, env.actions)
    leads = torch.where(allowed, leads, torch.arange(count).unsqueeze(1))
    return Enumeration(states, leads, allowed, env.is_done(states), env.horizon)


def _unique(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Different keys, and where each is first."""
    own, inverse = torch.unique(keys, return_inverse=True)
    index = torch.full((len(own),), len(keys), dtype=torch.int64)
    return own, index.scatter_reduce(0, inverse, torch.arange(len(keys)), "amin")


__all__ = ["Enumeration", "enumerate_env"]
