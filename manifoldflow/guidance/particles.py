"""Guidance by resampling: sequential Monte Carlo, for scores without a gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manifoldflow.discrete import Tokens, draw_categorical
from manifoldflow.flow import Flow
from manifoldflow.guidance.base import Guided
from manifoldflow.paths import Jumps
from manifoldflow.sampling.kernel import FlowKernel
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import State, fields, first_tensor, like, map_state


class Particles(Guided):
    r"""Samples of :math:`p(x)\, e^{w f(x)}` by particles (Wu et al. 2023, twisted diffusion; Singhal et al. 2025, steering).

    Every sample is chosen from ``count`` particles. At each step a particle is weighted by the change of
    :math:`w f(\hat x_1)`, f of a clean sample drawn from the prediction; a group whose effective size falls below
    ``resample_below`` of its count is resampled systematically. At the end f is taken at the samples themselves, and one of
    every group is drawn by weight. Exact as ``count`` grows, whatever the guesses on the way.

    Args:
        flow: any flow that samples with ``method="euler"`` or :class:`manifoldflow.Jumps`.
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

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        shape: int | Sequence[int],
        *,
        steps: int = 100,
        times: Tensor | Sequence[float] | None = None,
        method: str | Jumps = "euler",
        mask: Tensor | None = None,
        cond: Any = None,
        known: State | None = None,
        known_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, State], None] | None = None,
    ) -> Any:
        """As :meth:`manifoldflow.Flow.sample`, ``count`` times as dear; conditions and masks are given per sample."""
        batch = (shape,) if isinstance(shape, int) else tuple(shape)
        n, count = batch[0], self.count

        def repeat(value: Any) -> Any:
            """One row for every particle."""
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == n:
                return value.repeat_interleave(count, 0)
            return {k: repeat(v) for k, v in value.items()} if isinstance(value, dict) else value

        device = next((p.device for p in self.guided.parameters()), torch.device("cpu"))
        mask, cond, known, known_mask = map(repeat, (mask, cond, known, known_mask))
        x0 = self.guided.draw_source((n * count, *batch[1:]), mask=mask, generator=generator, device=device)
        if times is None:
            times = self.time_warp.k(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        fully_known = known is not None and set(fields(known)) == set(self.path)
        inner = FlowKernel(self.guided, method=method, known_mask=known_mask, fully_known=fully_known)
        kernel = _ParticleKernel(self, inner, n)
        x = simulate(
            kernel,
            x0,
            times,
            mask=mask,
            cond=cond,
            known=known,
            known_mask=known_mask,
            generator=generator,
            callback=callback,
        )
        weight = kernel.log_weight + self._value(x).reshape(n, count) - kernel.value
        chosen = draw_categorical(weight, generator=generator)
        chosen = chosen + torch.arange(n, device=chosen.device) * count
        return map_state(lambda v: v[chosen], x)

    def _value(self, x: State) -> Tensor:
        value = self.scale * self.score(x)
        if value.shape != first_tensor(x).shape[:1]:
            raise ValueError(
                f"the score must return one number a sample, ({len(first_tensor(x))},), got {tuple(value.shape)}"
            )
        return value

    def guess(self, pred: State, x: State, t: Tensor, generator: torch.Generator | None) -> State:
        """A clean state drawn from a prediction."""
        made, out = fields(pred), {}
        for name, value in fields(x).items():
            path = self.path[name]
            if isinstance(path.space, Tokens):
                logits = path.logits(made[name], value, t)
                out[name] = path.known(draw_categorical(logits, generator=generator), value)
            else:
                out[name] = path.advance(made[name], value, t, torch.ones_like(t), generator=generator)
        return like(out, x)


class _ParticleKernel:
    """One object per trajectory: it carries the weights ``(n, count)``."""

    def __init__(self, owner: Particles, inner: FlowKernel, groups: int) -> None:
        self.owner, self.inner = owner, inner
        if not inner.euler:
            raise ValueError("Particles need method='euler' or Jumps(...)")
        self.shape = (groups, owner.count)
        self.log_weight = torch.zeros(self.shape)
        self.value = torch.zeros(self.shape)

    def __call__(
        self,
        x: State,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> State:
        owner = self.owner
        pred = self.inner.predict(x, t, mask, cond)
        value = owner._value(owner.guess(pred, x, t, generator)).reshape(self.shape)
        log_weight = self.log_weight.to(value) + value - self.value.to(value)
        weight = log_weight.softmax(-1)
        effective = 1 / weight.square().sum(-1, keepdim=True) / owner.count
        # Systematic: one uniform number a group; groups that are even enough keep their particles.
        u = (
            torch.rand(self.shape[0], 1, generator=generator, dtype=weight.dtype, device=weight.device)
            + torch.arange(owner.count, dtype=weight.dtype, device=weight.device)
        ) / owner.count
        drawn = torch.searchsorted(weight.cumsum(-1), u).clamp_max(owner.count - 1)
        is_poor = effective < owner.resample_below
        kept = torch.where(is_poor, drawn, torch.arange(owner.count, device=drawn.device))
        self.log_weight = torch.where(is_poor, 0.0, log_weight)
        self.value = value.gather(1, kept)
        rows = (kept + torch.arange(self.shape[0], device=kept.device).unsqueeze(1) * owner.count).flatten()
        x, pred = map_state(lambda v: v[rows], x), map_state(lambda v: v[rows], pred)
        if self.inner.previous is not None:
            self.inner.previous = pred  # what the model is shown next belongs to the particles that are kept
        return self.inner.move(pred, x, t, s, mask=mask, cond=cond, generator=generator)
