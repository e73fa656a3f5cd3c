"""Networks that steer a diffusion: from a state, its time and perhaps the slope of the target, a drift and a width."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manifoldflow.state import State, fields

FREQUENCIES = 4
HARMONICS = 3
WAVES = tuple(0.5 * math.pi * 2**k for k in range(4))


class Control(NamedTuple):
    """What steers one step.

    Attributes:
        drift: tangents by field, in units of the noise that is still to come.
        width: log of the factor on the noise, by field: ``(n, ...)``, on flat fields one a coordinate; before it is bounded.
        flow: what the log-flow of the state is more than its first guess, ``(n,)``.
        gate: factor on the slope ``(n,)``.
    """

    drift: dict[str, Tensor]
    width: dict[str, Tensor]
    flow: Tensor
    gate: Tensor


def time_features(t: Tensor) -> Tensor:
    """Of times ``(n,)``: waves in the root of what is left, which tells the last steps apart, ``(n, 2 FREQUENCIES + 1)``."""
    left = (1 - t).clamp_min(0).sqrt().unsqueeze(-1)
    phase = left * math.pi * torch.arange(1, FREQUENCIES + 1, dtype=t.dtype, device=t.device)
    return torch.cat([left, phase.sin(), phase.cos()], -1)


class _Gated(nn.Module):
    """The factor on the slope, t times a function of time that starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, 16), nn.SiLU(), nn.Linear(16, 1))
        _zero(self.gate[-1])

    def _gate(self, t: Tensor, seen: Tensor) -> Tensor:
        return t * (1 + self.gate(seen).squeeze(-1))


class MlpControl(_Gated):
    """A plain network of the embedded state, for any spaces.

    Args:
        spaces: manifold of the state, or a dict of them.
        scale: length in which flat coordinates are measured.
        width, depth: of the hidden layers.
        sloped: the slope of the target is shown, too.
        sizes: batch shapes of the fields behind the samples.
    """

    def __init__(
        self,
        spaces: Any,
        scale: float = 1.0,
        *,
        width: int = 64,
        depth: int = 3,
        sloped: bool = False,
        sizes: dict[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.spaces, self.scale, self.sloped, self.sizes = spaces, scale, sloped, sizes or {}
        inputs, self.outputs = 2 * FREQUENCIES + 1, {}
        for n, space in fields(spaces).items():
            tangent = space.tangent_basis(space.origin()).shape[-space.tangent_ndim :]
            many = math.prod(self.sizes.get(n, ()))
            inputs += many * (self._seen(space) + sloped * math.prod(tangent))
            widths = math.prod(tangent) if space.is_linear else 1
            self.outputs[n] = (many * math.prod(tangent), many * widths, tuple(tangent), widths)
        layers: list[nn.Module] = []
        size = inputs
        for _ in range(depth):
            layers += [nn.Linear(size, width), nn.SiLU()]
            size = width
        last = nn.Linear(size, sum(a + b for a, b, _, _ in self.outputs.values()) + 1)
        _zero(last)
        self.net = nn.Sequential(*layers, last)

    @staticmethod
    def _seen(space: Any) -> int:
        return (1 + 2 * len(WAVES)) * space.dim if space.is_linear else space.embedding_size(HARMONICS)

    def _features(self, space: Any, x: Tensor) -> Tensor:
        """The embedding of a compact space; flat coordinates, and waves of several lengths, without which a network is slow to
        learn what turns quickly."""
        if not space.is_linear:
            return space.embed(x, HARMONICS)
        near = x / self.scale
        phase = near.unsqueeze(-1) * torch.tensor(WAVES, dtype=x.dtype, device=x.device)
        return torch.cat([near, phase.sin().flatten(-2), phase.cos().flatten(-2)], -1)

    def forward(self, x: State, t: Tensor, slope: State | None = None) -> Control:
        """Control of states ``(n, ...)`` at times ``(n,)``."""
        times = time_features(t)
        seen = [times]
        for n, v in fields(x).items():
            space = fields(self.spaces)[n]
            seen.append(self._features(space, v).flatten(1))
            if self.sloped:
                assert slope is not None
                seen.append(torch.asinh(self.scale * fields(slope)[n]).flatten(1))
        made = self.net(torch.cat(seen, -1))
        drift, width, at = {}, {}, 0
        for n, (drifts, widths, tangent, each) in self.outputs.items():
            space, batch = fields(self.spaces)[n], self.sizes.get(n, ())
            raw = made[:, at : at + drifts].reshape(len(t), *batch, *tangent)
            drift[n] = space.to_tangent(fields(x)[n], raw)
            raw = made[:, at + drifts : at + drifts + widths]
            width[n] = raw.reshape(len(t), *batch, each) if space.is_linear else raw.reshape(len(t), *batch)
            at += drifts + widths
        return Control(drift, width, made[:, -1], self._gate(t, times))


class CoordinateControl(_Gated):
    r"""One small network for all coordinates of :math:`R^d`, which sees the coordinate, its slope, its number and a summary of
    the whole state: for many coordinates of which each depends on few others.

    Args:
        space: flat space.
        scale: length in which coordinates are measured.
        width, depth: of the network of a coordinate.
        context: size of the summary.
        sloped: the slope of the target is shown, too.
    """

    def __init__(
        self,
        space: Any,
        scale: float = 1.0,
        *,
        width: int = 48,
        depth: int = 2,
        context: int = 16,
        sloped: bool = False,
    ) -> None:
        super().__init__()
        if not space.is_linear or space.event_ndim != 1:
            raise ValueError(f"CoordinateControl is for flat space, not for {space}; use MlpControl")
        self.scale, self.sloped, d = scale, sloped, space.dim
        times = 2 * FREQUENCIES + 1
        self.number = nn.Parameter(0.3 * torch.randn(d, 8))
        self.whole = nn.Sequential(
            nn.Linear((1 + sloped) * d + times, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, context + 1)
        )
        layers: list[nn.Module] = []
        # what all coordinates share enters the first layer once a sample, not once a coordinate
        self.shared = nn.Linear(context + times, width)
        self.own = nn.Linear(2 + sloped, width, bias=False)
        self.names = nn.Linear(8, width, bias=False)
        for _ in range(depth - 1):
            layers += [nn.SiLU(), nn.Linear(width, width)]
        last = nn.Linear(width, 3)
        _zero(last)
        self.net = nn.Sequential(*layers, nn.SiLU(), last)

    def forward(self, x: Any, t: Tensor, slope: Any = None) -> Control:
        """Control of states ``(n, d)`` at times ``(n,)``."""
        times = time_features(t)
        own = [x / self.scale, torch.asinh(4 * x / self.scale)]
        if self.sloped:
            own.append(torch.asinh(self.scale * slope))
        summary = self.whole(torch.cat([own[0], *own[2:], times], -1))
        hidden = self.own(torch.stack(own, -1)) + self.names(self.number)
        hidden = hidden + self.shared(torch.cat([summary[:, :-1], times], -1)).unsqueeze(1)
        made = self.net(hidden)
        drift = made[..., 0] + made[..., 2] * own[0]  # a pull in proportion to the place is what a normal needs
        return Control({"x": drift}, {"x": made[..., 1]}, summary[:, -1], self._gate(t, times))


def _zero(layer: nn.Module) -> None:
    """The first control is none."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
