"""Boltzmann generators: invertible flows trained on data, on an energy, or on both, whose samples carry weights."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from manifoldflow.energies.estimates import effective_share, log_mean, log_mean_error
from manifoldflow.energies.free_energy import Estimate
from manifoldflow.energies.sources import Source
from manifoldflow.flows.base import Layer
from manifoldflow.state import State, map_state


@runtime_checkable
class Potential(Protocol):
    """An energy in coordinates of its own: the physical energy apart from the volume, which temperature leaves alone."""

    def energy(self, x: State) -> Tensor:
        """E / kT ``(B,)`` at the temperature of the potential."""
        ...

    def log_volume(self, x: State) -> Tensor:
        """Log of the volume element of the coordinates, ``(B,)``: the density is ``exp(log_volume - energy)``."""
        ...


class Plain:
    """A function as a potential in coordinates of the space itself.

    Args:
        function: state -> reduced energy ``(B,)``.
    """

    def __init__(self, function: Callable[[State], Tensor]) -> None:
        self.energy = function

    def log_volume(self, x: State) -> Tensor:
        return torch.zeros(())


class Weighted(NamedTuple):
    """Samples with what is needed to make averages of the target of them.

    Attributes:
        x: state of n samples.
        log_weight: ``(n,)``, log of the target's unnormalised density over that of the samples; -inf where the energy
            is no number.
        log_prob: ``(n,)``, of the samples (of an :class:`Ensemble` source up to a constant).
        energy: ``(n,)``, E / kT without volume.
    """

    x: Any
    log_weight: Tensor
    log_prob: Tensor
    energy: Tensor

    @property
    def effective_share(self) -> float:
        """Effective sample size over n, in [0, 1]."""
        return float(effective_share(self.log_weight.double()))

    @property
    def log_z(self) -> Estimate:
        """log Z of the target; with an :class:`Ensemble` source log(Z / Z of the source)."""
        log_weight = self.log_weight.double()
        return Estimate(log_mean(log_weight), log_mean_error(log_weight))

    @property
    def weights(self) -> Tensor:
        """Normalised weights ``(n,)``."""
        return self.log_weight.double().softmax(0)

    def resampled(self, size: int, *, generator: torch.Generator | None = None) -> Any:
        """Equally weighted samples of the target, by drawing with replacement."""
        rows = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        return map_state(lambda v: v[rows], self.x)

    def at(self, temperature: float, before: float = 1.0) -> "Weighted":
        """The same samples weighted for another temperature, both in units of the potential's own."""
        change = self.energy * (1 / temperature - 1 / before)
        return self._replace(log_weight=_without_nan(self.log_weight - change))


