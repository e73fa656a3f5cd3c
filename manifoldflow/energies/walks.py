r"""The kernels of a diffusion sampler: a reference process with a learned control on, and the way back.

A step is Gaussian in the tangent space, with a mean and a width; both ways all steps of a trajectory are scored in one pass.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manifoldflow.energies.controls import Control
from manifoldflow.energies.energy import Energy
from manifoldflow.energies.references import Reference, Step, log_step
from manifoldflow.field import per_element
from manifoldflow.sampling.base import Memoryless, Trajectory
from manifoldflow.state import Move, State, expand_mask, fields, first_tensor, like, map_state


class Guide(NamedTuple):
    """The target at states of a trajectory: log-densities ``(T, B)`` and slopes."""

    value: Tensor
    slope: State


class ControlledWalk(nn.Module):
    r"""A reference process with a drift and a width that a network gives: the forward kernel.

    With the reference's mean m and deviation :math:`\delta` a step is
    :math:`y = \exp_x(m + \delta \sqrt{h / (1 - t)}\, a + \delta\, g\, \mathrm{clip}(\delta \nabla \log R) + \delta e^{w} \xi)`,
    with the drift a, the width w and the gate g of the network.

    Args:
        reference: the process.
        network: ``(x, t, slope) -> Control``.
        energy: whose slope guides; None to learn without it.
        clip: bound on what the slope moves, in deviations.
        widest: bound on the log of the factor on the noise; 0 keeps the reference's.
    """

    def __init__(
        self,
        reference: Reference,
        network: nn.Module,
        energy: Energy | None = None,
        *,
        clip: float = 3.0,
        widest: float = 1.0,
    ) -> None:
        super().__init__()
        self.reference, self.network, self.energy = reference, network, energy
        self.clip, self.widest = clip, widest

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> tuple[Guide, ...]:
        """No guide yet."""
        return ()

    def control(self, x: State, t: Tensor, guide: Guide | None) -> Control:
        """Of states ``(n, ...)`` at times ``(n,)``."""
        return self.network(x, t, None if guide is None else guide.slope)

    def law(self, x: State, t: Tensor, s: Tensor, control: Control, guide: Guide | None) -> dict[str, Step]:
        """Mean tangent and deviation of the steps of all fields."""
        made: dict[str, Step] = {}
        urgency = ((s - t) / (1 - t).clamp_min(1e-9)).clamp(0, 1).sqrt()
        for n, v in fields(x).items():
            space = fields(self.reference.spaces)[n]
            mean, deviation = self.reference.forward(n, v, t, s)
            drift = control.drift[n]
            u = expand_mask(deviation, drift) * expand_mask(urgency, drift) * drift
            if guide is not None:
                pull = expand_mask(deviation, drift) * fields(guide.slope)[n]
                gate = expand_mask(deviation, drift) * expand_mask(control.gate, drift)
                u = u + gate * clipped(space, v, pull, self.clip)
            width = (self.widest * torch.tanh(control.width[n])).exp()
            made[n] = (u if mean is None else u + mean, expand_mask(deviation, width) * width)
        return made

    def forward(
        self,
        x: State,
        carry: tuple[Guide, ...],
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
        wider: float = 0.0,
        scored: bool = False,
    ) -> Move:
        """One step, with noise that is wider by a share for exploration; the carry gathers the guides, so that scoring asks the
        energy nothing twice."""
        count = len(first_tensor(x))
        dtype = first_tensor(x).dtype
        t, s = t.to(dtype).expand(count), s.to(dtype).expand(count)
        guide = None if self.energy is None else Guide(*self.energy.value_and_gradient(x))
        law = self.law(x, t, s, self.control(x, t, guide), guide)
        y = drawn(self.reference.spaces, x, law, generator, wider)
        gained = log_steps(self.reference.spaces, x, law, y) if scored else None
        return Move(y, carry if guide is None else (*carry, guide), gained)

    def log_prob(self, x: State, y: State, t: Tensor, s: Tensor, **given: Any) -> Tensor:
        """Log-density of a given step, ``(B,)``."""
        count = len(first_tensor(x))
        t, s = t.expand(count), s.expand(count)
        guide = None if self.energy is None else Guide(*self.energy.value_and_gradient(x))
        return log_steps(self.reference.spaces, x, self.law(x, t, s, self.control(x, t, guide), guide), y)

    def log_probs_of(self, trajectory: Trajectory) -> Tensor:
        """Of all steps in one pass, ``(T, B)``; the carry of the trajectory may be the :class:`Guide`."""
        return self.scored(trajectory)[0]

    def scored(self, trajectory: Trajectory) -> tuple[Tensor, Tensor, Guide | None]:
        """Log-densities of all steps, what the network adds to the log-flow where they begin, both ``(T, B)``, and the guide."""
        before, after, t, s, count = pairs(trajectory)
        guide = trajectory.carry if isinstance(trajectory.carry, Guide) else None
        if self.energy is None:
            guide = None
        elif guide is None:
            guide = Guide(*self.energy.value_and_gradient(before))
            guide = Guide(*(map_state(lambda v: v.unflatten(0, (-1, count)), part) for part in guide))
        flat = None if guide is None else Guide(*(map_state(lambda v: v.flatten(0, 1), part) for part in guide))
        control = self.control(before, t, flat)
        value = log_steps(self.reference.spaces, before, self.law(before, t, s, control, flat), after)
        return value.view(-1, count), control.flow.view(-1, count), guide


class ReferenceBack(Memoryless):
    """The reference led back: the backward kernel, which has nothing to learn.

    Args:
        reference: the process.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def law(self, x: State, t: Tensor, s: Tensor) -> dict[str, Step]:
        """Mean tangent and deviation of the steps of all fields."""
        return {n: self.reference.backward(n, v, t, s) for n, v in fields(x).items()}

    def _move(
        self, x: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        count, dtype = len(first_tensor(x)), first_tensor(x).dtype
        law = self.law(x, t.to(dtype).expand(count), s.to(dtype).expand(count))
        return Move(drawn(self.reference.spaces, x, law, generator))

    def _log_prob(self, x: State, y: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        """Log-density, 0 of the certain step to the origin."""
        count = len(first_tensor(x))
        return log_steps(self.reference.spaces, x, self.law(x, t.expand(count), s.expand(count)), y)

    def log_probs_of(self, trajectory: Trajectory) -> Tensor:
        """Of all steps in one pass, ``(T, B)``."""
        before, after, t, s, count = pairs(trajectory)
        return log_steps(self.reference.spaces, before, self.law(before, t, s), after).view(-1, count)


class ControlledBack(ReferenceBack, nn.Module):
    r"""The way back with a drift and a width that a network gives: :math:`y = \exp_x(m + \delta\, b + \delta e^{w} \xi)`, for the
    reference's mean m and deviation :math:`\delta`.

    Where the noise that a process adds is learned, too, few steps suffice for laws of very different widths, which a fixed noise
    must take in steps as short as the narrowest (Gritsaev et al. 2025).

    Args:
        reference: the process.
        network: ``(x, t, None) -> Control``; its gate and flow are not used.
        widest: bound on the log of the factor on the noise.
    """

    def __init__(self, reference: Reference, network: nn.Module, *, widest: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.reference, self.network, self.widest = reference, network, widest

    def law(self, x: State, t: Tensor, s: Tensor) -> dict[str, Step]:
        control: Control = self.network(x, t, None)
        made: dict[str, Step] = {}
        for n, (mean, deviation) in super().law(x, t, s).items():
            u = expand_mask(deviation, control.drift[n]) * control.drift[n]
            width = (self.widest * torch.tanh(control.width[n])).exp()
            made[n] = (u if mean is None else u + mean, expand_mask(deviation, width) * width)
        return made


def drawn(
    spaces: Any, x: State, law: dict[str, Step], generator: torch.Generator | None = None, wider: float = 0.0
) -> State:
    """States that steps of such a law lead to, with noise that is wider by a share."""
    out = {}
    for n, v in fields(x).items():
        space, (mean, deviation) = fields(spaces)[n], law[n]
        noise = space.random_tangent(v, generator=generator)
        u = (1 + wider) * expand_mask(deviation, noise) * noise
        out[n] = space.exp(v, u if mean is None else mean + u)
    return like(out, x)


def pairs(trajectory: Trajectory) -> tuple[State, State, Tensor, Tensor, int]:
    """All steps of a trajectory side by side: where they begin and end ``(T B, ...)``, their times ``(T B,)``, and B."""
    before = map_state(lambda v: v[:-1].flatten(0, 1), trajectory.states)
    after = map_state(lambda v: v[1:].flatten(0, 1), trajectory.states)
    first = first_tensor(trajectory.states)
    times = trajectory.times.to(first.dtype)
    count = first.shape[1]
    return before, after, times[:-1].repeat_interleave(count), times[1:].repeat_interleave(count), count


def log_steps(spaces: Any, x: State, law: dict[str, Step], y: State) -> Tensor:
    """Log-density of the steps of all fields together, ``(n,)``."""
    total: Any = 0.0
    for n, v in fields(x).items():
        total = total + per_element(log_step(fields(spaces)[n], v, law[n], fields(y)[n]), None, v)
    return total


def clipped(space: Any, x: Tensor, u: Tensor, most: float) -> Tensor:
    """Tangents no longer than ``most``: on flat space every coordinate, elsewhere the whole."""
    if space.is_linear:
        return u.clamp(-most, most)
    length = space.inner(x, u, u).clamp_min(1e-12).sqrt()
    return expand_mask((most / length).clamp_max(1.0), u) * u
