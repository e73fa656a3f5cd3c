"""Flow matching: what flows into a state flows out of it."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.gflownet.env import parents
from manifoldflow.gflownet.losses import Scores
from manifoldflow.gflownet.rollout import Rollout
from manifoldflow.state import map_cond, map_state


class _FlowMatching:
    r"""The squared error of :math:`\log \sum_{s \to x} F(s \to x) = \log \sum_{x \to y} F(x \to y)`, at objects
    :math:`= \log R(x)` (Bengio et al. 2021), the mean over the states of trajectories.

    A loss for ``GFlowNet(env, loss=flow_matching)``: the policy's logits are the logarithms of the flows, no backward policy is
    needed, and log Z follows what flows out of the initial state. Every parent of every state is looked at, so it costs more
    than balance where states have many.
    """

    def __call__(self, scores: Scores) -> Tensor:
        """Not of scores.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "flow_matching is a loss of states and their parents: give it to GFlowNet(env, loss=flow_matching)"
        )

    def of_model(self, model: Any, made: Rollout) -> dict[str, Tensor]:
        """The loss of a GFlowNet's trajectories, and that of log Z."""
        env, size = model.env, made.size
        seen = model.visits(made)
        flat = map_state(lambda v: v.flatten(0, 1), made.states)
        entered = made.moved
        reward = model._reward(made, seen.done[-1])
        # The states that were entered, each once a trajectory.
        after = map_state(lambda v: v[size:], flat)
        column = torch.arange(size, device=entered.device).repeat(len(entered))
        counts = entered.flatten()
        if counts.device.type == "cpu":
            rows = counts.nonzero().squeeze(-1)
            after, column, counts = map_state(lambda v: v[rows], after), column[rows], counts[rows]
        cond = map_cond(lambda v: v[column], made.cond, size)
        outward = self._total(model._forward_logits(after, cond), env.forward_mask(after))
        outward = torch.where(env.is_done(after), reward[column], outward)
        before, action, owner = parents(env, after)
        edge = model._forward_logits(before, map_cond(lambda v: v[owner], cond, len(counts)))
        edge = edge.gather(1, action.unsqueeze(1)).squeeze(1)
        mask = env.backward_mask(after)
        into = torch.full(mask.shape, -torch.inf, dtype=edge.dtype, device=edge.device)
        inward = self._total(into.index_put((owner, action), edge), mask)
        off = torch.where(counts, inward - outward, 0.0)
        first: Any = model._forward_logits(made.at(0), made.cond)
        log_z = self._total(first, env.forward_mask(made.at(0))).detach()
        partition = model.log_z_of(made.cond, size)
        return {
            "balance": off.square().sum() / counts.sum().clamp_min(1),
            "log_z": (partition - log_z if seen.begins is None else torch.where(seen.begins, partition - log_z, 0.0))
            .square()
            .mean(),
        }

    @staticmethod
    def _total(value: Tensor, mask: Tensor) -> Tensor:
        some = mask.any(-1, keepdim=True)
        return value.masked_fill(~(mask | ~some), -torch.inf).masked_fill(~some, 0.0).logsumexp(-1)


flow_matching = _FlowMatching()