class BoltzmannGenerator(nn.Module):
    r"""A flow from a source to :math:`e^{-u(x)}/Z` (Noé et al. 2019).

    :func:`manifoldflow.training.fit` trains it on batches ``{"x": data}`` (forward KL, maximum likelihood), ``{"size": 256}``
    (reverse KL on its own samples, needs the energy and its gradient), or both; ``"temperature"`` beside them heats the energy of
    the reverse term (:func:`cooling`, :func:`reweighting`). The energy may be wrong by any constant.

    Args:
        source: where it starts: :class:`Product` or :class:`Ensemble`.
        flow: an invertible layer, source to target.
        energy: a :class:`Potential`, or a function of a state to its reduced energy ``(B,)``. Not needed for forward KL.
        forward_weight, reverse_weight: of the two terms.
        soft_above: in training, energies beyond this many kT above the lowest of the batch grow with their logarithm: clashes
            of atoms would drown everything else. Weights are never softened.
    """

    builder: str | None = None
    config: dict[str, Any] | None = None

    def __init__(
        self,
        source: Source,
        flow: Layer,
        energy: Potential | Callable[[State], Tensor] | None = None,
        *,
        forward_weight: float = 1.0,
        reverse_weight: float = 1.0,
        soft_above: float = math.inf,
    ) -> None:
        super().__init__()
        self.source, self.flow = source, flow
        self.potential: Potential | None = energy if energy is None or isinstance(energy, Potential) else Plain(energy)
        self.forward_weight, self.reverse_weight, self.soft_above = forward_weight, reverse_weight, soft_above

    def sample(self, size: int, *, cond: Any = None, generator: torch.Generator | None = None) -> State:
        """Samples of the flow, without weights."""
        with torch.no_grad():
            return self.flow(self.source.sample(size, generator=generator), cond).x

    def log_prob(self, x: State, *, cond: Any = None) -> Tensor:
        """Log-density ``(B,)`` of the flow, exact, with respect to the volume of the coordinates."""
        z, log_det = self.flow.inverse(x, cond)
        return self.source.log_prob(z) + log_det

    def reduced(self, x: State, temperature: float = 1.0) -> Tensor:
        """The energy that the density of the target is exp(-) of: E / (kT temperature) minus the log of the volume."""
        potential = self._potential()
        return potential.energy(x) / temperature - potential.log_volume(x)

    @torch.no_grad()
    def weighted(
        self, size: int, *, temperature: float = 1.0, batch: int = 1024, generator: torch.Generator | None = None
    ) -> Weighted:
        """Samples with their weights.

        Args:
            size: number.
            temperature: of the target, in units of the potential's own.
            batch: how many at once.
            generator: of every draw.
        """
        parts = []
        for begin in range(0, size, batch):
            z = self.source.sample(min(batch, size - begin), generator=generator)
            parts.append(self.weigh(z, temperature=temperature))
        x = map_state(lambda *v: torch.cat(v), *(p.x for p in parts))
        return Weighted(x, *(torch.cat([p[i] for p in parts]) for i in (1, 2, 3)))  # type: ignore[misc]

    @torch.no_grad()
    def weigh(self, z: State, *, temperature: float = 1.0) -> Weighted:
        """Points of the source, mapped and weighted."""
        potential = self._potential()
        x, log_det = self.flow(z)
        log_prob, energy = self.source.log_prob(z) - log_det, potential.energy(x)
        log_weight = potential.log_volume(x) - energy / temperature - log_prob
        return Weighted(x, _without_nan(log_weight), log_prob, energy)

    @torch.no_grad()
    def reverse_work(self, x: State, *, temperature: float = 1.0) -> Tensor:
        """Works ``(B,)`` of samples of the target through the inverse flow, the other side of :func:`two_sided`; those of the
        source are minus the log-weights."""
        return -(self.log_prob(x) + self.reduced(x, temperature))

    def draw(
        self,
        x: State | None = None,
        size: int = 0,
        temperature: float = 1.0,
        log_weight: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """What a step of training needs.

        Args:
            x: samples of the target, for the forward term.
            size: points of the source, for the reverse term.
            temperature: of the reverse term, in units of the potential's own.
            log_weight: of ``x``.
            generator: of the draws.
        """
        if x is None and not size:
            raise ValueError("a batch needs 'x' (samples of the target), 'size' (how many to draw), or both")
        z = self.source.sample(size, generator=generator) if size else None
        return {"x": x, "z": z, "temperature": temperature, "log_weight": log_weight}

    def loss_of(self, drawn: dict[str, Any]) -> dict[str, Tensor]:
        """``forward``: minus the mean log-density of data. ``reverse``: mean reduced energy minus entropy of own samples."""
        terms: dict[str, Tensor] = {}
        if drawn["x"] is not None:
            log_prob, log_weight = self.log_prob(drawn["x"]), drawn["log_weight"]
            mean = log_prob.mean() if log_weight is None else (log_weight.softmax(0) * log_prob).sum()
            terms["forward"] = -self.forward_weight * mean
        if drawn["z"] is not None:
            terms["reverse"] = self.reverse_weight * self._reverse(drawn["z"], drawn["temperature"])
        return terms

    def _reverse(self, z: State, temperature: float) -> Tensor:
        potential = self._potential()
        x, log_det = self.flow(z)
        energy = soften(potential.energy(x) / temperature, self.soft_above)
        each = energy - potential.log_volume(x) - log_det + self.source.log_prob(z)
        is_number = each.isfinite()
        return torch.where(is_number, each, 0.0).sum() / is_number.sum().clamp_min(1)

    def _potential(self) -> Potential:
        if self.potential is None:
            raise ValueError("this Boltzmann generator has no energy=: reverse KL and weights need one")
        return self.potential


def soften(energy: Tensor, above: float) -> Tensor:
    """Energies ``(B,)`` with everything beyond ``above`` over the lowest growing as a logarithm, with a continuous slope."""
    if math.isinf(above):
        return energy
    finite = torch.where(energy.isfinite(), energy, torch.inf)
    limit = finite.detach().min() + above
    excess = (energy - limit).clamp_min(0)
    return torch.where(excess > 0, limit + torch.log1p(excess), energy)


def _without_nan(log_weight: Tensor) -> Tensor:
    return torch.where(log_weight.isnan(), -torch.inf, log_weight)
