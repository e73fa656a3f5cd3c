"""Ends of trajectories that are kept for training on, the better ones more often."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.state import State, fields, like, map_state


class Replay:
    r"""The last states seen, drawn by the rank of their reward: :math:`P \propto 1 / (k N + rank)` (Tripp et al. 2020).

    Args:
        capacity: most states kept; the oldest give way.
        sharpness: k; small ones draw the best almost alone, large ones all alike.
    """

    def __init__(self, capacity: int = 20_000, sharpness: float = 0.1) -> None:
        if capacity < 1 or not sharpness > 0:
            raise ValueError(f"Replay: capacity must be at least 1 and sharpness positive, got {capacity}, {sharpness}")
        self.capacity, self.sharpness = capacity, sharpness
        self.states: dict[str, Tensor] = {}
        self.log_reward = torch.empty(0)
        self._kind: Any = None

    def __len__(self) -> int:
        return len(self.log_reward)

    def add(self, x: State, log_reward: Tensor) -> None:
        """Keep states ``(B, ...)`` that have any mass."""
        fresh, log_reward = {n: v.detach() for n, v in fields(x).items()}, log_reward.detach()
        if log_reward.device.type == "cpu":  # elsewhere, without waiting for the device, they stay and are not drawn
            rows = log_reward.isfinite().nonzero().squeeze(1)
            fresh, log_reward = {n: v[rows] for n, v in fresh.items()}, log_reward[rows]
        if not self.states:
            self._kind, self.states, self.log_reward = x, fresh, log_reward
        else:
            self.states = {n: torch.cat([self.states[n], v]) for n, v in fresh.items()}
            self.log_reward = torch.cat([self.log_reward, log_reward])
        self.states = {n: v[-self.capacity :] for n, v in self.states.items()}
        self.log_reward = self.log_reward[-self.capacity :]

    def draw(self, count: int, *, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """States and their log-rewards, with replacement."""
        n = len(self)
        order = self.log_reward.argsort(descending=True)
        weight = 1 / (self.sharpness * n + torch.arange(n, dtype=torch.float64, device=order.device))
        weight = torch.where(self.log_reward[order].isfinite(), weight, 1e-300)
        rows = order[torch.multinomial(weight, count, replacement=True, generator=generator)]
        states = like({name: v[rows] for name, v in self.states.items()}, self._kind)
        return map_state(lambda v: v, states), self.log_reward[rows]
