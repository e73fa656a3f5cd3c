r"""Moves that leave a tempered law as it is: Hamiltonian Monte Carlo along geodesics, on any manifold of the library.

The tempered law at :math:`\beta` between a base :math:`p_0` and the target R is :math:`p_0^{1-\beta} R^{\beta}`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldflow.energies.energy import Energy, gradient_of
from manifoldflow.field import per_element
from manifoldflow.state import State, expand_mask, fields, first_tensor, like, map_state

HMC_ACCEPTANCE, MALA_ACCEPTANCE = 0.65, 0.574
"""Acceptance rates of the best step sizes in many dimensions (Beskos et al. 2013; Roberts & Rosenthal 1998)."""


class Base(NamedTuple):
    """Where tempering begins.

    Attributes:
        sample: ``(count, generator) -> state``.
        log_prob: normalised log-density ``(B,)``, differentiable.
    """

    sample: Callable[..., State]
    log_prob: Callable[[State], Tensor]


class Walkers(NamedTuple):
    """Points and what is known there, so that nothing is evaluated twice.

    Attributes:
        x: states ``(B, ...)``.
        log_reward, log_base: ``(B,)``.
        slope, base_slope: Riemannian gradients of both.
    """

    x: State
    log_reward: Tensor
    log_base: Tensor
    slope: State
    base_slope: State

    def at(self, rows: Tensor) -> "Walkers":
        """Some of them, by row number."""
        return Walkers(*(map_state(lambda v: v[rows], part) for part in self))

    def log_density(self, beta: Tensor) -> Tensor:
        r""":math:`(1 - \beta) \log p_0 + \beta \log R`; the base alone at 0, also where there is no mass."""
        return torch.where(beta > 0, beta * self.log_reward, 0.0) + (1 - beta) * self.log_base

    def gradient(self, beta: Tensor) -> dict[str, Tensor]:
        """Of the tempered log-density."""
        base = fields(self.base_slope)
        return {n: expand_mask(beta, v) * v + expand_mask(1 - beta, v) * base[n] for n, v in fields(self.slope).items()}

    def chosen(self, mask: Tensor, other: "Walkers") -> "Walkers":
        """These where ``mask`` is True, else the others."""
        pairs = zip(self, other, strict=True)
        return Walkers(*(map_state(lambda a, b: torch.where(expand_mask(mask, a), a, b), p, q) for p, q in pairs))


def walkers_at(energy: Energy, base: Base, x: State, *, proposals: bool = False) -> Walkers:
    """Evaluate the target and the base at ``x``."""
    value, slope = energy.value_and_gradient(x, proposals=proposals)
    with torch.enable_grad():
        at = {n: v.detach().requires_grad_(True) for n, v in fields(x).items()}
        log_base = base.log_prob(like(at, x))
        flat = not log_base.requires_grad  # uniform
        made = [None] * len(at) if flat else torch.autograd.grad(log_base.sum(), list(at.values()), allow_unused=True)
    slopes = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(at.items(), made, strict=True)}
    log_base = log_base.detach().to(value.dtype)
    return Walkers(x, value, log_base, slope, gradient_of(energy.spaces, x, slopes, log_base))


def hmc(
    energy: Energy,
    base: Base,
    walkers: Walkers,
    beta: Tensor,
    step: Tensor,
    *,
    leapfrogs: int = 5,
    generator: torch.Generator | None = None,
) -> tuple[Walkers, Tensor]:
    r"""One Hamiltonian move: a fresh momentum, leapfrogs along geodesics, and the test of Metropolis.

    Between two half kicks by the gradient a point follows its geodesic and carries its momentum along, which keeps volumes and
    can be turned round, so the move leaves the tempered law exactly as it is (Byrne & Girolami 2013). With one leapfrog it is
    the Langevin move MALA.

    Args:
        energy: the target; ``leapfrogs`` calls a walker.
        base: where tempering begins.
        walkers: points that were evaluated.
        beta: ``(B,)``.
        step: of the integrator, ``(B,)`` or a scalar, in units of length.
        leapfrogs: steps of a move.
        generator: of every random draw.

    Returns:
        The walkers after the move, and the probability with which each was accepted.
    """
    space_of, x = fields(energy.spaces), walkers.x
    first = first_tensor(x)
    step = step.to(first.dtype).expand(first.shape[0])
    momentum = {n: space_of[n].random_tangent(v, generator=generator) for n, v in fields(x).items()}
    before = walkers.log_density(beta) - kinetic(energy.spaces, x, momentum)
    now, momentum, broken = leapfrog(energy, base, walkers, momentum, beta, step, leapfrogs)
    after = now.log_density(beta) - kinetic(energy.spaces, now.x, momentum)
    gain = torch.where(broken, -torch.inf, (after - before).nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf))
    accepted = gain.clamp_max(0).exp()
    coin = torch.rand(accepted.shape, generator=generator, dtype=accepted.dtype, device=accepted.device)
    return now.chosen(coin < accepted, walkers), accepted


def leapfrog(
    energy: Energy,
    base: Base,
    walkers: Walkers,
    momentum: dict[str, Tensor],
    beta: Tensor,
    step: Tensor,
    count: int,
) -> tuple[Walkers, dict[str, Tensor], Tensor]:
    """Half kick, geodesic, half kick, ``count`` times; and which walkers left the finite numbers, ``(B,)``.

    Args:
        energy, base, walkers, beta: as for :func:`hmc`.
        momentum: tangents at the walkers, by field.
        step: ``(B,)``.
        count: of steps.
    """
    now, broken = walkers, torch.zeros_like(walkers.log_reward, dtype=torch.bool)
    for _ in range(count):
        momentum = _kicked(momentum, now.gradient(beta), step)
        place, momentum = drifted(energy.spaces, now.x, momentum, step)
        lost = ~finite(place)
        broken = broken | lost
        place = map_state(lambda a, b, lost=lost: torch.where(expand_mask(lost, a), b, a), place, walkers.x)
        now = walkers_at(energy, base, place, proposals=True)
        momentum = _kicked(momentum, now.gradient(beta), step)
    return now, momentum, broken


def drifted(spaces: Any, x: State, momentum: dict[str, Tensor], step: Tensor) -> tuple[State, dict[str, Tensor]]:
    """Points after a step along their geodesics, and the momenta there."""
    space_of, places, carried = fields(spaces), {}, {}
    for n, v in fields(x).items():
        u = expand_mask(step, momentum[n]) * momentum[n]
        places[n] = space_of[n].exp(v, u)
        carried[n] = space_of[n].transport(v, momentum[n], places[n])
    return like(places, x), carried


def kinetic(spaces: Any, x: State, momentum: dict[str, Tensor]) -> Tensor:
    """Half of the squared momentum, ``(B,)``."""
    total: Any = 0.0
    for n, v in fields(x).items():
        total = total + per_element(0.5 * fields(spaces)[n].inner(v, momentum[n], momentum[n]), None, v)
    return total


def _kicked(momentum: dict[str, Tensor], slope: dict[str, Tensor], step: Tensor) -> dict[str, Tensor]:
    return {n: p + 0.5 * expand_mask(step, p) * slope[n] for n, p in momentum.items()}


def finite(x: State) -> Tensor:
    """Which samples hold finite numbers only, ``(B,)``."""
    parts = [v.isfinite().flatten(1).all(1) for v in fields(x).values()]
    return torch.stack(parts).all(0)


def tuned(step: Tensor, accepted: Tensor, target: float, rate: float = 0.5) -> Tensor:
    """A step size that leads to a rate of acceptance: larger where more was accepted, within a factor of 2 a time."""
    return step * (rate * (accepted - target) * 2).clamp(-0.7, 0.7).exp()
