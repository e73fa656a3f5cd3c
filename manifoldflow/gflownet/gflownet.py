"""GFlowNets of an environment: a network for the policy, the flow of states and log Z, trained by any loss of balance."""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manifoldflow.gflownet.balance import Balance, check_reward
from manifoldflow.gflownet.env import Env
from manifoldflow.gflownet.exact import Enumeration, enumerate_env
from manifoldflow.gflownet.kernels import BackwardPolicy, ForwardPolicy, action_times
from manifoldflow.gflownet.losses import Loss, Scores, trajectory_balance
from manifoldflow.sampling.base import Trajectory
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import State, map_state


class Mlp(nn.Module):
    """Features ``(B, F)`` -> numbers ``(B, outputs)``.

    Args:
        inputs, outputs: sizes.
        width, depth: of the hidden layers.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class GFlowNet(Balance):
    r"""Samples objects of an environment in proportion to their reward (Bengio et al. 2021).

    Args:
        env: the environment; :func:`check_env` looks for mistakes in it.
        policy: network of what ``env.observe`` returns, ``(B, observed) -> (B, outputs)``: A logits of actions, with
            ``backward="learned"`` A more, with ``flows`` one more. A plain :class:`Mlp` if absent.
        loss: of :class:`Scores`.
        backward: ``"uniform"`` over what may have led to a state, or ``"learned"``.
        flows: learn the flow of states too, for :func:`detailed_balance` and :func:`subtrajectory_balance`.
        forward_looking: the flow is learned relative to ``env.log_partial_reward`` (Pan et al. 2023), and is 1 at objects
            exactly.
        epsilon, temperature: exploration when trajectories are drawn for training.
        z_rate: how many times faster than the rest log Z learns.
    """

    def __init__(
        self,
        env: Env,
        policy: nn.Module | None = None,
        *,
        loss: Loss = trajectory_balance,
        backward: Literal["uniform", "learned"] = "uniform",
        flows: bool = False,
        forward_looking: bool = False,
        epsilon: float = 0.0,
        temperature: float = 1.0,
        z_rate: float = 10.0,
    ) -> None:
        if backward not in ("uniform", "learned"):
            raise ValueError(f"backward must be 'uniform' or 'learned', got {backward!r}")
        self.env, self.is_learned, self.has_flows = env, backward == "learned", flows or forward_looking
        self.forward_looking = forward_looking
        outputs = env.actions * (1 + self.is_learned) + self.has_flows
        super().__init__(
            ForwardPolicy(env, self._forward_logits),
            BackwardPolicy(env, self._backward_logits if self.is_learned else None),
            env.log_reward,
            env.initial,
            action_times(env, env.initial(1)),
            loss=loss,
            z_rate=z_rate,
        )
        self.policy = policy if policy is not None else Mlp(env.observed, outputs)
        self.explorer = ForwardPolicy(env, self._forward_logits, epsilon=epsilon, temperature=temperature)

    def _forward_logits(self, x: State) -> Tensor:
        return self.policy(self.env.observe(x))[..., : self.env.actions]

    def _backward_logits(self, x: State) -> Tensor:
        return self.policy(self.env.observe(x))[..., self.env.actions : 2 * self.env.actions]

    def draw(self, size: int = 64, *, generator: torch.Generator | None = None) -> Trajectory:
        """Trajectories with exploration, without gradients.

        Args:
            size: number of them.
            generator: of every random draw.
        """
        with torch.no_grad():
            return self._run(self.explorer, size, generator)

    @torch.no_grad()
    def sample(self, size: int, *, generator: torch.Generator | None = None) -> State:
        """Objects of the policy itself, without exploration."""
        return self._run(self.onward, size, generator).end

    @torch.no_grad()
    def taken_apart(self, x: State, *, generator: torch.Generator | None = None) -> Trajectory:
        """Trajectories that end in given objects, drawn backward: training on data, replay and local search."""
        times: Any = self.times
        made = simulate(self.back, x, times, generator=generator, trajectory=True)
        return Trajectory(made, times).reversed()._replace(times=times)

    def scores(self, trajectory: Trajectory) -> Scores:
        """All terms of a loss from one pass of the network over all states."""
        env, count = self.env, len(trajectory.times) - 1
        states = map_state(lambda v: v.flatten(0, 1), trajectory.states)
        made = self.policy(env.observe(states))
        made = made.reshape(count + 1, -1, made.shape[-1])
        before = map_state(lambda v: v[:-1].flatten(0, 1), trajectory.states)
        after = map_state(lambda v: v[1:].flatten(0, 1), trajectory.states)
        moved = ~env.same(before, after)
        action = env.action(before, after).unsqueeze(-1)
        onward = ForwardPolicy(env, lambda _: made[:-1, :, : env.actions].flatten(0, 1)).log_odds(before)
        learned = made[1:, :, env.actions : 2 * env.actions].flatten(0, 1)
        back = BackwardPolicy(env, (lambda _: learned) if self.is_learned else None).log_odds(after)
        forward, backward = (
            torch.where(moved, v.gather(-1, action).squeeze(-1), 0.0).reshape(count, -1) for v in (onward, back)
        )
        end = trajectory.end
        reward = check_reward(env.log_reward(end), forward[0])
        flow = self._flow(made[..., -1], trajectory, reward) if self.has_flows else None
        return Scores(forward, backward, reward, torch.zeros_like(reward), self.log_z, flow, moved.reshape(count, -1))

    def _flow(self, raw: Tensor, trajectory: Trajectory, reward: Tensor) -> Tensor:
        """log F of all states: what the network adds to the partial reward, the reward itself at objects, Z at the start."""
        states = map_state(lambda v: v.flatten(0, 1), trajectory.states)
        done = self.env.is_done(states).reshape(raw.shape)
        if self.forward_looking:
            raw = raw + self.env.log_partial_reward(states).reshape(raw.shape).to(raw.dtype)
        flow = torch.where(done, reward.to(raw.dtype), raw)
        at_start = self.env.same(states, map_state(lambda v: v[:1].expand_as(v), states)).reshape(raw.shape)
        return torch.where(at_start & ~done, self.log_z, flow)

    @torch.no_grad()
    def exact(self, enumeration: Enumeration | None = None) -> tuple[Enumeration, Tensor]:
        """All objects of an enumerable environment, and the log-probabilities with which the policy makes them, by dynamic
        programming over all states.

        Args:
            enumeration: of the environment, if it is there already.
        """
        every = enumeration or enumerate_env(self.env)
        return every, every.terminal_log_prob(self.onward.log_odds(every.states))  # type: ignore[attr-defined]

    def total_variation(self, enumeration: Enumeration | None = None) -> float:
        r"""Exact total variation :math:`\frac12 \sum_x |P_T(x) - R(x)/Z|` of the policy's own law."""
        every, log_p = self.exact(enumeration)
        reward = self.env.log_reward(every.objects).double()
        return float(0.5 * (log_p.exp() - reward.softmax(0)).abs().sum())
