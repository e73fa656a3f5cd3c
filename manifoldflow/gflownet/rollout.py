"""What is kept of trajectories of an environment: states, actions, the rewards that were paid for, conditions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldflow.gflownet.env import Env
from manifoldflow.sampling.base import Trajectory
from manifoldflow.state import State, expand_mask, first_tensor, map_cond, map_state


class Rollout(NamedTuple):
    """Trajectories of an environment. A :class:`manifoldflow.Trajectory` in all that matters to a kernel.

    Trajectories of fewer steps than the longest rest in their last state (those drawn backward: in their first).

    Attributes:
        states: state with a new first axis, ``(T + 1, B, ...)``.
        times: ``(T + 1,)``.
        action: ``(T, B)``, -1 where nothing moved.
        log_reward: of the ends, ``(B,)``; None if they were not asked for.
        cond: condition of every trajectory.
        bootstrap: ``(B, heads)``, which heads of Thompson exploration learn from a trajectory.
        is_whole: whether all are known to begin in the initial state and to end in objects.
    """

    states: State
    times: Tensor
    action: Tensor
    log_reward: Tensor | None = None
    cond: Any = None
    bootstrap: Tensor | None = None
    is_whole: bool = False

    @property
    def end(self) -> State:
        """The last states."""
        return self.at(-1)

    def at(self, index: int) -> State:
        """The states at a time of the grid."""
        return map_state(lambda v: v[index], self.states)

    def reversed(self) -> Trajectory:
        """The same states the other way round, for the kernel that leads back."""
        return Trajectory(map_state(lambda v: v.flip(0), self.states), self.times.flip(0))

    @property
    def moved(self) -> Tensor:
        """Bool ``(T, B)``, whether a step moved anything."""
        return self.action >= 0

    @property
    def size(self) -> int:
        """The number of trajectories."""
        return self.action.shape[1]

    def share(self, rank: int, world: int) -> "Rollout":
        """Every world-th trajectory, for one of several processes."""
        return self.chosen(torch.arange(rank, self.size, world, device=self.action.device))

    def chosen(self, rows: Tensor) -> "Rollout":
        """Some of the trajectories, by number."""
        return self._replace(
            states=map_state(lambda v: v[:, rows], self.states),
            action=self.action[:, rows],
            log_reward=None if self.log_reward is None else self.log_reward[rows],
            cond=map_cond(lambda v: v[rows], self.cond, self.size),
            bootstrap=None if self.bootstrap is None else self.bootstrap[rows],
        )

    def window(self, first: Tensor, count: int) -> "Rollout":
        """Pieces of ``count`` steps, or fewer where a trajectory ends before.

        Such incomplete trajectories need no finished object: :func:`manifoldflow.gflownet.detailed_balance` and
        :func:`manifoldflow.gflownet.subtrajectory_balance` learn from them.

        Args:
            first: number of the first step of every piece, ``(B,)``.
            count: length of the pieces.
        """
        steps = len(self.action)
        at = first + torch.arange(count + 1, device=first.device).unsqueeze(-1)  # (count + 1, B)
        rows = torch.arange(self.size, device=first.device)
        inside = at[:-1] < steps
        action = torch.where(inside, self.action[at[:-1].clamp_max(steps - 1), rows], -1)
        states = map_state(lambda v: v[at.clamp_max(steps), rows], self.states)
        return self._replace(
            states=states, action=action, times=self.times.new_tensor(range(count + 1)), is_whole=False
        )


def joined(parts: list[Rollout]) -> Rollout:
    """Rollouts side by side; shorter ones rest in their last state."""
    if len(parts) == 1:
        return parts[0]
    longest = max(parts, key=lambda p: len(p.times))
    steps = len(longest.action)

    def padded(value: Tensor, size: int) -> Tensor:
        more = size - len(value)
        return value if more == 0 else torch.cat([value, value[-1:].expand(more, *value.shape[1:])])

    def silent(action: Tensor) -> Tensor:
        return torch.cat([action, action.new_full((steps - len(action), action.shape[1]), -1)])

    def together(get: Any) -> Any:
        values = [get(p) for p in parts]
        return None if any(v is None for v in values) else torch.cat(values)

    return Rollout(
        map_state(lambda *v: torch.cat([padded(a, steps + 1) for a in v], 1), *[p.states for p in parts]),
        longest.times,
        torch.cat([silent(p.action) for p in parts], 1),
        together(lambda p: p.log_reward),
        _joined_cond([p.cond for p in parts]),
        together(lambda p: p.bootstrap),
        all(p.is_whole for p in parts),
    )


def _joined_cond(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _joined_cond([v[key] for v in values]) for key in first}
    if isinstance(first, Tensor) and first.ndim > 0:
        return torch.cat(values)
    return first  # shared by all


def rollout_of(env: Env, trajectory: Any) -> Rollout:
    """A trajectory of any origin with its actions, found by the environment."""
    if isinstance(trajectory, Rollout):
        return trajectory
    before = map_state(lambda v: v[:-1].flatten(0, 1), trajectory.states)
    after = map_state(lambda v: v[1:].flatten(0, 1), trajectory.states)
    action = torch.where(env.same(before, after), -1, env.action(before, after))
    return Rollout(trajectory.states, trajectory.times, action.reshape(len(trajectory.times) - 1, -1))


def repeated(state: State, size: int) -> State:
    """One state many times, without copies: the batch has a stride of 0, by which kernels know that it is one."""
    return map_state(lambda v: v[:1].expand(size, *v.shape[1:]), state)


def is_repeated(state: State) -> bool:
    """Whether :func:`repeated` made it."""
    first = first_tensor(state)
    return len(first) > 1 and bool(all(v.stride(0) == 0 for v in _tensors(state)))


def _tensors(state: State) -> list[Tensor]:
    return list(state.values()) if isinstance(state, dict) else [state]


def distinct(env: Any, x: State) -> tuple[Tensor, Tensor] | None:
    """Numbers of the different ones among states, and for every state the place of its like among them; None where looking would
    wait for a device, the environment has no keys, or it would save less than a third.

    Networks need to see equal states once: on small graphs most of a large batch is equal.
    """
    if not hasattr(env, "key"):
        return None
    keys = env.key(x)
    if keys.device.type != "cpu":
        return None
    own, inverse = torch.unique(keys, return_inverse=True)
    if 3 * len(own) > 2 * len(keys):
        return None
    return torch.empty(len(own), dtype=torch.int64).index_copy_(0, inverse, torch.arange(len(keys))), inverse


def held(keep: Tensor, x: State, y: State) -> State:
    """x where ``keep``, bool ``(B,)``, else y."""
    return map_state(lambda a, b: torch.where(expand_mask(keep, a), a, b), x, y)
