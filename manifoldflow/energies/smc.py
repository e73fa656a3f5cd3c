"""Tempered sequential Monte Carlo: a population that follows the law from a base to the target, moved and resampled."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldflow.energies.energy import Energy
from manifoldflow.energies.estimates import effective_share, systematic
from manifoldflow.energies.moves import HMC_ACCEPTANCE, Base, hmc, tuned, walkers_at
from manifoldflow.state import State, map_state


class Population(NamedTuple):
    """What a Monte Carlo run ends with.

    Attributes:
        x: states; equally weighted unless ``log_weight`` says otherwise.
        log_weight: ``(B,)``.
        log_z: estimate of the target's normaliser.
        share: effective size, as a share of the number of states; the least on the way (sequential Monte Carlo).
        calls: energy calls that it took.
        trace: rows of numbers on the way, for curves.
    """

    x: State
    log_weight: Tensor
    log_z: float
    share: float
    calls: int
    trace: list[dict[str, float]]


@torch.no_grad()
def sequential_monte_carlo(
    energy: Energy,
    base: Base,
    *,
    size: int = 2000,
    temperatures: int | None = 100,
    power: float = 2.0,
    keep: float = 0.95,
    moves: int = 1,
    leapfrogs: int = 5,
    step: float = 0.1,
    resample_below: float = 0.5,
    most: int = 10_000,
    generator: torch.Generator | None = None,
) -> Population:
    r"""Annealed from ``base`` to the target in steps of :math:`\beta`, with Hamiltonian moves at each (Del Moral et al. 2006).

    Weights gain :math:`(\beta' - \beta)(\log R - \log p_0)` a step; the population is resampled systematically when its
    effective share falls below a bound. The estimate of Z is unbiased where nothing adapts: with step sizes that follow the
    acceptance of the temperature before, the bias is of the order of one over the size.

    Args:
        energy: the target.
        base: where the population begins.
        size: number of particles.
        temperatures: steps of :math:`\beta = (k / K)^{power}`; None chooses each so that the weights' effective share relative
            to the last becomes ``keep`` (Zhou, Johansen & Aston 2016).
        power: of the fixed grid: above 1 the first steps, where the law changes most, are short.
        keep: for the adaptive grid.
        moves: Hamiltonian moves a temperature.
        leapfrogs: steps a move, each an energy call a particle.
        step: first step size; it follows the acceptance.
        resample_below: the share.
        most: temperatures at which the adaptive grid is given up.
        generator: of every random draw.

    Raises:
        ValueError: settings out of range.
        RuntimeError: no particle has any mass left, or the adaptive grid does not arrive.
    """
    if size < 2 or (temperatures is not None and temperatures < 1) or moves < 0 or leapfrogs < 1:
        raise ValueError(
            f"size must be at least 2, temperatures and leapfrogs 1 and moves 0, got {size}, {temperatures}, {leapfrogs}, {moves}"
        )
    if not 0 < keep < 1 or not step > 0:
        raise ValueError(f"keep must lie in (0, 1) and step be positive, got {keep}, {step}")
    before = energy.calls
    now = walkers_at(energy, base, base.sample(size, generator))
    beta = torch.zeros((), dtype=now.log_reward.dtype, device=now.log_reward.device)
    log_weight, log_z = torch.zeros_like(now.log_reward), torch.zeros((), dtype=torch.float64, device=beta.device)
    length, least, trace, number = torch.full_like(beta, step), 1.0, [], 0
    while float(beta) < 1:
        number += 1
        if number > most:
            raise RuntimeError(f"{energy.name}: after {most} temperatures beta is only {float(beta):.3g}; lower keep")
        up = (now.log_reward - now.log_base).to(log_weight.dtype)
        if temperatures is None:
            after = next_temperature(up, log_weight, beta, keep)
        else:
            after = torch.full_like(beta, (number / temperatures) ** power)
        gained = (after - beta) * up
        total = log_weight.logsumexp(0)
        log_weight = log_weight + torch.where(gained.isnan(), -torch.inf, gained)
        if not bool(log_weight.isfinite().any()):
            raise RuntimeError(f"{energy.name}: no particle has any mass at beta = {float(after):.3g}; widen the base")
        log_z = log_z + (log_weight.logsumexp(0) - total).double()
        beta = after
        share = float(effective_share(log_weight))
        least = min(least, share)
        if share < resample_below:
            now = now.at(systematic(log_weight, generator=generator))
            log_weight = torch.zeros_like(log_weight)
        rate = torch.ones_like(beta)
        for _ in range(moves):
            now, accepted = hmc(energy, base, now, beta.expand(size), length, leapfrogs=leapfrogs, generator=generator)
            rate = accepted.mean()
            length = tuned(length, rate, HMC_ACCEPTANCE)
        trace.append(
            {
                "calls": energy.calls - before,
                "beta": float(beta),
                "log_z": float(log_z),
                "share": share,
                "accepted": float(rate),
                "step": float(length),
            }
        )
    return Population(now.x, log_weight, float(log_z), least, energy.calls - before, trace)


def next_temperature(up: Tensor, log_weight: Tensor, beta: Tensor, keep: float) -> Tensor:
    """The largest beta whose conditional effective share is ``keep``, by bisection; 1 if that has it."""
    share = log_weight.softmax(0)

    def kept(to: Tensor) -> Tensor:
        gained = ((to - beta) * up).nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        log_share = share.log()
        return (2 * (gained + log_share).logsumexp(0) - (2 * gained + log_share).logsumexp(0)).exp()

    low, high = beta, torch.ones_like(beta)
    if bool(kept(high) >= keep):
        return high
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = kept(middle) >= keep
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.maximum(low, beta + 1e-7).clamp_max(1.0)


def resampled(population: Population, count: int, *, generator: torch.Generator | None = None) -> Any:
    """States drawn by their weights, ``count`` of them."""
    rows = torch.multinomial(population.log_weight.double().softmax(0), count, replacement=True, generator=generator)
    return map_state(lambda v: v[rows], population.x)
