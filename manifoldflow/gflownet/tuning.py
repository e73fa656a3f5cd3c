"""A trained kernel tuned to a reward: relative trajectory balance."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.flow import Flow
from manifoldflow.gflownet.balance import Balance, check_reward, step_scores
from manifoldflow.gflownet.losses import Loss, Scores, trajectory_balance
from manifoldflow.sampling.base import Kernel, Trajectory
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import Move, State


class RelativeBalance(Balance):
    r"""Trains a kernel p so that its ends have the law :math:`q(x) R(x)^\beta / Z`, for the law q of a frozen kernel.

    .. math:: \log Z + \sum_t \log p(x_{t+1} | x_t) = \beta \log R(x_1) + \sum_t \log q(x_{t+1} | x_t)

    on trajectories of the kernel that is trained (Venkatraman et al. 2024). Both begin in the same law, which is not trained:
    the answer is exact where that is one state (all masked, a walk from a point), and close where noise makes the end forget the
    start.
    :func:`manifoldflow.gflownet.log_partition_variance` as ``loss`` needs no log Z. Any kernels with log-probabilities: policies,
    noisy steps, jumps. :meth:`of_flow` tunes a flow.

    Args:
        forward: the kernel to train, a module; usually a copy of ``prior``.
        prior: the frozen kernel.
        log_reward: ends -> ``(B,)``.
        start: number -> states at the first time, drawn with torch's own generator.
        times: the grid.
        beta: :math:`\beta`.
        loss: of :class:`Scores`.
        z_rate: how many times faster than the rest log Z learns.
        cond: one condition for all, with a first axis of 1, or None.
    """

    def __init__(
        self,
        forward: Kernel,
        prior: Kernel,
        log_reward: Callable[[State], Tensor],
        start: Callable[[int], State],
        times: Tensor,
        *,
        beta: float = 1.0,
        loss: Loss = trajectory_balance,
        z_rate: float = 10.0,
        cond: Tensor | None = None,
    ) -> None:
        super().__init__(forward, prior, log_reward, start, times, loss=loss, z_rate=z_rate)
        if isinstance(prior, nn.Module):
            prior.requires_grad_(False)
        self.beta, self.cond = beta, cond

    before: Tensor | None = None
    """Times of the steps that come before the tuned ones, where a flow is tuned from a later time on."""

    @classmethod
    def of_flow(
        cls,
        flow: Flow,
        log_reward: Callable[[State], Tensor],
        shape: tuple[int, ...] = (),
        *,
        steps: int = 20,
        method: Any = "euler",
        cond: Tensor | None = None,
        since: float = 0.0,
        until: float | None = None,
        **options: Any,
    ) -> "RelativeBalance":
        """A copy of a flow, to be tuned to a reward; afterwards ``model.flow`` is the tuned one.

        Args:
            flow: a flow whose steps draw: of tokens, or with ``method=mf.SDE(...)``.
            log_reward: samples -> ``(B,)``.
            shape: of a sample's nodes, ``(100,)`` for sequences of 100 tokens.
            steps, method: as for :meth:`manifoldflow.Flow.sample`.
            cond: one condition for all, with a first axis of 1.
            since: first time that is tuned; what is before it stays the flow's own, ``model.before`` its grid. Noisy steps of an
                interpolant have next to no noise near t = 0: their log-probabilities there vary a hundred times as much as in the
                middle, which drowns what the reward has to say, so begin at 0.1 or so.
            until: last time. The last of noisy steps, to t = 1, draws nothing and has no density, so they end at 0.98 if absent,
                and the reward is that of the states there (``model.sample``, ``model.flow.sample(times=model.times)``). Jumps
                end at 1.
            options: of the class.
        """
        if flow.self_condition:
            raise ValueError(
                "of_flow: a flow with self-conditioning carries its last prediction, which scores do not have"
            )
        frozen = copy.deepcopy(flow).eval()
        if until is None:
            until = 1.0 if all(path.jumps for path in flow.path.values()) else 0.98
        if not 0 <= since < until:
            raise ValueError(f"of_flow: since must lie between 0 and until = {until:g}, got {since}")
        before = since * flow.time_grid(max(1, math.ceil(since * steps)))

        def start(count: int) -> State:
            if not since:
                return frozen.draw_source((count, *shape))
            given = None if cond is None else cond.expand(count, *cond.shape[1:])
            return frozen.sample((count, *shape), times=before, method=method, cond=given)

        made = cls(
            FlowSteps(copy.deepcopy(flow).eval(), method),
            FlowSteps(frozen, method),
            log_reward,
            start,
            since + (until - since) * flow.time_grid(steps),
            cond=cond,
            **options,
        )
        made.before = before if since else before[:1]
        return made

    @property
    def flow(self) -> Flow:
        """The tuned flow."""
        return self.onward.flow  # type: ignore[attr-defined]

    def _given(self, size: int) -> Tensor | None:
        return None if self.cond is None else self.cond.expand(size, *self.cond.shape[1:])

    def _run(self, kernel: Any, size: int, generator: torch.Generator | None) -> Trajectory:
        times: Any = self.times
        given = self._given(size)
        made = simulate(kernel, self.start(size), times, cond=given, generator=generator, trajectory=True)
        return Trajectory(made, times)

    def scores(self, trajectory: Trajectory) -> Scores:
        """Both kernels' log-probabilities of the steps, in the same direction, and beta times the log-reward."""
        cond = self._given(next(iter(_tensors(trajectory.states))).shape[1])
        forward = step_scores(self.onward, trajectory, cond)
        with torch.no_grad():
            prior = step_scores(self.back, trajectory, cond)
        reward = self.beta * check_reward(self.log_reward(trajectory.end), forward[0])
        moved = torch.ones_like(forward, dtype=torch.bool)
        return Scores(forward, prior, reward, torch.zeros_like(reward), self.log_z, None, moved)


class FlowSteps(nn.Module):
    """The steps of a flow as a kernel that is a module, so that its weights are found.

    Args:
        flow: the flow.
        method: as for :meth:`manifoldflow.Flow.sample`.

    Raises:
        TypeError: the steps draw nothing, so no other kernel could have made them.
    """

    def __init__(self, flow: Flow, method: Any = "euler") -> None:
        super().__init__()
        self.flow = flow
        self.kernel = flow.kernel(method)
        still = [n for n, path in flow.path.items() if not path.is_random(self.kernel.how[n])]
        if still:
            raise TypeError(
                f"the steps of field {still[0]!r} draw nothing, so they cannot be tuned: use method=mf.SDE(...) with a flow that "
                "knows its score (a StochasticInterpolant path, or a geodesic one from a normal source on flat space)"
            )

    def start(self, x: State, **given: Any) -> Any:
        """As the flow's kernel."""
        return self.kernel.start(x, **given)

    def forward(self, x: State, carry: Any, t: Tensor, s: Tensor, **given: Any) -> Move:
        """One step."""
        return self.kernel(x, carry, t, s, **given)

    def log_prob(self, x: State, y: State, t: Tensor, s: Tensor, **given: Any) -> Tensor:
        """Of a given step."""
        return self.kernel.log_prob(x, y, t, s, **given)


def _tensors(state: State) -> list[Tensor]:
    return list(state.values()) if isinstance(state, dict) else [state]
