"""Environments: objects that are built action by action, as pure functions of batched tensor states."""

import inspect
from typing import Any

import torch
from torch import Tensor

from manifoldflow.state import State, bare, expand_mask, fields, map_state


class Env:
    """Base class of environments.

    A state is a tensor or a dict of tensors with the batch as first axis. There are ``actions`` actions, numbered; each that is
    allowed leads to one other state, and back again by :meth:`undo`. Objects are the states that are done, and every trajectory
    is done after ``horizon`` steps; what is done stays. Nothing here may depend on anything but the state, or wait for a device.

    Attributes:
        horizon: most steps from the initial state to a done one.
        actions: number A of actions.
        observed: number of features that :meth:`observe` returns.
    """

    horizon: int
    actions: int
    observed: int

    def initial(self, n: int, *, device: torch.device | str | None = None) -> State:
        """The one state in which all trajectories begin, n times."""
        raise NotImplementedError

    def forward_mask(self, x: State) -> Tensor:
        """Which actions are allowed, bool ``(B, A)``; none where the state is done."""
        raise NotImplementedError

    def backward_mask(self, x: State) -> Tensor:
        """Which actions may have led here, bool ``(B, A)``; none at the initial state."""
        raise NotImplementedError

    def step(self, x: State, action: Tensor) -> State:
        """The states after allowed actions ``(B,)``."""
        raise NotImplementedError

    def undo(self, x: State, action: Tensor) -> State:
        """The states before actions that :meth:`backward_mask` allows."""
        raise NotImplementedError

    def is_done(self, x: State) -> Tensor:
        """Whether a state is an object, bool ``(B,)``."""
        raise NotImplementedError

    def log_reward(self, x: State) -> Tensor:
        """Logarithm of the reward of objects, ``(B,)``; minus infinity is a reward of 0."""
        raise NotImplementedError

    def observe(self, x: State) -> Tensor:
        """What a network sees, ``(B, observed)``."""
        raise NotImplementedError

    def log_partial_reward(self, x: State) -> Tensor:
        """Logarithm of the reward that an unfinished state has earned already, for forward-looking losses; that of an object is
        :meth:`log_reward`.

        Raises:
            NotImplementedError: the reward belongs to objects alone.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reward of unfinished states")

    def log_paths(self, x: State) -> Tensor:
        """Logarithm of the number of trajectories from the initial state to each, ``(B,)``, for ``backward="maxent"``; 0 at the
        initial state. An environment without it has the number learned.

        Raises:
            NotImplementedError: it is not known.
        """
        raise NotImplementedError(f"{type(self).__name__} does not know how many ways lead to a state")

    def same(self, x: State, y: State) -> Tensor:
        """Whether two states are equal, bool ``(B,)``."""
        equal = [(a == fields(y)[n]).reshape(len(a), -1).all(-1) for n, a in fields(x).items()]
        return torch.stack(equal).all(0)

    def action(self, x: State, y: State) -> Tensor:
        """The actions that lead from x to y, ``(B,)``; any number where none does.

        Here by trying all; an environment that knows better is faster.
        """
        batch = len(next(iter(fields(x).values())))
        every = torch.arange(self.actions, device=next(iter(fields(x).values())).device)

        def spread(v: Tensor) -> Tensor:
            return v.repeat_interleave(self.actions, 0)

        tried = self.step(map_state(spread, x), every.repeat(batch))
        found = self.same(tried, map_state(spread, y)).reshape(batch, self.actions) & self.forward_mask(x)
        return found.to(torch.uint8).argmax(-1)

    def hold(self, keep: Tensor, x: State, y: State) -> State:
        """x where ``keep``, bool ``(B,)``, else y."""
        return map_state(lambda a, b: torch.where(expand_mask(keep, a), a, b), x, y)


def reward_of(env: Any, x: State, cond: Any = None) -> Tensor:
    """The log-rewards of objects; ``log_reward`` is given the condition, if there is one and it takes a second argument."""
    if cond is None:
        return env.log_reward(x)
    takes = len(inspect.signature(env.log_reward).parameters) > 1
    return env.log_reward(x, bare(cond)) if takes else env.log_reward(x)


def parents(env: Any, x: State, *, everywhere: bool = False) -> tuple[State, Tensor, Tensor]:
    """The states before all actions that may have led to x.

    Args:
        env: the environment.
        x: B states.
        everywhere: one for every action, also where it was impossible (x itself stands there).

    Returns:
        P states, the actions ``(P,)`` that lead from them to x, and the numbers ``(P,)`` of the states they are parents of.
        On the host, P counts what is possible, unless all are asked for; elsewhere it is A times B.
    """
    mask = env.backward_mask(x)
    count = env.actions
    owner = torch.arange(len(mask), device=mask.device).repeat_interleave(count)
    action = torch.arange(count, device=mask.device).repeat(len(mask))
    if mask.device.type == "cpu" and not everywhere:
        rows = mask.flatten().nonzero().squeeze(-1)
        owner, action = owner[rows], action[rows]
        here = map_state(lambda v: v[owner], x)
        return env.undo(here, action), action, owner
    here = map_state(lambda v: v[owner], x)
    return env.hold(~mask.flatten(), here, env.undo(here, action)), action, owner


def check_env(env: Any, *, trajectories: int = 256, seed: int = 0) -> None:
    """Check an environment on random trajectories: masks, steps and their inverses, the horizon, done states, rewards.

    Args:
        env: the environment.
        trajectories: number of random ones.
        seed: of the actions.

    Raises:
        AssertionError: on the first broken promise; says which, and in which state.
    """
    generator = torch.Generator().manual_seed(seed)
    x = env.initial(trajectories)
    assert not bool(env.is_done(x).any()), "the initial state is done"
    assert not bool(env.backward_mask(x).any()), "backward_mask allows an action at the initial state"
    for number in range(env.horizon):
        done, mask = env.is_done(x), env.forward_mask(x)
        assert mask.shape == (trajectories, env.actions), f"forward_mask has shape {tuple(mask.shape)}"
        _none(mask[done].any(-1), "forward_mask allows an action of a state that is done", x)
        _none(~mask.any(-1) & ~done, f"no action is allowed after {number} steps, but the state is not done", x)
        if bool(done.all()):
            break
        weight = mask.double() + done.double().unsqueeze(-1)
        a = torch.multinomial(weight, 1, generator=generator).squeeze(-1)
        y, again = env.step(x, a), env.step(x, a)
        _none(~env.same(y, again), "step is not deterministic: twice the same action, two states", x)
        y = env.hold(done, x, y)
        moved = ~done
        _none(env.same(x, y) & moved, "an allowed action leaves the state as it is", x)
        back = env.backward_mask(y)
        assert back.shape == mask.shape, f"backward_mask has shape {tuple(back.shape)}"
        _none(~back.gather(1, a.unsqueeze(1)).squeeze(1) & moved, "backward_mask forbids the action that led here", y)
        _none(~env.same(env.hold(done, x, env.undo(y, a)), x) & moved, "undo does not lead back", y)
        # Two actions may lead to one state (prepend or append an A to AA): action names one of them.
        found = torch.where(moved, env.action(x, y), 0)
        taken = env.same(env.hold(done, y, env.step(x, found)), y) & mask.gather(1, found.unsqueeze(1)).squeeze(1)
        _none(~taken & moved, "action(x, y) is not an action that leads from x to y", x)
        for b in range(env.actions):  # every other way here is a way here
            able = back[:, b] & moved
            every = torch.full_like(a, b)
            before = env.hold(~able, x, env.undo(y, every))
            _none(able & env.is_done(before), f"the state before action {b} is done: it has a reward, but is no end", y)
            allowed = env.forward_mask(before)[:, b]
            _none(able & ~allowed, f"undoing action {b}, which backward_mask allows, leads to where it is forbidden", y)
            _none(able & ~env.same(env.hold(~able, y, env.step(before, every)), y), f"step does not redo action {b}", y)
        x = y
    _none(~env.is_done(x), f"the horizon of {env.horizon} steps is too short: a state is not done", x)
    value = env.log_reward(x)
    assert value.shape == (trajectories,), f"log_reward has shape {tuple(value.shape)}, expected ({trajectories},)"
    _none(value.isnan() | (value == torch.inf), "log_reward is NaN or infinite", x)
    few = map_state(lambda v: v[: trajectories // 2], x)
    alone = env.log_reward(few)
    off = (alone - value[: len(alone)]).nan_to_num(0.0).abs()
    _none(off > 1e-4 * (1 + alone.abs()), "log_reward depends on what else is in the batch", few)
    if isinstance(env, Env) and type(env).log_partial_reward is not Env.log_partial_reward:
        off = (env.log_partial_reward(x) - value).nan_to_num(0.0).abs()
        _none(off > 1e-4 * (1 + value.abs()), "log_partial_reward of an object is not its log_reward", x)
    seen = env.observe(x)
    assert seen.shape == (trajectories, env.observed), f"observe has shape {tuple(seen.shape)}"


def _none(wrong: Tensor, what: str, x: State) -> None:
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        assert not bool(wrong.any()), f"{what}: {map_state(lambda v: v[where].tolist(), x)}"
