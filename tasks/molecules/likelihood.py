"""How likely a policy makes a given molecule, and whether that goes with its reward."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldflow.gflownet import BackwardPolicy
from manifoldflow.gflownet.kernels import ForwardPolicy, action_times
from manifoldflow.sampling.base import Trajectory
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import map_state
from manifoldflow.tasks.molecules.baselines import mutated, random_molecules
from manifoldflow.tasks.molecules.metrics import bootstrap_spearman


@torch.no_grad()
def log_probability(model: Any, x: Any, draws: int = 16, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Log-probability with which a GFlowNet's policy ends in given states, ``(B,)``.

    By importance sampling backward, :math:`P_T(x) = E_{\tau \sim P_B(\cdot | x)} [P_F(\tau) / P_B(\tau | x)]`, unbiased in P.

    Args:
        model: the GFlowNet.
        x: objects.
        draws: trajectories for each; their number of ways bounds how many are needed.
        generator: of the draws.
    """
    count = len(x["done"])
    many = map_state(lambda v: v.repeat_interleave(draws, 0), x)
    env, back, onward = model.env, model.back, model.onward
    assert isinstance(back, BackwardPolicy) and isinstance(onward, ForwardPolicy)
    parts = []
    for rows in torch.arange(count * draws).split(2048):
        part = map_state(lambda v, rows=rows: v[rows], many)
        times = action_times(env, part)
        states: Any = simulate(back, part, times, generator=generator, trajectory=True)
        taken = times[: len(states["done"])]  # it ends when all are taken apart, before the last time if none was large
        made = Trajectory(states, taken).reversed()._replace(times=taken)
        parts.append(onward.log_probs_of(made).sum(0) - back.log_probs_of(made.reversed()).sum(0))
    value = torch.cat(parts).reshape(count, draws).double()
    return value.logsumexp(-1) - torch.log(torch.tensor(float(draws), dtype=torch.float64))


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of log P and log R with its 95 % bootstrap interval, over so many molecules, and Pearson's."""

    spearman: float
    low: float
    high: float
    pearson: float
    count: int


def held_out(env: Any, count: int, known: Any, seed: int = 0, model: Any = None) -> Any:
    """Molecules that were not asked for, over the whole range of rewards: random ones, and those that a model makes, as they are
    and with blocks exchanged.

    Args:
        env: the environment.
        count: most of them.
        known: SMILES -> whether it was asked for.
        seed: of the draws.
        model: a GFlowNet.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [random_molecules(env, count, generator)]
    if model is not None:
        made = model.sample(count, generator=generator)
        parts += [made, mutated(env, made, generator)]
    every = map_state(lambda *v: torch.cat(v), *parts)
    seen: set[str] = set()
    rows = []
    for i, text in enumerate(env.to_smiles(every)):
        if text not in seen and not known(text):
            rows.append(i)
        seen.add(text)
    kept = torch.tensor(rows)[torch.randperm(len(rows), generator=generator)[:count]]
    return map_state(lambda v: v[kept], every)


def correlation(model: Any, x: Any, log_reward: Tensor, draws: int = 16, seed: int = 0) -> Correlation:
    """Whether the policy makes molecules as often as their reward says: over states x with their log-rewards ``(B,)``."""
    generator = torch.Generator().manual_seed(seed)
    log_p = log_probability(model, x, draws, generator=generator)
    value = bootstrap_spearman(log_p, log_reward.double())
    pearson = float(torch.corrcoef(torch.stack([log_p, log_reward.double()]))[0, 1])
    return Correlation(*value, pearson, len(log_p))
