"""Where Boltzmann generators start: laws of several fields, and ensembles of samples whose energy is known."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from manifoldflow.distributions.base import Distribution
from manifoldflow.state import State, first_tensor, map_state


class Source(Protocol):
    """Draws states and knows their log-density, up to a constant in the case of an ensemble."""

    def sample(self, size: int, *, generator: torch.Generator | None = None) -> State: ...
    def log_prob(self, x: State) -> Tensor: ...


class Product:
    """Independent fields, each with a bound distribution.

    Args:
        laws: field -> distribution, or one distribution for a state that is a tensor.
        elements: field -> number of points, where a sample has ``(N, *event)`` of them.
        dtype: of the points.
    """

    def __init__(
        self,
        laws: Distribution | Mapping[str, Distribution],
        *,
        elements: Mapping[str, int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.laws = laws if isinstance(laws, Distribution) else dict(laws)
        self.elements, self.dtype = dict(elements or {}), dtype

    def sample(self, size: int, *, generator: torch.Generator | None = None) -> State:
        """States of ``size`` samples."""
        if isinstance(self.laws, Distribution):
            return self.laws.sample((size,), generator=generator, dtype=self.dtype)
        more = {name: (self.elements[name],) if name in self.elements else () for name in self.laws}
        return {n: law.sample((size, *more[n]), generator=generator, dtype=self.dtype) for n, law in self.laws.items()}

    def log_prob(self, x: State) -> Tensor:
        """Log-density ``(B,)`` with respect to the volume of the space."""
        if isinstance(self.laws, Distribution):
            assert isinstance(x, Tensor)
            return self.laws.log_prob(x)
        assert not isinstance(x, Tensor)
        values = [law.log_prob(x[name]) for name, law in self.laws.items()]
        return torch.stack([v.flatten(1).sum(-1) if v.ndim > 1 else v for v in values]).sum(0)


class Ensemble(nn.Module):
    """Samples of another state of the same system, such as a higher temperature: the source of learned free-energy
    perturbation. Its log-density is minus the reduced energy, so log Z of a generator is minus the free-energy *difference*.

    Args:
        samples: a state of n samples.
        energy: reduced energy ``(B,)`` of states.
        refresh: applied to drawn samples, ``(state, generator) -> state``: exact symmetries of the ensemble (a turned sign of
            quaternions, a shift of the whole).
    """

    def __init__(
        self,
        samples: State,
        energy: Callable[[State], Tensor],
        refresh: Callable[[State, torch.Generator | None], State] | None = None,
    ) -> None:
        super().__init__()
        self.samples, self.energy, self.refresh = samples, energy, refresh

    def __len__(self) -> int:
        return len(first_tensor(self.samples))

    def sample(self, size: int, *, generator: torch.Generator | None = None) -> State:
        """Samples with replacement."""
        rows = torch.randint(len(self), (size,), generator=generator)
        return self.take(rows, generator=generator)

    def take(self, rows: Tensor, *, generator: torch.Generator | None = None) -> State:
        """Chosen samples, refreshed."""
        x = map_state(lambda v: v[rows], self.samples)
        return x if self.refresh is None else self.refresh(x, generator)

    def log_prob(self, x: State) -> Tensor:
        """Minus the reduced energy."""
        return -self.energy(x)
