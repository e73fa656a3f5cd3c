"""A multilayer perceptron that returns tangent vectors."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.manifolds.base import Manifold
from manifoldflow.nn.features import Coordinates, LandmarkFeatures, NormalCoordinates, PointFeatures
from manifoldflow.numerics import push_along


class TangentMLP(nn.Module):
    r"""A velocity field on a manifold: an MLP of the point and the time, projected onto the tangent space.

    Time enters through Fourier features, the point through ``features``: its coordinates by default (with
    :math:`\sin, \cos` of angles on a torus and quadratic monomials of a quaternion, so that the field is a function of
    the point and not of its representative). On hyperbolic space and positive-definite matrices, whose coordinates grow
    exponentially, it sees normal coordinates and returns those in the frame (:class:`FrameMLP`), so that no trajectory runs
    away to infinity in finite time; ``features=Coordinates(manifold)`` gives the plain form.

    Args:
        manifold: the space.
        width: hidden width.
        depth: number of hidden layers.
        condition: size of a condition vector ``cond`` ``(B, condition)``, 0 for none. With :class:`LandmarkFeatures` ``cond``
            is the row numbers ``(B,)`` of the landmarks to hide (in training), or None.
        frequencies: Fourier features of the time, and harmonics of a torus coordinate.
        features: what the network sees of a point, such as :class:`FourierFeatures` for densities with fine detail.
        finest_time: smallest 1 - t that is told apart, by waves in its logarithm: for data whose detail takes shape close
            to t = 1. None for no such waves; by default that of :class:`LandmarkFeatures`.
        heads: tangent vectors at every point; 2 for a :class:`manifoldflow.StochasticInterpolant`, which wants a velocity and a
            noise. With more than one they are stacked before the tangent's axes.
    """

    def __init__(
        self,
        manifold: Manifold,
        width: int = 256,
        depth: int = 5,
        *,
        condition: int = 0,
        frequencies: int = 4,
        features: PointFeatures | None = None,
        finest_time: float | None = None,
        heads: int = 1,
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1 or heads < 1:
            raise ValueError(f"width, depth and heads must be at least 1, got {width}, {depth} and {heads}")
        if condition and isinstance(features, LandmarkFeatures):
            raise ValueError("with LandmarkFeatures cond= is the landmarks to hide, so there is no other condition")
        self.condition, self.frequencies, self.heads = condition, frequencies, heads
        in_frame = self._in_frame(manifold, features)
        self.manifold: Any = InFrame(manifold) if in_frame else manifold
        plain = NormalCoordinates if manifold.is_hadamard else Coordinates
        self.features = features or plain(manifold, harmonics=frequencies)
        if finest_time is None and isinstance(features, LandmarkFeatures):
            finest_time = features.finest
        if finest_time is not None and not 0 < finest_time < 1:
            raise ValueError(f"finest_time must lie in (0, 1), got {finest_time}")
        self.finest_time = finest_time
        times = frequencies if finest_time is None else 2 * frequencies
        tangent = (manifold.dim,) if in_frame else tuple(manifold.tangent_basis(manifold.origin()).shape[1:])
        self.tangent_shape = tangent
        self._make_layers(self.features.size, 2 * times + condition, width, depth, heads * math.prod(tangent))

    def _in_frame(self, manifold: Manifold, features: PointFeatures | None) -> bool:
        """Whether the output is coordinates in the frame of the tangent space rather than an ambient vector."""
        return manifold.is_hadamard and features is None

    def forward(self, x: Tensor, t: Tensor, *, cond: Tensor | None = None) -> Tensor:
        """Velocity at points ``x`` of shape ``(..., *event)`` and times ``t`` of leading batch axes."""
        batch = x.shape[: x.ndim - self.manifold.event_ndim]
        rest = torch.cat(self._rest(x, t, cond, batch), -1)
        value = self._run(self.features(x, *self._context(t, cond)), rest)
        if self.heads == 1:
            return self.manifold.to_tangent(x, value.reshape(*batch, *self.tangent_shape))
        return self.manifold.to_tangent(x.unsqueeze(len(batch)), value.reshape(*batch, self.heads, *self.tangent_shape))

    def push_forward(self, x: Tensor, t: Tensor, moves: Tensor, *, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity and its derivatives along ``moves`` of the points.

        By hand through the layers: forward mode of PyTorch takes the exponentials of every activation again for every
        direction, and needs 1.3 to 1.8 times as long.

        Args:
            x, t, cond: as for the call.
            moves: ``(D, *x.shape)``, tangent velocities of the points.

        Returns:
            Velocities ``(..., *tangent)`` and derivatives ``(D, ..., *tangent)``.

        Raises:
            ValueError: the network has several heads.
        """
        if self.heads > 1:
            raise ValueError(f"push_forward is for networks with one head, this one has {self.heads}")
        batch = x.shape[: x.ndim - self.manifold.event_ndim]
        point, pushed = self.features.push(x, moves, *self._context(t, cond))
        rest = torch.cat(self._rest(x, t, cond, batch), -1)
        value, pushed = self._push(point, pushed, rest)
        value = value.reshape(*batch, *self.tangent_shape)
        pushed = pushed.reshape(len(moves), *batch, *self.tangent_shape)
        if self.manifold.any_vector_is_tangent:
            return value, pushed  # every vector is a tangent
        return push_along(self.manifold.to_tangent, (x, value), (moves, pushed))

    def _make_layers(self, point: int, rest: int, width: int, depth: int, out: int) -> None:
        """Layers from ``point`` and ``rest`` inputs to ``out`` numbers."""
        layers: list[nn.Module] = []
        for a, b in pairwise([point + rest] + [width] * depth):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, out))

    def _run(self, point: Tensor, rest: Tensor) -> Tensor:
        """The output of the layers for the features of the point and everything else."""
        return self.net(torch.cat([point, rest], -1))

    def _push(self, point: Tensor, pushed: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_run`, and its derivatives for those ``(D, ..., size)`` of the features of the point."""
        value = torch.cat([point, rest], -1)
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                # The first layer also sees what does not move with the point.
                value, pushed = layer(value), pushed @ layer.weight[:, : pushed.shape[-1]].mT
            else:
                value, pushed = silu_and_push(value, pushed)
        return value, pushed

    def _context(self, t: Tensor, cond: Tensor | None) -> tuple[Any, ...]:
        """What the features take besides the point."""
        return (t, cond) if isinstance(self.features, LandmarkFeatures) else ()

    def _rest(self, x: Tensor, t: Tensor, cond: Tensor | None, batch: torch.Size) -> list[Tensor]:
        """What the network sees besides the point."""
        harmonics = torch.arange(1, self.frequencies + 1, dtype=x.dtype, device=x.device)
        time = t.to(x.dtype).reshape(t.shape + (1,) * (len(batch) - t.ndim)).expand(batch).unsqueeze(-1)
        phase = time * harmonics * math.pi
        parts = [phase.sin(), phase.cos()]
        if self.finest_time is not None:
            late = (1 - time).clamp_min(0).add(self.finest_time).log() / math.log(self.finest_time)
            phase = late * harmonics * math.pi
            parts += [phase.sin(), phase.cos()]
        if self.condition:
            if cond is None:
                raise ValueError(f"this network needs cond= of shape (B, {self.condition})")
            parts.append(cond)
        elif cond is not None and not isinstance(self.features, LandmarkFeatures):
            raise ValueError("this network takes no condition; build it with condition=")
        return parts


class InFrame:
    """What a :class:`TangentMLP` asks of its manifold, with coordinates in the frame in place of ambient vectors."""

    any_vector_is_tangent = False

    def __init__(self, manifold: Manifold) -> None:
        self.manifold, self.event_ndim = manifold, manifold.event_ndim

    def to_tangent(self, x: Tensor, coordinates: Tensor) -> Tensor:
        space = self.manifold
        weights = coordinates.reshape(coordinates.shape + (1,) * space.tangent_ndim)
        return (weights * space.tangent_basis(x)).sum(-1 - space.tangent_ndim)


def silu_and_push(value: Tensor, pushed: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivatives, with one exponential for both. Without autograd ``pushed`` is overwritten."""
    gate = value.sigmoid()
    out = value * gate
    slope = gate + out * (1 - gate)
    return out, pushed * slope if torch.is_grad_enabled() else pushed.mul_(slope)
