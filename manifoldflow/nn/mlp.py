"""A multilayer perceptron that returns tangent vectors."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.torus import Torus


class TangentMLP(nn.Module):
    r"""A velocity field on a manifold: an MLP of the point and the time, projected onto the tangent space.

    Time enters through Fourier features, points of a torus through :math:`\sin, \cos` of their angle, so that the field
    is periodic.

    Args:
        manifold: the space.
        width: hidden width.
        depth: number of hidden layers.
        condition: size of a condition vector ``cond`` ``(B, condition)``, 0 for none.
        frequencies: Fourier features of the time, and harmonics of a torus coordinate.
    """

    def __init__(
        self, manifold: Manifold, width: int = 256, depth: int = 5, *, condition: int = 0, frequencies: int = 4
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            raise ValueError(f"width and depth must be at least 1, got {width} and {depth}")
        self.manifold, self.condition, self.frequencies = manifold, condition, frequencies
        point = math.prod(manifold.event_shape) * (2 * frequencies if isinstance(manifold, Torus) else 1)
        sizes = [point + 2 * frequencies + condition] + [width] * depth
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        tangent = manifold.tangent_basis(manifold.origin()).shape[1:]
        self.tangent_shape = tuple(tangent)
        self.net = nn.Sequential(*layers, nn.Linear(width, math.prod(tangent)))

    def forward(self, x: Tensor, t: Tensor, *, cond: Tensor | None = None) -> Tensor:
        """Velocity at points ``x`` of shape ``(..., *event)`` and times ``t`` of leading batch axes."""
        batch = x.shape[: x.ndim - self.manifold.event_ndim]
        harmonics = torch.arange(1, self.frequencies + 1, dtype=x.dtype, device=x.device)
        point = x.flatten(-self.manifold.event_ndim) if self.manifold.event_ndim > 1 else x
        if isinstance(self.manifold, Torus):
            phase = (point.unsqueeze(-1) * (2 * math.pi / self.manifold.period) * harmonics).flatten(-2)
            point = torch.cat([phase.sin(), phase.cos()], -1)
        time = (
            t.to(x.dtype).reshape(t.shape + (1,) * (len(batch) - t.ndim)).expand(batch).unsqueeze(-1)
            * harmonics
            * math.pi
        )
        parts = [point, time.sin(), time.cos()]
        if self.condition:
            if cond is None:
                raise ValueError(f"this network needs cond= of shape (B, {self.condition})")
            parts.append(cond)
        elif cond is not None:
            raise ValueError("this network takes no condition; build it with condition=")
        out = self.net(torch.cat(parts, -1)).reshape(*batch, *self.tangent_shape)
        return self.manifold.to_tangent(x, out)
