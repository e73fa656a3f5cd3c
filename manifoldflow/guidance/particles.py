"""Guidance by resampling: sequential Monte Carlo, for scores without a gradient."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldflow.discrete import draw_categorical
from manifoldflow.flow import Flow
from manifoldflow.guidance.base import Guided
from manifoldflow.sampling.kernel import FlowKernel
from manifoldflow.state import Move, State, fields, first_tensor, like, map_cond, map_state


class Particles(Guided):
    r"""Samples of :math:`p(x)\, e^{w f(x)}` by particles (Wu et al. 2023, twisted diffusion; Singhal et al. 2025, steering).

    Every sample is chosen from ``count`` particles. At each step a particle is weighted by the change of
    :math:`w f(\hat x_1)`, f of a clean sample drawn from the prediction; a group whose effective size falls below
    ``resample_below`` of its count is resampled systematically. At the end f is taken at the samples themselves, and one of
    every group is drawn by weight. As ``count`` grows the samples have the law p tilted by f, whatever the guesses on the way,
    where p is the law of the flow's samples *with as many steps*: a coarse grid tilts a coarse law.

    Args:
        flow: any flow, sampled with any method of one prediction a step (``"euler"``, :class:`manifoldflow.Jumps`,
            :class:`manifoldflow.SDE`, or one of them per field).
        score: f: clean states (tokens, points) -> ``(B,)``; no gradient is taken.
        scale: w.
        count: particles a sample.
        resample_below: effective share of the particles, between 0 (only at the end) and 1 (at every step).
    """

    def __init__(
        self,
        flow: Flow,
        score: Callable[[Any], Tensor],
        scale: float = 1.0,
        *,
        count: int = 16,
        resample_below: float = 0.5,
    ) -> None:
        super().__init__(flow)
        if count < 2:
            raise ValueError(f"Particles: count must be at least 2, got {count}")
        if not 0 <= resample_below <= 1:
            raise ValueError(f"Particles: resample_below must lie in [0, 1], got {resample_below}")
        self.guided, self.score, self.scale = flow, score, scale
        self.count, self.resample_below = count, resample_below

    def sample(  # type: ignore[override]
        self,
        shape: int | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        mask: Tensor | None = None,
        cond: Any = None,
        known: State | None = None,
        known_mask: Any = None,
        x0: State | None = None,
        **options: Any,
    ) -> Any:
        """As :meth:`manifoldflow.Flow.sample`, ``count`` times as dear; conditions, masks and ``x0`` are given per sample. A
        trajectory is that of the samples' own ancestors."""
        if x0 is None:
            x0, mask = self._start(
                self._many(shape), self._many_lengths(lengths), self._spread(mask), None, options.get("generator")
            )
        else:
            x0, mask = map_state(self._spread, x0), self._spread(mask)
        batch = len(first_tensor(x0)) // self.count
        spread: Any = self._spread_rows(batch)
        made = super().sample(
            mask=mask,
            cond=map_cond(self._spread, cond, batch),
            known=None if known is None else map_state(spread, known),
            known_mask={n: spread(v) for n, v in known_mask.items()}
            if isinstance(known_mask, dict)
            else spread(known_mask),
            x0=x0,
            **options,
        )
        if lengths is None:
            return made
        assert mask is not None
        return made, mask[:: self.count]

    def sample_pairs(self, shape: Any = None, *, x0: State | None = None, **options: Any) -> tuple[State, State]:
        """The source points and samples of the trajectories that were chosen, see :meth:`manifoldflow.Flow.sample_pairs`."""
        path = self.sample(shape, x0=x0, trajectory=True, **options)
        return map_state(lambda v: v[0], path), map_state(lambda v: v[-1], path)

    def kernel(self, method: Any = "euler", *, known: Any = None, log_prob: bool = False) -> "ParticleKernel":
        """Particles around the kernel of the flow that is guided.

        Raises:
            TypeError: log-probabilities, which choosing among particles has none of.
        """
        if log_prob:
            raise TypeError("Particles choose among trajectories, so their steps have no log-probability")
        return ParticleKernel(self, self.guided.kernel(method, known=known))

    def _many(self, shape: int | Sequence[int] | None) -> tuple[int, ...] | None:
        if shape is None:
            return None
        first, *rest = (shape,) if isinstance(shape, int) else tuple(shape)
        return (first * self.count, *rest)

    def _many_lengths(self, lengths: Sequence[int] | None) -> list[int] | None:
        return None if lengths is None else [n for n in lengths for _ in range(self.count)]

    def _spread(self, value: Any) -> Any:
        """One row for every particle."""
        return None if value is None else value.repeat_interleave(self.count, 0)

    def _spread_rows(self, batch: int) -> Callable[[Any], Any]:
        """Rows of what may be given per sample or once for all."""
        return lambda v: v if v is None or v.ndim == 0 or len(v) != batch else v.repeat_interleave(self.count, 0)

    def value(self, x: State) -> Tensor:
        """w f(x), ``(B,)``.

        Raises:
            ValueError: f returned another shape.
        """
        value = self.scale * self.score(x)
        if value.shape != first_tensor(x).shape[:1]:
            raise ValueError(
                f"the score must return one number a sample, ({len(first_tensor(x))},), got {tuple(value.shape)}"
            )
        return value

    def guess(self, pred: State, x: State, t: Tensor, generator: torch.Generator | None) -> State:
        """A clean state drawn from a prediction."""
        made = fields(pred)
        return like({n: self.path[n].guess(made[n], v, t, generator=generator) for n, v in fields(x).items()}, x)


