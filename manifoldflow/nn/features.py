"""What a network sees of a point: functions on the manifold, at one scale or at many."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manifoldflow.manifolds.base import Manifold
from manifoldflow.numerics import push_along


class PointFeatures(nn.Module):
    """Base class: maps points ``(..., *event)`` to ``(..., size)``, smoothly.

    Attributes:
        size: number of features.
    """

    size: int

    def forward(self, x: Tensor) -> Tensor:
        """Features of points ``(..., *event)``."""
        raise NotImplementedError

    def push(self, x: Tensor, moves: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """The features, and their derivatives ``(D, ..., size)`` along ``moves`` ``(D, *x.shape)`` of the points.

        Args:
            x, moves: points and their velocities.
            rest: other arguments of the call.
        """
        return push_along(lambda y: self(y, *rest), (x,), (moves,))


class Coordinates(PointFeatures):
    r"""The coordinates of a point, as functions on the manifold.

    :meth:`Manifold.embed`. Tori: :math:`\sin, \cos` of the first ``harmonics`` multiples of every angle. Quaternions: the
    ten products :math:`q_i q_j`, which are the same for q and -q. Everything else: the numbers of the point.

    Args:
        manifold: the space.
        harmonics: multiples of a torus angle.
    """

    def __init__(self, manifold: Manifold, harmonics: int = 4) -> None:
        super().__init__()
        self.manifold, self.harmonics = manifold, harmonics
        self.size = manifold.embedding_size(harmonics)

    def forward(self, x: Tensor) -> Tensor:
        return self.manifold.embed(x, self.harmonics)

    def push(self, x: Tensor, moves: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return self.manifold.push_embedding(x, moves, self.harmonics)


class NormalCoordinates(PointFeatures):
    r"""The ``dim`` coordinates of :math:`\log_o x` in the frame at the origin o: as long as x is far.

    Of hyperbolic space and positive-definite matrices, whose own coordinates grow exponentially with the distance or crowd
    at a boundary.

    Args:
        manifold: the space.

    Raises:
        ValueError: if exp is not known to be one-to-one on the manifold.
    """

    def __init__(self, manifold: Manifold, harmonics: int = 1) -> None:
        super().__init__()
        if not manifold.is_hadamard:
            raise ValueError(
                f"NormalCoordinates needs a manifold without conjugate points (hyperbolic space, positive-definite matrices), "
                f"got {manifold}"
            )
        self.manifold, self.size = manifold, manifold.dim

    def forward(self, x: Tensor) -> Tensor:
        space = self.manifold
        origin = space.origin((), dtype=x.dtype, device=x.device)
        _, duals = space.frame_moves(origin)
        return space.log(origin.expand_as(x), x).flatten(-space.tangent_ndim) @ duals.flatten(1).mT


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
        period = manifold.coordinate_period
        self.is_periodic = period is not None
        self.turn = 1.0 if period is None else 2 * math.pi / period
        width = math.prod(manifold.event_shape) if self.is_periodic else self.base.size
        generator = torch.Generator().manual_seed(seed)
        direction = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)
        waves = direction * torch.logspace(0, math.log10(finest), count).unsqueeze(-1)
        if self.is_periodic:
            waves = waves.round()
            axis = torch.arange(count) % width  # a wave that rounds to nothing becomes one along an axis
            waves = torch.where(waves.any(-1, keepdim=True), waves, torch.nn.functional.one_hot(axis, width).float())
        self.waves: Tensor
        self.register_buffer("waves", waves)
        self.size = self.base.size + 2 * count

    def forward(self, x: Tensor) -> Tensor:
        base = self.base(x)
        phase = (x * self.turn if self.is_periodic else base) @ self.waves.mT.to(x.dtype)
        return torch.cat([base, phase.sin(), phase.cos()], -1)


class LandmarkFeatures(PointFeatures):
    r"""Where the landmarks are, seen from a point, at scales that follow the time; and plane waves.

    A geodesic path from a uniform source is at distance of the order of :math:`1 - t` from where it goes. So at the scales
    :math:`s = 2^i \max(1 - t, \mathrm{finest})`, with the coordinates c of a point and :math:`k_j = n_j \exp(-|c(x) - c_j|^2 / 2
    s^2)`,

    .. math:: \log(1 + K), \quad \frac{K}{1 + K}, \quad \frac{\sum_j k_j (c_j - c(x))}{s\,(K + 10^{-3})}, \qquad K = \sum_j k_j,

    the last being the mean shift of a kernel density estimate (Fukunaga & Hostetler 1975), which is the form that the
    exact velocity towards a finite data set has. So a network fits data of any fineness, where plane waves would have to
    cover the whole manifold at the finest scale. With training data as landmarks it would learn that every point is one of
    them; so hide the rows that the batch was drawn from (``hidden``): it then sees what a new point will see.

    The landmarks are buffers: they travel with the checkpoint. For many thousands of them :class:`NearestLandmarks` is quicker.

    Args:
        manifold: the space.
        landmarks: points ``(M, *event)``; equal ones are merged and counted.
        finest: smallest time to the end that is told apart, and so the smallest scale (in radians, for small distances).
        octaves: the first and the last i.
        hide: what ``hidden`` takes away: ``"own"``, from each point the row that it is on its way to (leave-one-out), or
            ``"batch"``, from all points all of these rows, as paths with ``average_targets`` need.
        waves: number of plane waves of :class:`FourierFeatures`, up to ``wave_length`` radians per unit.
        seed: of the waves.
    """

    _stored: tuple[str, ...] = ("places", "rows", "counts")  # buffers whose length is that of the checkpoint

    def __init__(
        self,
        manifold: Manifold,
        landmarks: Tensor,
        finest: float = 1e-3,
        *,
        octaves: tuple[int, int] = (-3, 4),
        hide: Literal["own", "batch"] = "own",
        waves: int = 128,
        wave_length: float = 32.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < finest <= 1:
            raise ValueError(f"finest must lie in (0, 1], got {finest}")
        if hide not in ("own", "batch"):
            raise ValueError(f"hide must be 'own' or 'batch', got {hide!r}")
        self.base = Coordinates(manifold, harmonics=1)
        self.waves = FourierFeatures(manifold, waves, wave_length, seed=seed)
        self.finest, self.octaves, self.hide = finest, octaves, hide
        places, rows, counts = torch.unique(self.base(landmarks), dim=0, return_inverse=True, return_counts=True)
        self.places: Tensor
        self.rows: Tensor
        self.counts: Tensor
        self.register_buffer("places", places)
        self.register_buffer("rows", rows)
        self.register_buffer("counts", counts.to(places.dtype))
        self.size = self.waves.size + (2 + self.base.size) * (1 + octaves[1] - octaves[0])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The number of landmarks is that of the checkpoint.
        for name in self._stored:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, t: Tensor, hidden: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Features of points ``(..., *event)`` at times of leading batch axes.

        Args:
            x: points.
            t: times.
            hidden: row numbers of landmarks that count as absent, one per point; -1 is none.
        """
        point = self.base(x)
        batch = point.shape[:-1]
        left = (1 - t).clamp_min(self.finest).to(point.dtype)
        left = left.reshape(t.shape + (1,) * (len(batch) - t.ndim)).expand(batch).reshape(-1, 1)
        flat = point.reshape(-1, point.shape[-1])
        places, count = self.places.to(point.dtype), self.counts.to(point.dtype)
        own = None
        if hidden is not None:
            drop = hidden.flatten()
            place = self.rows[drop.clamp_min(0)]
            if self.hide == "batch":
                count = count.index_add(0, place, -(drop >= 0).to(count.dtype)).clamp_min(0)
                count = count * (self.counts.sum() / count.sum().clamp_min(1))
            else:
                own = torch.where(drop >= 0, place, len(places)).unsqueeze(-1)
        seen = self._see(flat, left, own, places, count)
        return torch.cat([self.waves(x), seen.reshape(*batch, -1)], -1)

    def _see(
        self,
        point: Tensor,
        left: Tensor,
        own: Tensor | None,
        places: Tensor,
        count: Tensor,
        worth: Tensor | float = 1.0,
    ) -> Tensor:
        """The sums over all places. ``own``: number of the place that a point is blind to, one too many for none.
        ``worth``: what a row counts for."""
        weighted = torch.cat([places * count.unsqueeze(-1), count.unsqueeze(-1)], -1)
        return self._tiled(self._tile, point, left, own, places, weighted, worth)

    @staticmethod
    def _tiled(
        function: Callable[..., Tensor],
        point: Tensor,
        left: Tensor,
        own: Tensor | None,
        places: Tensor,
        *rest: Any,
        most: int = 2**17,
    ) -> Tensor:
        # A tile of the table (points x landmarks) stays in the cache; forward mode has few points at once anyway.
        # For a compiler the number of points may be a symbol: one tile.
        if torch.compiler.is_compiling():
            return function(point, left, own, places, *rest)
        size = max(1, most // len(places))
        owners = [None] * -(-len(point) // size) if own is None else own.split(size)
        parts = zip(point.split(size), left.split(size), owners, strict=True)
        return torch.cat([function(*part, places, *rest) for part in parts])

    def _tile(
        self,
        point: Tensor,
        left: Tensor,
        own: Tensor | None,
        places: Tensor,
        weighted: Tensor,
        worth: Tensor | float,
    ) -> Tensor:
        first, last = self.octaves
        # Differences, not dot products: at a scale of 1e-5 a dot product has lost all digits.
        table = half_square(point.unsqueeze(1), places) / left.square()
        if own is not None:
            # The own place is moved out of sight, and those of its rows that are not hidden put back: taking it from the
            # sums would leave a rounding error of the size of what a far neighbour adds.
            own_place = torch.nn.functional.pad(places, (0, 0, 0, 1))[own.squeeze(-1)]
            others = torch.nn.functional.pad(weighted[:, -1:] - worth, (0, 0, 0, 1))[own.squeeze(-1)]
            here = torch.nn.functional.pad(table, (0, 1)).gather(-1, own)
            table = torch.nn.functional.pad(table, (0, 1)).scatter(-1, own, torch.inf)[:, :-1]
        out, near = [], table
        for k, i in enumerate(range(last, first - 1, -1)):
            # Each scale is half of the one before, so its kernel the fourth power: an exponential for every fourth
            # scale keeps 1e-5. Nothing below 1e-9 counts: denormal numbers take five times as long.
            if k % 4 == 0:
                near = torch.exp(table * -(4.0**-i))
            else:
                near = near.square().square()
            near = torch.nn.functional.threshold(near, 1e-9, 0.0)
            sums = near @ weighted
            if own is not None:
                kept = others * torch.exp(here * -(4.0**-i))
                sums = sums + torch.cat([own_place * kept, kept], -1)
            total = sums[:, -1:]
            shift = (sums[:, :-1] - total * point) / (left * 2.0**i * (total + 1e-3))
            out += [torch.log1p(total), total / (1 + total), shift]
        return torch.cat(out, -1)


def half_square(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 / 2 over the last axis, by coordinates: no array of differences."""
    columns = y.movedim(-1, 0).contiguous()  # read in one run, three times as fast
    terms = [(x[..., i] - columns[i]).square() for i in range(x.shape[-1])]
    return 0.5 * functools.reduce(torch.add, terms)
