"""What all paths share whose network predicts logits of the clean category: on tokens and on the simplex."""

import torch
from torch import Tensor

from manifoldflow.discrete import draw_categorical


def cross_entropy(pred: Tensor, endpoint: Tensor) -> Tensor:
    r""":math:`-\sum_k y_k \log p_k` of logits ``pred`` and points of the simplex y, ``(..., K)`` both; ``(...)``."""
    log_p = pred.log_softmax(
        -1, dtype=torch.promote_types(pred.dtype, torch.float32)
    )  # mixed precision ends at the network
    return -(endpoint * log_p).sum(-1)


def mix_logits(pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
    r"""Logits of :math:`p_a^w\, p_b^{1-w}`: the blend of two predictions that guidance needs.

    Args:
        pred_a, pred_b: logits ``(..., K)``.
        weight: w; above 1 away from b.
    """
    a, b = pred_a.log_softmax(-1), pred_b.log_softmax(-1)
    return b + weight * (a - b)


def land(pred: Tensor, moved: Tensor, is_end: Tensor, generator: torch.Generator | None) -> Tensor:
    """``moved``, or where the step ends at t = 1 a corner of the simplex drawn from the predicted probabilities."""
    if is_end.device.type == "cpu" and not bool(is_end.any()):
        return moved
    corner = torch.zeros_like(moved).scatter_(-1, draw_categorical(pred, generator=generator).unsqueeze(-1), 1.0)
    return torch.where(is_end, corner, moved)
