r"""What a diffusion sampler does before it has learned anything, and its time reversal in closed form.

Steps are Gaussian in the tangent space: a mean tangent and a standard deviation, forward and backward. Times are ``(n,)``, one a
state, so that all steps of a trajectory are scored in one pass.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.field import per_element
from manifoldflow.state import State, expand_mask, fields, first_tensor, like

Step = tuple[Tensor | None, Tensor]
"""Mean tangent, None for 0, and standard deviation ``(n,)``; 0 where the step is certain."""


class Reference(nn.Module):
    """A process whose reversal is known; what is learned of it is its parameters.

    Args:
        spaces: manifold of the state, or a dict of them.
        sizes: batch shapes of the fields behind the samples, such as ``{"frames": (16,)}`` for sixteen frames a sample.
    """

    def __init__(self, spaces: Any, sizes: dict[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.spaces, self.sizes = spaces, sizes or {}

    def start(self, count: int, *, generator: torch.Generator | None = None, like_: Tensor | None = None) -> State:
        """States at time 0."""
        dtype, device = (None, None) if like_ is None else (like_.dtype, like_.device)
        made = {
            n: self._start(n, (count, *self.sizes.get(n, ())), generator, dtype, device) for n in fields(self.spaces)
        }
        return like(made, self.spaces)

    def log_start(self, x: State) -> Tensor:
        """Log-density of states at time 0, ``(B,)``."""
        return sum(per_element(self._log_start(n, v), None, v) for n, v in fields(x).items())  # type: ignore[return-value]

    def log_marginal(self, x: State, t: Tensor) -> Tensor:
        """Log-density of states at times t ``(n,)``, ``(n,)``; what the flow of states is measured from."""
        return sum(per_element(self._log_marginal(n, v, t), None, v) for n, v in fields(x).items())  # type: ignore[return-value]

    def log_given(self, x: State) -> Tensor:
        """Log-density ``(B,)`` at time 1 of the process as it was given: where annealing begins. If that were learned, too, it
        would walk off with the target to one of its modes."""
        return self.log_marginal(x, torch.ones_like(first_tensor(x).flatten(1)[:, 0]))

    def forward(self, name: str, x: Tensor, t: Tensor, s: Tensor) -> Step:
        """The step of a field from t to s > t."""
        raise NotImplementedError

    def backward(self, name: str, x: Tensor, t: Tensor, s: Tensor) -> Step:
        """The step of a field from t back to s < t."""
        raise NotImplementedError

    def _start(self, name: str, shape: tuple[int, ...], generator: Any, dtype: Any, device: Any) -> Tensor:
        raise NotImplementedError

    def _log_start(self, name: str, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_marginal(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError


class Brownian(Reference):
    r"""Brownian motion :math:`dx = \sigma\, dW`: from the origin on flat fields, from the uniform law on compact ones.

    Back on flat fields leads the bridge to the origin (path-integral samplers, Zhang & Chen 2022; DGFS). On compact ones the
    uniform law stays, so a step back is as likely as the same step on: exactly, as its density is one of the distance alone.

    Args:
        spaces: manifold of the state, or a dict of them.
        sigma: length per root of unit time; a number, or one a field.
        sizes: batch shapes of the fields behind the samples.
    """

    def __init__(
        self, spaces: Any, sigma: float | dict[str, float], sizes: dict[str, tuple[int, ...]] | None = None
    ) -> None:
        super().__init__(spaces, sizes)
        self.sigma = sigma if isinstance(sigma, dict) else dict.fromkeys(fields(spaces), float(sigma))
        if not all(s > 0 and math.isfinite(s) for s in self.sigma.values()):
            raise ValueError(f"Brownian: sigma must be positive, got {sigma}")

    def forward(self, name: str, x: Tensor, t: Tensor, s: Tensor) -> Step:
        return None, self.sigma[name] * (s - t).sqrt()

    def backward(self, name: str, x: Tensor, t: Tensor, s: Tensor) -> Step:
        if not fields(self.spaces)[name].is_linear:
            return None, self.sigma[name] * (t - s).sqrt()
        return expand_mask(s / t - 1, x) * x, self.sigma[name] * (s * (t - s) / t).clamp_min(0).sqrt()

    def _start(self, name: str, shape: tuple[int, ...], generator: Any, dtype: Any, device: Any) -> Tensor:
        space = fields(self.spaces)[name]
        if space.is_linear:
            return space.origin(shape, dtype=dtype, device=device)
        return space.sample_uniform(shape, generator=generator, dtype=dtype, device=device)

    def _log_start(self, name: str, x: Tensor) -> Tensor:
        space = fields(self.spaces)[name]
        value = 0.0 if space.is_linear else -space.log_volume
        return x.new_full(x.shape[: x.ndim - space.event_ndim], value)

    def _log_marginal(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        space = fields(self.spaces)[name]
        if not space.is_linear:
            return self._log_start(name, x)
        variance = expand_mask(self.sigma[name] ** 2 * t.clamp_min(0.01), x[..., 0])
        return -0.5 * x.square().sum(-1) / variance - 0.5 * space.dim * (2 * math.pi * variance).log()


class OrnsteinUhlenbeck(Reference):
    r"""The process :math:`dx = -\lambda x\, dt + s \sqrt{2 \lambda}\, dW` in its stationary law :math:`N(0, s^2)`: the noising of
    variance-preserving diffusions, which denoising diffusion samplers turn round (Vargas, Grathwohl & Doucet 2023).

    Its steps are exact, :math:`y = e^{-\lambda h} x + s \sqrt{1 - e^{-2 \lambda h}}\, \xi`, and the same either way. The centre
    is the origin; if the process is learned, then a centre, a scale and a rate of every coordinate are, from the given ones on.

    Args:
        spaces: flat manifold of the state, or a dict of them.
        scale: s, a number or one a field.
        rate: :math:`\lambda`; what is left of the start at the end is :math:`e^{-\lambda}`.
        learned: centre, scale and rate are parameters.
        sizes: batch shapes of the fields behind the samples.

    Raises:
        ValueError: a manifold that is not flat.
    """

    def __init__(
        self,
        spaces: Any,
        scale: float | dict[str, float],
        rate: float = 4.0,
        sizes: dict[str, tuple[int, ...]] | None = None,
        *,
        learned: bool = False,
    ) -> None:
        super().__init__(spaces, sizes)
        self.scale = scale if isinstance(scale, dict) else dict.fromkeys(fields(spaces), float(scale))
        self.rate, self.learned = rate, learned
        if not all(s > 0 for s in self.scale.values()) or not rate > 0:
            raise ValueError(f"OrnsteinUhlenbeck: scale and rate must be positive, got {scale} and {rate}")
        if not all(s.is_linear for s in fields(spaces).values()):
            raise ValueError("OrnsteinUhlenbeck is for flat space; elsewhere use Brownian")
        # a row each for the centre, and the logarithms of the factors on scale and rate
        self.own = nn.ParameterDict(
            {n: torch.zeros(3, *self.sizes.get(n, ()), s.dim) for n, s in fields(spaces).items()} if learned else {}
        )

    def log_given(self, x: State) -> Tensor:
        total: Any = 0.0
        for n, v in fields(x).items():
            total = total + per_element(normal_log_prob(v, v.new_zeros(()), v.new_tensor(self.scale[n])), None, v)
        return total

    def _law(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, scale and rate: numbers, or those of every coordinate."""
        if self.learned:
            centre, scale, rate = self.own[name].to(x)
            return self.scale[name] * centre, self.scale[name] * scale.exp(), self.rate * rate.exp()
        return x.new_zeros(()), x.new_tensor(self.scale[name]), x.new_tensor(self.rate)

    def forward(self, name: str, x: Tensor, t: Tensor, s: Tensor) -> Step:
        centre, scale, rate = self._law(name, x)
        h = (s - t).abs()
        h = rate * (expand_mask(h, x) if self.learned else h)
        return expand_mask(torch.expm1(-h), x) * (x - centre), scale * (-torch.expm1(-2 * h)).sqrt()

    def backward(self, name: str, x: Tensor, t: Tensor, s: Tensor) -> Step:
        return self.forward(name, x, t, s)

    def _start(self, name: str, shape: tuple[int, ...], generator: Any, dtype: Any, device: Any) -> Tensor:
        event = fields(self.spaces)[name].event_shape
        noise = torch.randn(*shape, *event, generator=generator, dtype=dtype, device=device)
        centre, scale, _ = self._law(name, noise)
        return centre + scale * noise

    def _log_start(self, name: str, x: Tensor) -> Tensor:
        centre, scale, _ = self._law(name, x)
        return normal_log_prob(x, centre, scale)

    def _log_marginal(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        return self._log_start(name, x)


def normal_log_prob(x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Log-density of independent normal coordinates, ``(...)`` of ``(..., d)``."""
    return (-0.5 * ((x - centre) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def log_step(space: Any, x: Tensor, step: Step, y: Tensor) -> Tensor:
    r"""Log-density of a step from x to y, by the volume, ``(n, ...)``; 0 of certain ones.

    Args:
        space: of the field.
        x, y: points ``(n, ..., *event)``.
        step: its mean and deviation; on flat space the deviation may be one a coordinate, ``(n, ..., d)``.
    """
    mean, deviation = step
    safe = torch.where(deviation > 0, deviation, 1.0)
    if space.is_linear:
        off = y - x if mean is None else y - x - mean
        scale = safe if safe.ndim == off.ndim else expand_mask(safe, off)
        value = normal_log_prob(off, off.new_zeros(()), scale)
        certain = deviation <= 0
        certain = certain.all(-1) if deviation.ndim == off.ndim else expand_mask(certain, value)
        return torch.where(certain, 0.0, value)
    if mean is None:
        batch = x.shape[: x.ndim - space.event_ndim]
        value = space.log_wrapped_normal(x, y, expand_mask(safe, x.new_zeros(batch)).expand(batch))
    else:
        value = space.log_pushed_normal(x, mean, safe, y)
    return torch.where(expand_mask(deviation <= 0, value), 0.0, value)


def grid(steps: int, power: float = 2.0) -> Tensor:
    r"""Times :math:`1 - (1 - k / T)^{power}`: above 1 the last steps, where detail takes shape, are the shortest."""
    if steps < 1 or not power > 0:
        raise ValueError(f"steps must be at least 1 and power positive, got {steps} and {power}")
    times = 1 - (1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64)) ** power
    return times.float()
