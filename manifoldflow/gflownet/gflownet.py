"""GFlowNets of an environment: a network for the policy, the flow of states and log Z, trained by any loss of balance."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manifoldflow.gflownet.balance import Balance, check_reward
from manifoldflow.gflownet.env import Env, parents, reward_of
from manifoldflow.gflownet.exact import Enumeration, enumerate_env
from manifoldflow.gflownet.kernels import FEW, BackwardPolicy, ForwardPolicy, Recorder, action_times, masked_log_softmax
from manifoldflow.gflownet.losses import Loss, Scores, trajectory_balance
from manifoldflow.gflownet.replay import Replay
from manifoldflow.gflownet.rollout import Rollout, distinct, joined, repeated, rollout_of
from manifoldflow.gflownet.search import LocalSearch
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import State, bare, first_tensor, map_cond, map_state


class Mlp(nn.Module):
    """Features ``(B, F)``, and a condition ``(B, C)`` if there is one -> numbers ``(B, outputs)``.

    Args:
        inputs, outputs: sizes; ``inputs`` counts features and condition.
        width, depth: of the hidden layers.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.layers(x if cond is None else torch.cat([x, cond.to(x.dtype)], -1))


class Visits(NamedTuple):
    """The states of a rollout that the network has to see, each once a trajectory.

    Attributes:
        states: R of them.
        number: ``(T + 1, B)``, which of them a trajectory is in; of a state that was left out, the one before.
        begins: bool ``(B,)``, whether a trajectory begins in the initial state; None if all do.
        done: bool ``(T + 1, B)``.
        owner: ``(R,)``, the trajectory that a state belongs to.
    """

    states: State
    number: Tensor
    begins: Tensor | None
    done: Tensor
    owner: Tensor


