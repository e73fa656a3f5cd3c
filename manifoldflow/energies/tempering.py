"""Parallel tempering: chains at a ladder of temperatures that exchange their states."""

import torch
from torch import Tensor

from manifoldflow.energies.energy import Energy
from manifoldflow.energies.estimates import bennett
from manifoldflow.energies.moves import HMC_ACCEPTANCE, MALA_ACCEPTANCE, Base, Walkers, hmc, tuned, walkers_at
from manifoldflow.energies.smc import Population
from manifoldflow.state import map_state


@torch.no_grad()
def parallel_tempering(
    energy: Energy,
    base: Base,
    *,
    levels: int = 16,
    chains: int = 32,
    rounds: int = 500,
    burn: float = 0.3,
    leapfrogs: int = 5,
    step: float = 0.1,
    power: float = 2.0,
    reports: int = 10,
    generator: torch.Generator | None = None,
) -> Population:
    r"""Chains at :math:`\beta_0 = 0 < \dots < \beta_K = 1`, each moved by Hamiltonian moves, neighbours exchanged by turns.

    The lowest level is drawn afresh from the base every round. While it warms up the steps of every level follow their
    acceptance and the ladder is moved to even out the rejected exchanges (Syed et al. 2021); then both stay. Even and odd pairs
    take turns. log Z is the sum over neighbours of Bennett's acceptance ratio.

    Args:
        energy: the target.
        base: the law at level 0.
        levels: of the ladder, 0 and 1 among them.
        chains: independent ladders, moved together.
        rounds: moves and exchanges.
        burn: share of the rounds that warms up.
        leapfrogs: of a move; 1 for Langevin moves (MALA).
        step: first step size of all levels.
        power: of the first ladder :math:`(k / K)^{power}`.
        reports: how many times an estimate is put on the trace.
        generator: of every random draw.

    Returns:
        The states of the top level after warming up, all rounds of all chains.

    Raises:
        ValueError: settings out of range.
    """
    if levels < 2 or chains < 1 or rounds < 4 or not 0 < burn < 1:
        raise ValueError(
            f"levels must be at least 2, chains 1, rounds 4 and burn in (0, 1), got {levels}, {chains}, {rounds}, {burn}"
        )
    before = energy.calls
    now = walkers_at(energy, base, base.sample(levels * chains, generator))  # level by level
    like = now.log_reward
    beta = (torch.arange(levels, dtype=like.dtype, device=like.device) / (levels - 1)) ** power
    steps = torch.full_like(beta, step)
    target = MALA_ACCEPTANCE if leapfrogs == 1 else HMC_ACCEPTANCE
    warm = min(max(2, int(burn * rounds)), rounds - 2)
    tries, lost = torch.zeros_like(beta[1:]), torch.zeros_like(beta[1:])
    ups: list[Tensor] = []
    kept, trace, told = [], [], 0
    for number in range(rounds):
        moved, accepted = hmc(
            energy, base, now.at(torch.arange(chains, levels * chains, device=like.device)),
            beta[1:].repeat_interleave(chains), steps[1:].repeat_interleave(chains), leapfrogs=leapfrogs, generator=generator,
        )  # fmt: skip
        fresh = walkers_at(energy, base, base.sample(chains, generator))
        now = _joined(fresh, moved)
        if number < warm:
            steps[1:] = tuned(steps[1:], accepted.view(levels - 1, chains).mean(1), target)
        up = (now.log_reward - now.log_base).view(levels, chains)
        if number >= warm:
            ups.append(up)
        now, odds = _exchanged(now, up, beta, number % 2, generator)
        tries[number % 2 :: 2] += 1
        lost[number % 2 :: 2] += 1 - odds
        if number < warm and (number + 1) in (warm // 4, warm // 2, (3 * warm) // 4):
            beta = evened(beta, lost / tries.clamp_min(1))
            tries, lost = torch.zeros_like(tries), torch.zeros_like(lost)
        if number >= warm:
            kept.append(map_state(lambda v: v[-chains:], now.x))
            due = (number - warm + 1) * reports // (rounds - warm)
            if due > told and len(ups) > 1:
                told = due
                swaps = float(1 - (lost / tries.clamp_min(1)).mean())
                estimate = _log_z(torch.stack(ups, 1), beta)
                trace.append({"calls": energy.calls - before, "log_z": estimate, "swaps": swaps})
    x = map_state(lambda *v: torch.cat(v), *kept)
    count = len(kept) * chains
    return Population(x, like.new_zeros(count), _log_z(torch.stack(ups, 1), beta), 1.0, energy.calls - before, trace)


def _log_z(ups: Tensor, beta: Tensor) -> float:
    """From :math:`\\log R - \\log p_0` of all levels ``(levels, rounds, chains)``."""
    flat = ups.flatten(1).double()
    rise = (beta[1:] - beta[:-1]).double().unsqueeze(1)
    pairs = bennett((rise * flat[:-1]).mT.clamp_min(-1e30), (rise * flat[1:]).mT)
    return float(pairs.sum())


def _exchanged(
    now: Walkers, up: Tensor, beta: Tensor, start: int, generator: torch.Generator | None
) -> tuple[Walkers, Tensor]:
    """Neighbours from level ``start`` on in pairs, exchanged by the test of Metropolis; and its mean probability by pair."""
    levels, chains = up.shape
    low = torch.arange(start, levels - 1, 2, device=up.device)
    gain = ((beta[low + 1] - beta[low]).unsqueeze(1) * (up[low] - up[low + 1])).nan_to_num(-torch.inf)
    odds = gain.clamp_max(0).exp()
    swap = torch.rand(odds.shape, generator=generator, dtype=odds.dtype, device=odds.device) < odds
    rows = torch.arange(levels * chains, device=up.device).view(levels, chains).clone()
    a, b = rows[low].clone(), rows[low + 1].clone()
    rows[low], rows[low + 1] = torch.where(swap, b, a), torch.where(swap, a, b)
    return now.at(rows.flatten()), odds.mean(1)


def _joined(low: Walkers, high: Walkers) -> Walkers:
    return Walkers(*(map_state(lambda a, b: torch.cat([a, b]), p, q) for p, q in zip(low, high, strict=True)))


def evened(beta: Tensor, rejected: Tensor) -> Tensor:
    """The ladder on which the exchanges between all neighbours are rejected equally often.

    Args:
        beta: ``(K + 1,)``, from 0 to 1.
        rejected: mean rejection between neighbours, ``(K,)``.
    """
    total = torch.cat([beta.new_zeros(1), (rejected + 1e-3).cumsum(0)])
    places = torch.linspace(0, 1, len(beta), dtype=beta.dtype, device=beta.device) * total[-1]
    right = torch.searchsorted(total, places).clamp(1, len(beta) - 1)
    share = (places - total[right - 1]) / (total[right] - total[right - 1])
    made = beta[right - 1] + share * (beta[right] - beta[right - 1])
    made[0], made[-1] = 0.0, 1.0
    return made
