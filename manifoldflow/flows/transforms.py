"""What a coupling does to a field, given free numbers from a network: the geometry of the layer, without the network."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from manifoldflow.flows.moebius import SLACK, double_moebius, into_ball, projective
from manifoldflow.flows.splines import circular_spline, line_spline


class Transform(Protocol):
    """A family of bijections of a space, one for every vector of free numbers; zero is the identity.

    Attributes:
        event_ndim: axes of a point: 0 for numbers that are mapped one by one, 1 for vectors.
        free: how many numbers each point takes.
    """

    @property
    def event_ndim(self) -> int: ...
    @property
    def free(self) -> int: ...
    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Images of ``x`` ``(..., *event)`` and log-determinants ``(...)``, with ``free`` ``(..., free)``."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """What networks see of points: ``(..., *event) -> (..., F)``, well defined on the space."""
        ...


@dataclass(frozen=True)
class CircularSpline:
    """Every angle by itself, through :func:`circular_spline`.

    Args:
        bins: pieces of the spline.
        period: of the circle.
        harmonics: multiples of the angle that networks see.
    """

    bins: int = 8
    period: float = 2 * math.pi
    harmonics: int = 3
    event_ndim = 0

    @property
    def free(self) -> int:
        return 3 * self.bins + 1

    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return circular_spline(x, free, self.period, inverse=inverse)

    def features(self, x: Tensor) -> Tensor:
        multiples = torch.arange(1, self.harmonics + 1, device=x.device, dtype=x.dtype)
        angle = x.unsqueeze(-1) * multiples * (2 * math.pi / self.period)
        return torch.cat([angle.cos(), angle.sin()], -1)


@dataclass(frozen=True)
class LineSpline:
    """Every number by itself, scaled, shifted and bent by :func:`line_spline`.

    Args:
        bins: pieces of the spline.
        bound: half of the interval that is bent.
    """

    bins: int = 8
    bound: float = 5.0
    event_ndim = 0

    @property
    def free(self) -> int:
        return 3 * self.bins + 1

    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return line_spline(x, free, self.bound, inverse=inverse)

    def features(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)


@dataclass(frozen=True)
class Affine:
    """Vectors ``(..., d)``: a lower triangular matrix with a positive diagonal, and a shift.

    Args:
        d: dimension.
    """

    d: int
    event_ndim = 1

    @property
    def free(self) -> int:
        return self.d * (self.d + 1) // 2 + self.d

    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        lower, shift = triangular(free[..., self.d :], self.d), free[..., : self.d]
        log_det = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if inverse:
            moved = (x - shift).unsqueeze(-1)
            return torch.linalg.solve_triangular(lower, moved, upper=False).squeeze(-1), -log_det
        return (lower * x.unsqueeze(-2)).sum(-1) + shift, log_det

    def features(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class DoubleMoebius:
    """Unit quaternions through :func:`double_moebius`."""

    event_ndim = 1
    free = 4
    slack: float = SLACK

    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return double_moebius(x, into_ball(free, self.slack), inverse=inverse)

    def features(self, x: Tensor) -> Tensor:
        return quaternion_products(x)


@dataclass(frozen=True)
class Projective:
    """Unit quaternions through :func:`projective`: an affine map of the gnomonic chart around the identity, and more.

    Its column of the real part is free, so that the chart is shifted; the rows of the vector part stretch it.
    """

    event_ndim = 1
    free = 9

    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        lower = triangular(torch.nn.functional.pad(free, (1, 0)), 4)  # an overall factor changes nothing
        return projective(x, lower, inverse=inverse)

    def features(self, x: Tensor) -> Tensor:
        return quaternion_products(x)


def triangular(free: Tensor, d: int) -> Tensor:
    """Lower triangular matrices ``(..., d, d)`` with a positive diagonal from ``(..., d (d + 1) / 2)`` numbers, the logs of the
    diagonal first; zeros make the identity."""
    rows, columns = torch.tril_indices(d, d, -1, device=free.device).unbind(0)
    below = free.new_zeros(*free.shape[:-1], d * d).index_copy(-1, rows * d + columns, free[..., d:])
    return below.unflatten(-1, (d, d)) + torch.diag_embed(free[..., :d].exp())


def quaternion_products(q: Tensor) -> Tensor:
    """The ten products of two entries, ``(..., 4) -> (..., 10)``: the same for q and -q."""
    i, j = torch.triu_indices(4, 4, device=q.device).unbind(0)
    return q[..., i] * q[..., j]
