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


class LandmarkFeatures(PointFeatures):
    r"""Where the landmarks are, seen from a point, at scales that halve from 1 to ``finest``; and plane waves.

    At every scale s, with the coordinates c of a point and :math:`k_j = n_j \exp(-|c(x) - c_j|^2 / 2 s^2)`,

    .. math:: \log(1 + K), \quad \frac{K}{1 + K}, \quad \frac{\sum_j k_j (c_j - c(x))}{s\,(K + 10^{-3})}, \qquad K = \sum_j k_j,

    the last being the mean shift of a kernel density estimate (Fukunaga & Hostetler 1975), which is the form that the
    exact velocity towards a finite data set has. So a network fits data of any fineness, where plane waves would have to
    cover the whole manifold at the finest scale. With training data as landmarks it would learn that every point is one of
    them; so hide the rows that a batch was drawn from (``hidden``): it then sees the others alone, as a new point will.

    The landmarks are buffers: they travel with the checkpoint.

    Args:
        manifold: the space.
        landmarks: points ``(M, *event)``; equal ones are merged and counted.
        finest: smallest scale, in the unit of the coordinates (radians, for small distances).
        waves: number of plane waves of :class:`FourierFeatures`, up to ``wave_length`` radians per unit.
        seed: of the waves.
    """

    def __init__(
        self,
        manifold: Manifold,
        landmarks: Tensor,
        finest: float = 1e-3,
        *,
        waves: int = 128,
        wave_length: float = 32.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < finest <= 1:
            raise ValueError(f"finest must lie in (0, 1], got {finest}")
        self.base = Coordinates(manifold, harmonics=1)
        self.waves = FourierFeatures(manifold, waves, wave_length, seed=seed)
        self.scales = [0.5**i for i in range(1 + math.ceil(math.log2(1 / finest)))]
        places, rows, counts = torch.unique(self.base(landmarks), dim=0, return_inverse=True, return_counts=True)
        self.places: Tensor
        self.rows: Tensor
        self.counts: Tensor
        self.register_buffer("places", places)
        self.register_buffer("rows", rows)
        self.register_buffer("counts", counts.to(places.dtype))
        self.size = self.waves.size + (2 + self.base.size) * len(self.scales)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Features of points ``(..., *event)``.

        Args:
            x: points.
            hidden: row numbers of landmarks that count as absent, of any shape; -1 is none.
        """
        point = self.base(x)
        count = self.counts.to(point.dtype)
        if hidden is not None:
            drop = hidden.flatten()
            place = self.rows[drop.clamp_min(0)]
            count = count.index_add(0, place, -(drop >= 0).to(count.dtype)).clamp_min(0)
            count = count * (self.counts.sum() / count.sum().clamp_min(1))
        places = self.places.to(point.dtype)
        weighted = torch.cat([places * count.unsqueeze(-1), count.unsqueeze(-1)], -1).mT.contiguous()
        # A tile of the table (points x landmarks) stays in the cache; forward mode has few points at once anyway.
        flat = point.reshape(-1, point.shape[-1])
        tiles = [self._tile(part, places, weighted) for part in flat.split(max(1, 2**17 // len(places)))]
        return torch.cat([self.waves(x), torch.cat(tiles).reshape(*point.shape[:-1], -1)], -1)

    def _tile(self, point: Tensor, places: Tensor, weighted: Tensor) -> Tensor:
        # Differences, not dot products: at a scale of 1e-5 a dot product has lost all digits.
        half_square = 0.5 * sum((places[:, i : i + 1] - point[:, i]).square() for i in range(point.shape[-1]))
        out = []
        for scale in self.scales:
            # Far landmarks count e^-80, not less: arithmetic with denormal numbers takes five times as long.
            sums = (weighted @ torch.exp((half_square * (-1 / scale**2)).clamp_min(-80.0))).mT
            total = sums[:, -1:]
            shift = (sums[:, :-1] - total * point) / (scale * (total + 1e-3))
            out += [torch.log1p(total), total / (1 + total), shift]
        return torch.cat(out, -1)
