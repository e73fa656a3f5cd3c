r"""Monotone rational-quadratic splines (Durkan et al. 2019), on a circle and on a line.

On every bin the spline is a ratio of two quadratics that meets given places and slopes at the knots, so it is
continuously differentiable, its inverse is a root of a quadratic, and both have closed derivatives.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_BIN = 1e-3
LEAST_SLOPE = 1e-3
_UNIT_SLOPE = math.log(math.expm1(1 - LEAST_SLOPE))  # softplus of it is a slope of 1


class Knots(NamedTuple):
    """A spline of [0, 1] onto itself.

    Attributes:
        x, y: places ``(..., K + 1)``, from 0 to 1.
        slope: ``(..., K + 1)``, positive.
    """

    x: Tensor
    y: Tensor
    slope: Tensor


def make_knots(widths: Tensor, heights: Tensor, slopes: Tensor) -> Knots:
    """Knots from free numbers; all zero is the identity.

    Args:
        widths, heights: ``(..., K)``.
        slopes: ``(..., K + 1)``.
    """
    bins = widths.shape[-1]
    if bins * LEAST_BIN >= 1:
        raise ValueError(f"a spline has at most {int(1 / LEAST_BIN) - 1} bins, got {bins}")

    def places(free: Tensor) -> Tensor:
        share = LEAST_BIN + (1 - LEAST_BIN * bins) * free.softmax(-1)
        inner = share.cumsum(-1)[..., :-1]
        return torch.cat([torch.zeros_like(inner[..., :1]), inner, torch.ones_like(inner[..., :1])], -1)

    return Knots(places(widths), places(heights), LEAST_SLOPE + torch.nn.functional.softplus(slopes + _UNIT_SLOPE))


def rational_quadratic(x: Tensor, knots: Knots, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The spline at points of [0, 1], and the log of its derivative there.

    Args:
        x: ``(...)``, the shape of the knots without their last axis.
        knots: the spline.
        inverse: evaluate the inverse of the spline and the log of the derivative of the inverse.

    Returns:
        images ``(...)`` in [0, 1] and log-derivatives ``(...)``.
    """
    along = knots.y if inverse else knots.x
    index = (x.unsqueeze(-1) >= along[..., 1:-1]).sum(-1, keepdim=True)
    table = torch.stack([knots.x, knots.y, knots.slope], -2)
    table = table.expand(*x.shape, *table.shape[-2:])
    index = index.unsqueeze(-2).expand(*x.shape, 3, 1)
    left, right = table.gather(-1, index).squeeze(-1), table.gather(-1, index + 1).squeeze(-1)
    x0, y0, d0 = left.unbind(-1)
    width, height = (right[..., :2] - left[..., :2]).unbind(-1)
    d1, s = right[..., 2], height / width
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = x - y0
        a, b, c = height * (s - d0) + rise * bend, height * d0 - rise * bend, -s * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
    else:
        t = (x - x0) / width
    t = t.clamp(0, 1)
    u = t * (1 - t)
    base = s + bend * u
    log_slope = 2 * s.log() + (d1 * t * t + 2 * s * u + d0 * (1 - t) ** 2).log() - 2 * base.log()
    if inverse:
        return (x0 + width * t).clamp(0, 1), -log_slope
    return (y0 + height * (s * t * t + d0 * u) / base).clamp(0, 1), log_slope


def circular_turn(x: Tensor, free: Tensor, period: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """How far :func:`circular_spline` moves points: continuous round the circle, where the image itself jumps by a period.

    Args:
        x: points ``(...)`` of a circle, any representative.
        free: ``(..., 3 K + 1)``: widths, heights and slopes of K bins, and a turn in units of the period.
        period: length of the circle.
        inverse: of the inverse map.

    Returns:
        displacements and log-derivatives.
    """
    bins = _bins(free, 1)
    widths, heights, slopes, turn = free.split([bins, bins, bins, 1], -1)
    knots, turn = make_knots(widths, heights, torch.cat([slopes, slopes[..., :1]], -1)), turn.squeeze(-1)
    place = (x / period - turn if inverse else x / period).remainder(1.0)
    place = torch.where(place >= 1, 0.0, place)  # remainder rounds -1e-9 up to 1
    image, log_slope = rational_quadratic(place, knots, inverse=inverse)
    return (image - place + (-turn if inverse else turn)) * period, log_slope


def circular_spline(x: Tensor, free: Tensor, period: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """A diffeomorphism of a circle: a spline whose slopes agree across the seam, followed by a turn (Rezende et al. 2020).

    Args:
        x, free, period, inverse: see :func:`circular_turn`.

    Returns:
        images in [0, period), and log-derivatives.
    """
    turn, log_slope = circular_turn(x, free, period, inverse=inverse)
    image = (x + turn).remainder(period)
    return torch.where(image >= period, 0.0, image), log_slope


def line_spline(x: Tensor, free: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """A diffeomorphism of the line: scale and shift, then a spline of [-bound, bound] that continues as the identity.

    Args:
        x: points ``(...)``.
        free: ``(..., 3 K + 1)``: widths and heights of K bins, the K - 1 slopes between them, a log-scale and a shift.
        bound: half of the interval in which the spline bends.
        inverse: the inverse map.

    Returns:
        images, and log-derivatives.
    """
    bins = _bins(free, 1)
    widths, heights, slopes, log_scale, shift = free.split([bins, bins, bins - 1, 1, 1], -1)
    knots = make_knots(widths, heights, torch.nn.functional.pad(slopes, (1, 1)))
    log_scale, shift = log_scale.squeeze(-1), shift.squeeze(-1)

    def bent(v: Tensor) -> tuple[Tensor, Tensor]:
        is_inside = v.abs() < bound
        place = (torch.where(is_inside, v, 0.0) + bound) / (2 * bound)
        image, log_slope = rational_quadratic(place, knots, inverse=inverse)
        return torch.where(is_inside, image * (2 * bound) - bound, v), torch.where(is_inside, log_slope, 0.0)

    if inverse:
        v, log_slope = bent(x)
        return (v - shift) * (-log_scale).exp(), log_slope - log_scale
    v, log_slope = bent(x * log_scale.exp() + shift)
    return v, log_slope + log_scale


def _bins(free: Tensor, extra: int) -> int:
    bins, rest = divmod(free.shape[-1] - extra, 3)
    if rest or bins < 2:
        raise ValueError(f"a spline of K >= 2 bins takes 3 K + 1 numbers, got {free.shape[-1]}")
    return bins
