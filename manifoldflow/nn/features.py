"""What a network sees of a point: functions on the manifold, at one scale or at many."""

import math

import torch
from torch import Tensor, nn

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.torus import Torus


class PointFeatures(nn.Module):
    """Base class: maps points ``(..., *event)`` to ``(..., size)``, smoothly.

    Attributes:
        size: number of features.
    """

    size: int

    def forward(self, x: Tensor) -> Tensor:
        """Features of points ``(..., *event)``."""
        raise NotImplementedError


class Coordinates(PointFeatures):
    r"""The coordinates of a point, as functions on the manifold.

    Tori: :math:`\sin, \cos` of the first ``harmonics`` multiples of every angle. Quaternions: the ten products
    :math:`q_i q_j`, which are the same for q and -q. Everything else: the numbers of the point.

    Args:
        manifold: the space.
        harmonics: multiples of a torus angle.
    """

    def __init__(self, manifold: Manifold, harmonics: int = 4) -> None:
        super().__init__()
        self.manifold, self.harmonics = manifold, harmonics
        numbers = math.prod(manifold.event_shape)
        if isinstance(manifold, Torus):
            self.size = 2 * harmonics * numbers
        else:
            self.size = 10 if isinstance(manifold, UnitQuaternion) else numbers

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.manifold, Torus):
            multiples = torch.arange(1, self.harmonics + 1, dtype=x.dtype, device=x.device)
            phase = (x.unsqueeze(-1) * (2 * math.pi / self.manifold.period) * multiples).flatten(-2)
            return torch.cat([phase.sin(), phase.cos()], -1)
        if isinstance(self.manifold, UnitQuaternion):
            w, i, j, k = x.unbind(-1)
            return torch.stack([w * w, w * i, w * j, w * k, i * i, i * j, i * k, j * j, j * k, k * k], -1)
        return x.flatten(-self.manifold.event_ndim) if self.manifold.event_ndim > 1 else x


class FourierFeatures(PointFeatures):
    r"""The coordinates, and random plane waves of many wavelengths (Tancik et al. 2020, with scales spread out).

    :math:`\sin(\omega_j \cdot c(x)), \cos(\omega_j \cdot c(x))` of the coordinates c, directions of :math:`\omega_j` uniform,
    lengths spaced evenly in their logarithm between ``1`` and ``finest``. On a torus the frequencies are whole numbers.

    Args:
        manifold: the space.
        count: number of waves.
        finest: largest length of a frequency, in radians per unit of the coordinates (whole waves per turn on a torus).
        seed: of the frequencies, which are buffers and so belong to the checkpoint.
    """

    def __init__(self, manifold: Manifold, count: int = 256, finest: float = 64.0, *, seed: int = 0) -> None:
        super().__init__()
        self.base = Coordinates(manifold, harmonics=1)
        self.is_torus = isinstance(manifold, Torus)
        self.turn = 2 * math.pi / manifold.period if isinstance(manifold, Torus) else 1.0
        width = math.prod(manifold.event_shape) if self.is_torus else self.base.size
        generator = torch.Generator().manual_seed(seed)
        direction = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)
        waves = direction * torch.logspace(0, math.log10(finest), count).unsqueeze(-1)
        if self.is_torus:
            waves = waves.round()
            axis = torch.arange(count) % width  # a wave that rounds to nothing becomes one along an axis
            waves = torch.where(waves.any(-1, keepdim=True), waves, torch.nn.functional.one_hot(axis, width).float())
        self.waves: Tensor
        self.register_buffer("waves", waves)
        self.size = self.base.size + 2 * count

    def forward(self, x: Tensor) -> Tensor:
        base = self.base(x)
        phase = (x * self.turn if self.is_torus else base) @ self.waves.mT.to(x.dtype)
        return torch.cat([base, phase.sin(), phase.cos()], -1)
