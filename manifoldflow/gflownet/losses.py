r"""Balance losses of trajectories: Z times the forward probability is the reward times the backward one.

All are functions of :class:`Scores`, whose terms one batched pass has computed, so that a new loss is a few lines. Steps in which
nothing moved have log-probabilities and changes of flow of 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """What is known of a batch of B trajectories of T steps.

    Attributes:
        log_forward, log_backward: of every step, ``(T, B)``.
        log_reward: of the ends, ``(B,)``.
        log_start: of the beginnings, :math:`\\log p(x_0)` ``(B,)`` or 0.
        log_z: scalar, or ``(B,)`` of the conditions.
        log_flow: :math:`\\log F` of all states, ``(T + 1, B)``, the last the reward, the first Z; None without a network for it.
        moved: bool ``(T, B)``, whether a step moved anything.
        done: bool ``(B,)``, whether a trajectory is whole; None if all are.
        weight: ``(B,)``, how much a trajectory counts; None for all alike.
    """

    log_forward: Tensor
    log_backward: Tensor
    log_reward: Tensor
    log_start: Tensor
    log_z: Tensor
    log_flow: Tensor | None
    moved: Tensor
    done: Tensor | None = None
    weight: Tensor | None = None


Loss = Callable[[Scores], Tensor]


def trajectory_balance(scores: Scores) -> Tensor:
    r""":math:`\big(\log Z + \log p(x_0) + \sum \log P_F - \log R - \sum \log P_B\big)^2`, the mean over trajectories
    (Malkin et al. 2022).

    Raises:
        ValueError: a trajectory does not end in an object (looked at on the host only).
    """
    return mean((scores.log_z + gap(scores)).square(), scores)


def log_partition_variance(scores: Scores) -> Tensor:
    r"""The variance of :math:`\log R + \sum \log P_B - \sum \log P_F` over the batch: trajectory balance with the batch's own
    :math:`\log Z` (VarGrad, Richter et al. 2020). No policy learns from Z, which follows the batch's."""
    off = gap(scores)
    follow = (scores.log_z + off.detach()).square()
    return mean((off - mean(off, scores)).square() + follow, scores)


def detailed_balance(scores: Scores) -> Tensor:
    r""":math:`\big(\log F(x) + \log P_F(y | x) - \log F(y) - \log P_B(x | y)\big)^2`, the mean over steps that moved
    (Bengio et al. 2023). Learns from pieces of trajectories, too."""
    flow = flows(scores)
    off = flow[:-1] + scores.log_forward - flow[1:] - scores.log_backward
    counts = scores.moved if scores.weight is None else scores.moved * scores.weight
    return (torch.where(scores.moved, off, 0.0).square() * counts).sum() / counts.sum().clamp_min(1)


def subtrajectory_balance(decay: float = 0.9) -> Loss:
    r"""The same for all pieces of a trajectory, weighed by :math:`\lambda^{length}` (Madan et al. 2023). Learns from pieces of
    trajectories, too.

    Args:
        decay: :math:`\lambda` in (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"subtrajectory_balance: decay must lie in (0, 1], got {decay}")

    def loss(scores: Scores) -> Tensor:
        flow = flows(scores)
        gained = torch.where(scores.moved, scores.log_forward - scores.log_backward, 0.0)
        zero = torch.zeros_like(gained[:1])
        total = torch.cat([zero, gained.cumsum(0)])  # (T + 1, B)
        length = torch.cat([zero, scores.moved.to(gained.dtype).cumsum(0)])
        level = flow - total  # log F(x_i) - sum up to i: equal at all i if balanced
        off = level.unsqueeze(1) - level.unsqueeze(0)
        steps = length.unsqueeze(0) - length.unsqueeze(1)
        weight = torch.where(steps > 0, decay**steps, 0.0)
        weight = weight / weight.sum((0, 1), keepdim=True).clamp_min(1e-30)
        return mean((weight * off.square()).sum((0, 1)), scores)

    return loss


def mean(value: Tensor, scores: Scores) -> Tensor:
    """The mean over trajectories ``(B,)``, by their weights if they have any."""
    if scores.weight is None:
        return value.mean()
    return (value * scores.weight).sum() / scores.weight.sum().clamp_min(1e-30)


def gap(scores: Scores) -> Tensor:
    r""":math:`\log p(x_0) + \sum \log P_F - \log R - \sum \log P_B`, ``(B,)``: minus log Z where all is balanced.

    Raises:
        ValueError: a trajectory does not end in an object (looked at on the host only).
    """
    done = scores.done
    if done is not None and done.device.type == "cpu" and not bool(done.all()):
        raise ValueError(
            f"{int((~done).sum())} of {len(done)} trajectories end before they are done, and this loss needs whole ones; "
            "detailed_balance and subtrajectory_balance learn from pieces"
        )
    forward, backward = scores.log_forward.sum(0), scores.log_backward.sum(0)
    return scores.log_start + forward - scores.log_reward - backward


def flows(scores: Scores) -> Tensor:
    """The flows of all states.

    Raises:
        ValueError: there is no network for them.
    """
    if scores.log_flow is None:
        raise ValueError("this loss needs the flow of states: build the GFlowNet with flows=True")
    return scores.log_flow