class Flock(NamedTuple):
    """What particles carry.

    Attributes:
        inner: the carry of the kernel that they move by.
        log_weight, value: ``(groups, count)``.
        rows: of every step, which particle each one comes from.
        generator: of the last choice.
    """

    inner: Any
    log_weight: Tensor
    value: Tensor
    rows: tuple[Tensor, ...]
    generator: torch.Generator | None


class ParticleKernel:
    """Weighs and resamples particles, then moves them by another kernel.

    Args:
        owner: the particles.
        inner: moves all of them.

    Raises:
        ValueError: the method needs several predictions a step.
    """

    def __init__(self, owner: Particles, inner: FlowKernel) -> None:
        self.owner, self.inner = owner, inner
        if not inner.is_plain:
            raise ValueError("Particles need method='euler', Jumps(...) or SDE(...)")

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> Flock:
        """Equal weights."""
        first, dtype = first_tensor(x), self.owner.time_dtype(x)
        none = torch.zeros(len(first) // self.owner.count, self.owner.count, dtype=dtype, device=first.device)
        return Flock(None, none, none, (), None)

    def __call__(
        self,
        x: State,
        carry: Flock,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> Move:
        owner, shape = self.owner, carry.value.shape
        pred, inner = self.inner.predict(x, carry.inner, t, mask, cond)
        value = owner.value(owner.guess(pred, x, t, generator)).reshape(shape)
        log_weight = carry.log_weight.to(value) + value - carry.value.to(value)
        weight = log_weight.softmax(-1)
        effective = 1 / weight.square().sum(-1, keepdim=True) / owner.count
        # Systematic: one uniform number a group; groups that are even enough keep their particles.
        u = torch.rand(shape[0], 1, generator=generator, dtype=weight.dtype, device=weight.device)
        u = (u + torch.arange(owner.count, dtype=weight.dtype, device=weight.device)) / owner.count
        drawn = torch.searchsorted(weight.cumsum(-1), u).clamp_max(owner.count - 1)
        is_poor = effective < owner.resample_below
        kept = torch.where(is_poor, drawn, torch.arange(owner.count, device=drawn.device))
        rows = (kept + torch.arange(shape[0], device=kept.device).unsqueeze(1) * owner.count).flatten()
        x, pred = map_state(lambda v: v[rows], x), map_state(lambda v: v[rows], pred)
        # What the model is shown next belongs to the particles that are kept.
        inner = None if inner is None else pred
        y = self.inner.move(pred, x, t, s, mask=mask, cond=cond, generator=generator)
        after = Flock(
            inner, torch.where(is_poor, 0.0, log_weight), value.gather(1, kept), (*carry.rows, rows), generator
        )
        return Move(y, after)

    def finish(self, states: list[State], carry: Flock) -> list[State]:
        """Of every group one particle, drawn by weight, and at earlier times its ancestors."""
        last = {n: self.owner.path[n].data_of(v) for n, v in fields(states[-1]).items()}
        weight = carry.log_weight + self.owner.value(like(last, states[-1])).reshape(carry.value.shape) - carry.value
        chosen = draw_categorical(weight, generator=carry.generator)
        chosen = chosen + torch.arange(len(chosen), device=chosen.device) * self.owner.count
        out = []
        for state, rows in zip(reversed(states), (*reversed(carry.rows), None), strict=False):
            out.append(map_state(lambda v, at=chosen: v[at], state))
            chosen = chosen if rows is None else rows[chosen]
        return out[::-1]

    def log_prob(self, *_: Any, **__: Any) -> Tensor:
        """Not of particles.

        Raises:
            TypeError: always.
        """
        raise TypeError("Particles choose among trajectories, so their steps have no log-probability")