class GFlowNet(Balance):
    r"""Samples objects of an environment in proportion to their reward (Bengio et al. 2021).

    Args:
        env: the environment; :func:`check_env` looks for mistakes in it.
        policy: network of what ``env.observe`` returns, and of the condition if there is one: ``(B, observed) -> (B, outputs)``
            with :attr:`outputs` columns: A logits of actions, with ``backward="learned"`` A more, ``heads`` times A for Thompson
            exploration, one with ``backward="maxent"`` where the environment has no ``log_paths``, one with ``flows``. A plain
            :class:`Mlp` if absent.
        loss: of :class:`Scores`, or :func:`flow_matching`.
        backward: ``"uniform"`` over what may have led to a state, ``"learned"``, or ``"maxent"``: all trajectories to a state
            are equally probable, by ``env.log_paths`` or by a learned count of them (Mohammadpour et al. 2024).
        flows: learn the flow of states too, for :func:`detailed_balance` and :func:`subtrajectory_balance`.
        forward_looking: the flow is learned relative to ``env.log_partial_reward`` (Pan et al. 2023), and is 1 at objects
            exactly.
        epsilon, temperature: exploration when trajectories are drawn for training. ``epsilon=(0.5, 0.0, 1000)`` falls linearly
            from the first to the second over that many draws.
        heads: number of policies, each trained on a random half of the trajectories, one of which draws a trajectory: Thompson
            sampling (Rector-Brooks et al. 2023). The policy itself learns from all.
        conditions: number, generator -> conditions of as many trajectories, for training without a ``cond`` in the batch.
        partition: network of the condition, ``(B, ...) -> (B,)`` or ``(B, 1)``, for log Z of every condition; a number if absent.
        z_rate: how many times faster than the rest log Z learns.
        replay: objects seen before, which a share of every batch is made of.
        local_search: betters the objects of every batch before they are learned from.
        pieces: learn from random pieces of this many steps instead of whole trajectories; for losses with flows.
        merge: on the host, let the network see equal states of a batch once, where the environment has a ``key``; off for
            networks that draw (dropout).
    """

    def __init__(
        self,
        env: Env,
        policy: nn.Module | None = None,
        *,
        loss: Loss = trajectory_balance,
        backward: Literal["uniform", "learned", "maxent"] = "uniform",
        flows: bool = False,
        forward_looking: bool = False,
        epsilon: float | tuple[float, float, int] = 0.0,
        temperature: float = 1.0,
        heads: int = 0,
        conditions: Callable[[int, torch.Generator | None], Any] | None = None,
        partition: nn.Module | None = None,
        z_rate: float = 10.0,
        replay: Replay | None = None,
        local_search: LocalSearch | None = None,
        pieces: int | None = None,
        merge: bool = True,
    ) -> None:
        if backward not in ("uniform", "learned", "maxent"):
            raise ValueError(f"backward must be 'uniform', 'learned' or 'maxent', got {backward!r}")
        if pieces is not None and not (pieces >= 1 and (flows or forward_looking)):
            raise ValueError("pieces must be at least 1, and need flows=True or forward_looking=True to learn from")
        self.env, self.is_learned, self.has_flows = env, backward == "learned", flows or forward_looking
        self.forward_looking, self.heads, self.pieces = forward_looking, heads, pieces
        self.merge = merge
        self.is_maxent = backward == "maxent"
        self.counts_paths = self.is_maxent and type(env).log_paths is Env.log_paths
        self.replay, self.local_search, self.conditions = replay, local_search, conditions
        self.outputs = env.actions * (1 + self.is_learned + heads) + self.counts_paths + self.has_flows
        back = self._backward_logits if self.is_learned else self._path_logits if self.is_maxent else None
        super().__init__(
            ForwardPolicy(env, self._forward_logits, merge=merge),
            BackwardPolicy(env, back, merge=merge),
            env.log_reward,
            env.initial,
            action_times(env, env.initial(1)),
            loss=loss,
            z_rate=z_rate,
            partition=partition,
        )
        self.policy = policy if policy is not None else Mlp(env.observed, self.outputs)
        self.noise = epsilon if isinstance(epsilon, tuple) else (epsilon, epsilon, 1)
        self.draws = 0
        self.explorer = ForwardPolicy(
            env,
            self._head_logits if heads else self._forward_logits,
            epsilon=self.noise[0],
            temperature=temperature,
            merge=merge,
        )

    # ---------------------------------------------------------------- networks

    def _network(self, x: State, cond: Any = None) -> Tensor:
        seen = self.env.observe(x)
        return self.policy(seen) if cond is None else self.policy(seen, bare(cond))

    def _forward_logits(self, x: State, cond: Any = None) -> Tensor:
        return self._network(x, cond)[..., : self.env.actions]

    def _backward_logits(self, x: State, cond: Any = None) -> Tensor:
        return self._network(x, cond)[..., self.env.actions : 2 * self.env.actions]

    def _head_logits(self, x: State, both: dict[str, Any]) -> Tensor:
        made = self._heads(self._network(x, both["cond"]))
        return made[torch.arange(len(made), device=made.device), both["head"]]

    def _heads(self, made: Tensor) -> Tensor:
        """``(R, heads, A)``"""
        first = self.env.actions * (1 + self.is_learned)
        return made[..., first : first + self.heads * self.env.actions].unflatten(-1, (self.heads, -1))

    def _path_logits(self, x: State, cond: Any = None) -> Tensor:
        """Log of the number of ways to every parent, ``(B, A)``; what is no parent is masked by the policy."""
        before, _, owner = parents(self.env, x, everywhere=True)
        own = map_cond(lambda v: v[owner], cond, len(first_tensor(x)))
        return self.log_paths(before, own).reshape(-1, self.env.actions)

    def log_paths(self, x: State, cond: Any = None) -> Tensor:
        """Log of the number of trajectories that lead to states, ``(B,)``: the environment's, or what was learned of it."""
        if not self.counts_paths:
            return self.env.log_paths(x).to(torch.get_default_dtype())
        made = self._network(x, cond)[..., -1 - self.has_flows]
        return torch.where(self.env.backward_mask(x).any(-1), made, 0.0)

    # ---------------------------------------------------------------- draws

    def _rollout(self, policy: Any, x: State, cond: Any, generator: torch.Generator | None, last: int = 0) -> Rollout:
        times: Any = self.times
        record: Any = Recorder(policy)
        grid = times[: last + 1] if last else times
        states = simulate(record, x, grid, cond=cond, generator=generator, trajectory=True)
        return Rollout(states, times[: len(record.actions) + 1], torch.stack(record.actions))

    def draw(  # type: ignore[override]
        self, size: int | None = None, cond: Any = None, *, generator: torch.Generator | None = None
    ) -> Rollout:
        """Trajectories with exploration, without gradients, and the rewards of their ends.

        Args:
            size: number of them; as many as there are conditions if absent, else 64.
            cond: conditions, tensors with the batch as first axis, or :class:`manifoldflow.Shared`.
            generator: of every random draw.
        """
        with torch.no_grad():
            size, cond = self._size(size, cond, generator)
            old = self.replay.count(size) if self.replay is not None else 0
            fresh = size - old
            new = map_cond(lambda v: v[:fresh], cond, size)
            start, end, steps = self.noise
            self.explorer.epsilon = start + (end - start) * min(self.draws / steps, 1.0)
            self.draws += 1
            device = self.log_z.device
            given = new
            if self.heads:
                head = torch.randint(self.heads, (fresh,), generator=generator, device=device)
                given = {"cond": new, "head": head}
            begin = repeated(self.env.initial(1, device=device), fresh)
            made = self._rollout(self.explorer, begin, given, generator)
            parts = [made._replace(is_whole=True, cond=new, log_reward=self._paid(made.end, new))]
            if self.local_search is not None:
                parts += self.local_search(self, parts[0], generator)
            if self.replay is not None:
                if old:
                    x, log_reward, kept = self.replay.draw(old, generator)
                    back = self.taken_apart(x, kept, generator=generator)
                    parts.append(back._replace(log_reward=log_reward, cond=kept))
                for part in parts[: len(parts) - bool(old)]:
                    self.replay.add(part.end, part.log_reward, part.cond, self._keys(part.end))
            made = joined(parts)
            if self.pieces is not None:
                made = self._piece(made, self.pieces, generator)
            if self.heads:
                coin = torch.rand(made.size, self.heads, generator=generator, device=device)
                made = made._replace(bootstrap=coin < 0.5)
            return made

    def _size(self, size: int | None, cond: Any, generator: torch.Generator | None) -> tuple[int, Any]:
        if cond is None:
            size = size or 64
            return size, None if self.conditions is None else self.conditions(size, generator)
        lengths: list[int] = []
        _each(cond, lambda v: lengths.append(len(v)))
        return size or (lengths[0] if lengths else 64), cond

    def _keys(self, x: State) -> Tensor | None:
        return self.env.key(x) if hasattr(self.env, "key") else None

    def _piece(self, made: Rollout, count: int, generator: torch.Generator | None) -> Rollout:
        rest = (made.moved.cumsum(0) == 0).sum(0)  # steps before the first move
        slack = (made.moved.sum(0) - count).clamp_min(0)
        u = torch.rand(made.size, generator=generator, device=rest.device)
        first = rest + (u * (slack + 1)).long().clamp_max(slack)
        return made.window(first, count)

    def _paid(self, x: State, cond: Any) -> Tensor:
        """Rewards of objects, checked."""
        log_reward = reward_of(self.env, x, cond)
        return check_reward(log_reward, torch.empty(len(first_tensor(x)), device=self.log_z.device))

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self, size: int | None = None, cond: Any = None, *, generator: torch.Generator | None = None
    ) -> State:
        """Objects of the policy itself, without exploration.

        Args:
            size: number of them; as many as there are conditions if absent.
            cond: conditions.
            generator: of every random draw.
        """
        size, cond = self._size(size, cond, generator)
        begin = repeated(self.env.initial(1, device=self.log_z.device), size)
        return self._rollout(self.onward, begin, cond, generator).end

    @torch.no_grad()
    def taken_apart(self, x: State, cond: Any = None, *, generator: torch.Generator | None = None) -> Rollout:
        """Trajectories that end in given objects, drawn backward: training on data, replay and local search.

        Args:
            x: objects.
            cond: conditions.
            generator: of every random draw.
        """
        made = self._rollout(self.back, x, cond, generator)
        return made._replace(states=map_state(lambda v: v.flip(0), made.states), action=made.action.flip(0), cond=cond)

    # ---------------------------------------------------------------- scores

    def visits(self, made: Rollout) -> Visits:
        """The states that the network has to see: on the host every state once a trajectory, and an initial state that all
        share once in all; elsewhere, where counting would wait for the device, all."""
        env, (steps, size) = self.env, made.action.shape
        flat = map_state(lambda v: v.flatten(0, 1), made.states)
        done = env.is_done(flat).reshape(steps + 1, size)
        begins = None
        if not made.is_whole:
            begins = env.same(made.at(0), repeated(env.initial(1, device=done.device), size))
        column = torch.arange(size, device=done.device)
        if done.device.type != "cpu":
            number = torch.arange((steps + 1) * size, device=done.device).reshape(steps + 1, size)
            return Visits(flat, number, begins, done, column.repeat(steps + 1))
        need = torch.cat([torch.ones_like(done[:1]), made.moved])
        if not (self.is_learned or self.counts_paths):
            need &= ~done
        is_one = made.cond is None and (begins is None or bool(begins.all()))
        if is_one:
            need[0, 1:] = False
        count = need.flatten().cumsum(0).reshape(steps + 1, size) - 1
        number = torch.where(need, count, -1)
        if is_one:
            number[0] = 0
        number = number.cummax(0).values.clamp_min(0)
        rows = need.flatten().nonzero().squeeze(-1)
        states = map_state(lambda v: v[rows], flat)
        some = distinct(env, states) if self.merge and made.cond is None and len(rows) >= FEW else None
        if some is not None:
            rows, states, number = rows[some[0]], map_state(lambda v: v[some[0]], states), some[1][number]
        return Visits(states, number, begins, done, column.repeat(steps + 1)[rows])

    def scores(self, trajectory: Any) -> Scores:
        """All terms of a loss from one pass of the network over all states."""
        return self._scores(rollout_of(self.env, trajectory))[0]

    def _scores(self, made: Rollout) -> tuple[Scores, Scores | None]:
        """Those of the policy, and of the heads for exploration side by side."""
        env, moved = self.env, made.moved
        size, seen = made.size, self.visits(made)
        cond = map_cond(lambda v: v[seen.owner], made.cond, size)
        out = self._network(seen.states, cond)
        allowed = env.forward_mask(seen.states)
        action, before = made.action.clamp_min(0), seen.number[:-1]

        def of_steps(log_odds: Tensor, at: Tensor) -> Tensor:
            picked = log_odds.flatten().index_select(0, (at * env.actions + action).flatten())
            return torch.where(moved, picked.reshape(action.shape), 0.0)

        forward = of_steps(masked_log_softmax(out[..., : env.actions], allowed), before)
        backward = self._backward_scores(made, seen, out, of_steps, cond)
        reward = self._reward(made, seen.done[-1])
        log_z = self.log_z if self.partition is None else self.log_z_of(made.cond, size)
        flow = self._flow(out[..., -1], seen, moved, reward, log_z) if self.has_flows else None
        done = None if made.is_whole else seen.done[-1]
        scores = Scores(forward, backward, reward, torch.zeros_like(reward), log_z, flow, moved, done)
        if not self.heads:
            return scores, None
        many = self.heads
        odds = self._heads(out)
        each = [of_steps(masked_log_softmax(odds[:, k], allowed), before) for k in range(many)]  # a handful

        def wide(value: Tensor) -> Tensor:
            return value.repeat_interleave(many, -1)

        weight = made.bootstrap
        heads = Scores(
            torch.stack(each, -1).flatten(-2),
            wide(backward),
            wide(reward),
            torch.zeros_like(wide(reward)),
            log_z if log_z.ndim == 0 else wide(log_z),
            None if flow is None else wide(flow),
            wide(moved),
            None if done is None else wide(done),
            None if weight is None else weight.to(forward.dtype).flatten(),
        )
        return scores, heads

    def _backward_scores(self, made: Rollout, seen: Visits, out: Tensor, of_steps: Any, cond: Any) -> Tensor:
        env, size = self.env, made.size
        if self.is_learned:
            log_odds = masked_log_softmax(out[..., env.actions : 2 * env.actions], env.backward_mask(seen.states))
            return of_steps(log_odds, seen.number[1:])
        flat = map_state(lambda v: v.flatten(0, 1), made.states)
        if self.counts_paths:
            logits = self._path_logits(seen.states, cond)
            return of_steps(masked_log_softmax(logits, env.backward_mask(seen.states)), seen.number[1:])
        if self.is_maxent:
            ways = env.log_paths(flat).reshape(-1, size).to(out.dtype)
            return torch.where(made.moved, ways[:-1] - ways[1:], 0.0)
        ways = env.backward_mask(map_state(lambda v: v[size:], flat)).sum(-1).reshape(made.action.shape)
        return torch.where(made.moved, -ways.clamp_min(1).to(out.dtype).log(), 0.0)

    def _reward(self, made: Rollout, done: Tensor) -> Tensor:
        """Log-rewards of the ends; 0 of those that are no objects, which have none."""
        if made.log_reward is not None:
            if made.is_whole:
                return made.log_reward.to(self.log_z.dtype)
            return torch.where(done, made.log_reward.to(self.log_z.dtype), 0.0)
        like = torch.empty(made.size, dtype=self.log_z.dtype, device=done.device)
        if done.device.type != "cpu" or bool(done.all()):
            return torch.where(done, check_reward(reward_of(self.env, made.end, made.cond), like), 0.0)
        rows = done.nonzero().squeeze(-1)
        ends, cond = map_state(lambda v: v[rows], made.end), map_cond(lambda v: v[rows], made.cond, made.size)
        return torch.zeros_like(like).index_copy(0, rows, check_reward(reward_of(self.env, ends, cond), like[rows]))

    def _flow(self, raw: Tensor, seen: Visits, moved: Tensor, reward: Tensor, log_z: Tensor) -> Tensor:
        """log F of all states: what the network adds to the partial reward, the reward itself at objects, Z at the start."""
        if self.forward_looking:
            raw = raw + self.env.log_partial_reward(seen.states).to(raw.dtype)
        flow = torch.where(seen.done, reward.to(raw.dtype), raw[seen.number])
        resting = torch.cat([torch.ones_like(moved[:1]), moved.cumsum(0) == 0])
        at_start = resting & ~seen.done if seen.begins is None else resting & seen.begins & ~seen.done
        return torch.where(at_start, log_z, flow)

    def loss_of(self, drawn: Any) -> dict[str, Tensor]:
        """The loss of trajectories, however they were drawn."""
        made = rollout_of(self.env, drawn)
        if hasattr(self.loss, "of_model"):
            return self.loss.of_model(self, made)
        scores, heads = self._scores(made)
        parts = {"balance": self.loss(scores)}
        if heads is not None:
            parts["heads"] = self.loss(heads)
        if self.counts_paths:
            parts["paths"] = self._path_loss(made)
        return parts

    def _path_loss(self, made: Rollout) -> Tensor:
        """The number of ways to a state is the sum over its parents: the squared error of the logarithm."""
        seen = self.visits(made)
        cond = map_cond(lambda v: v[seen.owner], made.cond, made.size)
        mask = self.env.backward_mask(seen.states)
        inside = mask.any(-1)
        total = torch.where(mask, self._path_logits(seen.states, cond), -torch.inf)
        total = torch.where(inside, total.masked_fill(~inside.unsqueeze(-1), 0.0).logsumexp(-1), 0.0)
        off = self.log_paths(seen.states, cond) - total.detach()
        return torch.where(inside, off, 0.0).square().sum() / inside.sum().clamp_min(1)

    # ---------------------------------------------------------------- what it is worth

    @torch.no_grad()
    def log_prob(
        self, x: State, cond: Any = None, *, samples: int = 16, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Log-probability with which the policy makes given objects, ``(B,)``: importance sampling over backward trajectories,

        .. math:: P_T(x) = E_{\tau \sim P_B(\cdot | x)} \frac{P_F(\tau)}{P_B(\tau | x)} .

        Exact where there is one trajectory to an object; else unbiased before the logarithm, which is low on average.

        Args:
            x: objects.
            cond: conditions.
            samples: trajectories for each.
            generator: of every random draw.
        """
        size = len(first_tensor(x))
        many = map_state(lambda v: v.repeat_interleave(samples, 0), x)
        cond = map_cond(lambda v: v.repeat_interleave(samples, 0), cond, size)
        made = self.taken_apart(many, cond, generator=generator)
        scores = self.scores(made._replace(log_reward=torch.zeros(made.size, device=self.log_z.device)))
        weight = scores.log_forward.sum(0) - scores.log_backward.sum(0)
        return weight.reshape(size, samples).logsumexp(-1) - math.log(samples)

    @torch.no_grad()
    def exact(self, enumeration: Enumeration | None = None, cond: Any = None) -> tuple[Enumeration, Tensor]:
        """All objects of an enumerable environment, and the log-probabilities with which the policy makes them, by dynamic
        programming over all states.

        Args:
            enumeration: of the environment, if it is there already.
            cond: one condition, with a first axis of 1.
        """
        every = enumeration or enumerate_env(self.env)
        policy: Any = self.onward
        given = map_cond(lambda v: v.expand(len(every.done), *v.shape[1:]), cond, 1)
        return every, every.terminal_log_prob(policy.log_odds(every.states, given))

    def total_variation(self, enumeration: Enumeration | None = None, cond: Any = None) -> float:
        r"""Exact total variation :math:`\frac12 \sum_x |P_T(x) - R(x)/Z|` of the policy's own law."""
        every, log_p = self.exact(enumeration, cond)
        count = len(log_p)
        given = map_cond(lambda v: v.expand(count, *v.shape[1:]), cond, 1)
        reward = reward_of(self.env, every.objects, given).double()
        return float(0.5 * (log_p.exp() - reward.softmax(0)).abs().sum())

    # ---------------------------------------------------------------- a run that goes on

    def training_state(self) -> dict[str, Any]:
        """What training remembers besides weights, for resume files: the number of draws, and the replay buffer."""
        return {"draws": self.draws, "replay": None if self.replay is None else self.replay.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Undo :meth:`training_state`."""
        self.draws = state["draws"]
        if self.replay is not None and state["replay"] is not None:
            self.replay.load_state_dict(state["replay"])


def _each(cond: Any, look: Callable[[Tensor], Any]) -> None:
    if isinstance(cond, dict):
        for value in cond.values():
            _each(value, look)
    elif isinstance(cond, Tensor) and cond.ndim > 0:
        look(cond)
