"""How good a sample of objects is: modes found, the best of it, agreement of probabilities with rewards."""

import torch
from torch import Tensor

from manifoldflow.gflownet.replay import hashed
from manifoldflow.state import State, map_state


def unique(x: State, keys: Tensor | None = None) -> State:
    """The different ones among objects.

    Args:
        x: objects.
        keys: whole numbers that tell them apart; a hash if absent.
    """
    keys = hashed(x) if keys is None else keys
    own, inverse = torch.unique(keys, return_inverse=True)
    first = torch.full_like(own, len(keys)).scatter_reduce(
        0, inverse, torch.arange(len(keys), device=own.device), "amin"
    )
    return map_state(lambda v: v[first.sort().values], x)


def top_mean(reward: Tensor, keys: Tensor | None = None, count: int = 100) -> float:
    """The mean of the ``count`` largest rewards of different objects.

    Args:
        reward: ``(B,)``.
        keys: what tells objects apart; all are different if absent.
        count: number of the best; fewer if there are fewer.
    """
    if keys is not None:
        reward = unique({"keys": keys, "reward": reward}, keys)["reward"]  # type: ignore[index, call-overload]
    return float(reward.topk(min(count, len(reward))).values.mean())


def modes_found(distance: Tensor, radius: float) -> int:
    """How many modes have a sample within a radius.

    Args:
        distance: of every sample to every mode, ``(B, M)``.
        radius: largest distance that counts.
    """
    return int((distance <= radius).any(0).sum())


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of ranks, those of equal values averaged.

    ``rank_correlation(model.log_prob(x), env.log_reward(x))`` is 1 where probabilities follow rewards.
    """
    ranks = torch.stack([_ranks(v.double().flatten()) for v in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(value: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(value, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]
