"""Local search: take objects apart a little, put them together anew, keep what is better."""

from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.gflownet.rollout import Rollout, held
from manifoldflow.state import first_tensor, map_cond


class LocalSearch:
    r"""Betters objects between drawing and learning (Kim et al. 2024).

    The backward policy takes ``steps`` steps from an object x to s, the forward policy goes on from s to an object y. Kept is
    y if it has more reward (``"greedy"``), or by the rule of Metropolis and Hastings with the odds

    .. math:: \min\Big(1, \frac{R(y)}{R(x)} \frac{P_B(s | y)\, P_F(x | s)}{P_B(s | x)\, P_F(y | s)}\Big)

    along the trajectories drawn, 0 where as many steps back from y do not lead to s, which leaves R(x)/Z alone. Trajectories to
    all objects tried are learned from.

    Args:
        steps: taken back.
        rounds: of search.
        accept: ``"greedy"`` or ``"metropolis"``.
    """

    def __init__(self, steps: int, *, rounds: int = 1, accept: Literal["greedy", "metropolis"] = "greedy") -> None:
        if steps < 1 or rounds < 1:
            raise ValueError(f"LocalSearch: steps and rounds must be at least 1, got {steps}, {rounds}")
        if accept not in ("greedy", "metropolis"):
            raise ValueError(f"LocalSearch: accept must be greedy or metropolis, got {accept!r}")
        self.steps, self.rounds, self.accept = steps, rounds, accept

    def __call__(self, model: Any, made: Rollout, generator: torch.Generator | None = None) -> list[Rollout]:
        """Trajectories to the objects that were tried, one rollout a round, with their rewards."""
        x, log_reward, cond, tried = made.end, made.log_reward, made.cond, []
        assert log_reward is not None
        for _ in range(self.rounds):
            y, gained, weight = self.step(model, x, cond, generator)
            back = model.taken_apart(y, cond, generator=generator)
            tried.append(back._replace(log_reward=gained))
            takes = self.takes(gained - log_reward, weight, generator)
            x, log_reward = held(~takes, x, y), torch.where(takes, gained, log_reward)
        return tried

    def takes(self, more: Tensor, weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Which changes are kept, of the gain in log-reward and the log of the ratio of proposals."""
        if self.accept == "greedy":
            return more > 0
        u = torch.rand(more.shape, generator=generator, device=more.device)
        return u.log() < more + weight

    def step(
        self, model: Any, x: Any, cond: Any, generator: torch.Generator | None = None
    ) -> tuple[Any, Tensor, Tensor]:
        """Other objects, their log-rewards, and the log of the ratio of proposals that Metropolis and Hastings need."""
        down = model._rollout(model.back, x, cond, generator, last=min(self.steps, model.env.horizon))
        up = model._rollout(model.onward, down.end, cond, generator)
        y, size = up.end, len(first_tensor(x))
        log_reward = model._paid(y, cond)
        if self.accept == "greedy":
            return y, log_reward, torch.zeros_like(log_reward)
        # The two halves, scored as forward trajectories from s: one to x, one to y.
        nothing = torch.zeros_like(log_reward)
        to_x = down._replace(
            states={n: v.flip(0) for n, v in down.states.items()}
            if isinstance(down.states, dict)
            else down.states.flip(0),
            action=down.action.flip(0),
            cond=map_cond(lambda v: v, cond, size),
            log_reward=nothing,
        )
        old, new = model.scores(to_x), model.scores(up._replace(cond=cond, log_reward=nothing))
        weight = new.log_backward.sum(0) + old.log_forward.sum(0) - old.log_backward.sum(0) - new.log_forward.sum(0)
        # The way back takes the same number of steps, or ends in the initial state before.
        length = up.moved.sum(0)
        at_start = ~model.env.backward_mask(down.end).any(-1)
        returns = (length == self.steps) | (at_start & (length <= self.steps))
        weight = torch.where(returns, weight, -torch.inf)
        return y, log_reward, weight
