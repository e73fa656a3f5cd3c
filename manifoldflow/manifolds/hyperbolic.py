r"""Hyperbolic space in two models: the Poincare ball and the hyperboloid (Lorentz).

Distances come from chords, :math:`2 \operatorname{asinh}` of half a length, which keeps its digits for close points, where
artanh of a Moebius difference and acosh of an inner product lose half of them.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.laws import log_normal
from manifoldflow.numerics import checks_points, coth_slope, dot, in_double_precision, in_full_precision, tiny_square


class Hyperbolic(Manifold):
    """What both models share: unique geodesics, and the spreading of geodesics as sinh of the distance."""

    d: int
    curvature: float
    is_hadamard: ClassVar[bool] = True
    """exp is one-to-one from every tangent space onto the manifold."""

    def __post_init__(self) -> None:
        if self.d < 1:
            raise ValueError(f"{type(self).__name__}: d must be at least 1, got {self.d}")
        if not (math.isfinite(self.curvature) and self.curvature < 0):
            raise ValueError(f"{type(self).__name__}: curvature must be negative, got {self.curvature}")

    @property
    def dim(self) -> int:
        return self.d

    @property
    def _c(self) -> float:
        return -self.curvature

    def _squared_length(self, x: Tensor, u: Tensor) -> Tensor:
        """Squared length of a tangent in units of the radius of curvature, kept as size 1."""
        return self._c * self.inner(x, u, u).unsqueeze(-1)

    @in_full_precision
    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        r"""Jacobi fields: the part along the geodesic is transported back, the rest is also divided by
        :math:`\sinh\rho / \rho`, :math:`\rho` the length of w in units of the radius of curvature."""
        back = self.transport(self.exp(x, w), v, x)
        squared = self._squared_length(x, w)
        along = self._c * self.inner(x, back, w).unsqueeze(-1) / (squared + tiny_square(x.dtype)) * w
        return along + (back - along) / _sinhc(squared)

    @in_full_precision
    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`(d - 1) \log(\sinh\rho / \rho)`."""
        return (self.d - 1) * log_sinhc(self._squared_length(x, u)).squeeze(-1)

    @in_full_precision
    def volume_gradient(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        r""":math:`(d - 1)(\rho \coth \rho - 1) / \rho^2 \, c\, v`."""
        return (self.d - 1) * self._c * coth_slope(self._squared_length(x, u)) * v

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        return self.to_tangent(x, v)

    def log_wrapped_normal(self, mean: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        """One image, by the distance: a tangent has lost digits of its length where coordinates are large."""
        squared = self.dist(mean, x).square()
        return log_normal(squared, scale, self.d) - (self.d - 1) * log_sinhc(self._c * squared)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        """Every geodesic is."""
        return torch.ones_like(u[..., 0], dtype=torch.bool)


@dataclass(frozen=True)
class PoincareBall(Hyperbolic):
    r"""The ball :math:`\{x \in R^d : c |x|^2 < 1\}`, :math:`c = -` curvature, with the metric :math:`\lambda_x^2 |dx|^2`,
    :math:`\lambda_x = 2 / (1 - c |x|^2)`.

    Points and tangents have shape ``(..., d)``; a tangent is the velocity of the coordinates. Coordinates resolve less and
    less towards the boundary: points are kept at least 1e-5 (float32; 1e-11 in float64) of the radius away from it,
    at a distance of 12 (26) radii of curvature from the origin. The hyperboloid has no such limit.

    Formulas of gyrovector spaces: Ungar 2005; Ganea et al. 2018.

    Args:
        d: dimension.
        curvature: sectional curvature, negative.
    """

    d: int
    curvature: float = -1.0

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.d,)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.zeros(*shape, self.d, dtype=dtype, device=device)

    def conformal_factor(self, x: Tensor) -> Tensor:
        r""":math:`\lambda_x`, ``(..., 1)``."""
        return 2 / self._gap(x)

    def _gap(self, x: Tensor) -> Tensor:
        return (1 - self._c * dot(x, x)).clamp_min(torch.finfo(x.dtype).eps)

    @in_full_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`x \oplus \tanh(\rho / 2)\, u / (\sqrt c |u|)`."""
        c, gap = self._c, self._gap(x)
        half = 0.25 * self._squared_length(x, u)
        w = _tanhc(half) * u / gap  # tanh(rho / 2) u / (sqrt(c) |u|), with rho = 2 sqrt(c) |u| / gap
        sum_, ww = x + w, dot(w, w)
        # x (+) w as a step from x: its denominator 1 + 2c<x, w> + c^2 |x|^2 |w|^2 is a sum of two positive terms.
        below = c * dot(sum_, sum_) + gap * _root(half).cosh() ** -2
        return self.project(x + gap * (c * ww * x + w) / below)

    @in_full_precision
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        c, step = self._c, y - x
        gap_x, gap_y, square = self._gap(x), self._gap(y), dot(step, step)
        ratio = c * square / (gap_x * gap_y)  # sinh(rho / 2)^2
        # -x (+) y with the difference taken first; |direction| = tanh(rho / 2) / sqrt(c) after division by the norm below
        direction = (gap_x * step - c * square * x) / (gap_x * gap_y)
        # |direction|^2 = ratio (1 + ratio) / c, so the tangent is rho gap_x / (2 sqrt(c)) along it
        return _asinhc(ratio) * (1 + ratio).rsqrt() * gap_x * direction

    @in_full_precision
    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        step = y - x
        ratio = dot(step, step) / (self._gap(x) * self._gap(y))
        is_zero = ratio <= 0
        root = torch.where(is_zero, 1.0, ratio).sqrt()
        return torch.where(is_zero, 0.0, 2 / self._c**0.5 * torch.asinh(self._c**0.5 * root)).squeeze(-1)

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        most = (1 - (1e-11 if x.dtype == torch.float64 else 1e-5)) / self._c**0.5
        length = (dot(x, x) + tiny_square(x.dtype)).sqrt()
        return torch.where(length > most, x * (most / length), x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        r""":math:`g / \lambda_x^2`."""
        return 0.25 * self._gap(x).square() * g

    @in_full_precision
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        factor = self.conformal_factor(x)
        return dot(factor * u, factor * v).squeeze(-1)

    @in_full_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        r""":math:`\mathrm{gyr}[y, -x]\, u\, \lambda_x / \lambda_y`, a rotation of the coordinates."""
        c, step, gap_x, gap_y = self._c, y - x, self._gap(x), self._gap(y)
        square, xu, du, dx = dot(step, step), dot(x, u), dot(step, u), dot(step, x)
        # Ungar's formula, sorted by powers of the step, without which it cancels towards the boundary.
        along = c * c * (2 * dx * xu - du * dot(x, x)) - c * xu * gap_x
        across = c * du * gap_x - c * c * xu * square
        turned = u + 2 * (along * step + across * x) / (c * square + gap_x * gap_y)
        return turned * (gap_y / gap_x)

    def tangent_basis(self, x: Tensor) -> Tensor:
        axes = torch.eye(self.d, dtype=x.dtype, device=x.device)
        return 0.5 * self._gap(x).unsqueeze(-1) * axes

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = torch.eye(self.d, dtype=x.dtype, device=x.device)
        gap = self._gap(x).unsqueeze(-1)
        return 0.5 * gap * axes, 2 / gap * axes

    def log_volume_element(self, x: Tensor) -> Tensor:
        r""":math:`d \log \lambda_x`."""
        return self.d * self.conformal_factor(x).log().squeeze(-1)

    @in_full_precision
    def residual(self, x: Tensor) -> Tensor:
        """How far a point lies outside of the ball."""
        return ((dot(x, x)).sqrt().squeeze(-1) - 1 / self._c**0.5).clamp_min(0)


@dataclass(frozen=True)
class Lorentz(Hyperbolic):
    r"""The upper sheet of the hyperboloid, :math:`\langle x, x \rangle_L = -x_0^2 + x_1^2 + \dots + x_d^2 = -k`,
    :math:`k = -1 /` curvature.

    Points and tangents have shape ``(..., d + 1)``, the time coordinate first; tangents are Minkowski-orthogonal to x. The
    time coordinate follows from the others, and what it would cancel with is computed without it.

    float32 is computed in float64, and distances are right to 1e-4 up to a radius of 12. But the numbers of a point at the radius
    R are of the size of :math:`e^R / 2`: float32 places it no better than :math:`e^R\, 3 \cdot 10^{-8}` across (5e-3 at 12).

    Args:
        d: dimension.
        curvature: sectional curvature, negative.
    """

    d: int
    curvature: float = -1.0

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.d + 1,)

    @property
    def _k(self) -> float:
        return 1 / self._c

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        apex = torch.zeros(self.d + 1, dtype=dtype, device=device)
        apex[0] = self._k**0.5
        return apex.expand(*shape, self.d + 1)

    @in_double_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        squared = self._squared_length(x, u)
        return self.project((squared + tiny_square(x.dtype)).sqrt().cosh() * x + _sinhc(squared) * u)

    @in_double_precision
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        chord, step = self._chord(x, y)
        ratio = 0.25 * self._c * chord
        # sinh(rho) = 2 sqrt(ratio (1 + ratio)), and |step - (chord / 2k) x| = sqrt(k) sinh(rho)
        direction = step - 0.5 * self._c * chord * x
        return _asinhc(ratio) * (1 + ratio).rsqrt() * direction

    @in_double_precision
    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        chord, _ = self._chord(x, y)
        is_zero = chord <= 0
        root = torch.where(is_zero, 1.0, chord).sqrt()
        return torch.where(is_zero, 0.0, 2 * self._k**0.5 * torch.asinh(0.5 * self._c**0.5 * root)).squeeze(-1)

    @in_double_precision
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r""":math:`(\sinh((1 - t)\rho)\, x_0 + \sinh(t\rho)\, x_1) / \sinh\rho` and its derivative.

        Sums without cancellation, however far the ends are from each other."""
        chord, step = self._chord(x0, x1)
        rho = 2 * torch.asinh((0.25 * self._c * chord + tiny_square(x0.dtype)).sqrt())
        t = expand_time(t, step, 1)
        left, right = (1 - t) * rho, t * rho
        # exp(-rho) taken out: sinh of a large distance overflows
        below = -torch.expm1(-2 * rho)
        before = -torch.expm1(-2 * left) * (left - rho).exp() / below
        after = -torch.expm1(-2 * right) * (right - rho).exp() / below
        slope_before = rho * (1 + (-2 * left).exp()) * (left - rho).exp() / below
        slope_after = rho * (1 + (-2 * right).exp()) * (right - rho).exp() / below
        x = self.project(before * x0 + after * x1)
        # with x1 = x0 + step: what is left of x0 is small where the ends are close
        return x, slope_after * step + (slope_after - slope_before) * x0

    def _chord(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""The squared Minkowski length q of y - x, and y - x itself, without cancellation.

        With the radii r, s of the space coordinates, :math:`\delta` the difference of the distances from the apex and
        :math:`\hat x, \hat y` the directions, both terms of

        .. math:: q = 4k \sinh^2(\delta / 2) + r s\, |\hat x - \hat y|^2, \quad
            \sinh\delta = \frac{(s - r)(s + r)}{r y_0 + s x_0}

        are positive. For directions that are close the second is :math:`P / (1 - S / (r + s)^2)` of the parts P, S of the
        step across x + y and along it, squared.
        """
        xs, ys, tiny = x[..., 1:], y[..., 1:], tiny_square(x.dtype)
        space, total = ys - xs, xs + ys
        r, s = (dot(xs, xs) + tiny).sqrt(), (dot(ys, ys) + tiny).sqrt()
        time_x, time_y = (self._k + r * r).sqrt(), (self._k + s * s).sqrt()
        drop = dot(space, total)
        sinh = drop / (r * time_y + s * time_x)
        radial = 2 * self._k * sinh * sinh / (1 + (1 + sinh * sinh).sqrt())
        is_near = (dot(xs, ys) > 0) & ((r * r - s * s).abs() < 2 * r * s)
        unit = total / (dot(total, total) + tiny).sqrt()
        along = dot(space, unit)
        across = space - along * unit
        share = (along / (r + s)).square()
        near = dot(across, across) / (1 - torch.where(is_near, share, 0.0))
        off = xs / r - ys / s
        return radial + torch.where(is_near, near, r * s * dot(off, off)), torch.cat(
            [drop / (time_x + time_y), space], -1
        )

    @in_double_precision
    def project(self, x: Tensor) -> Tensor:
        """The point above the same space coordinates."""
        space = x[..., 1:]
        return torch.cat([(self._k + dot(space, space)).sqrt(), space], -1)

    @checks_points
    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """The Minkowski-orthogonal projection. What is tangent up to the rounding of its numbers keeps its space coordinates: far
        out the projection would enlarge that rounding by the square of the time coordinate."""
        return self._project_vector(x, u, 8 * torch.finfo(u.dtype).eps)

    @in_double_precision
    def _project_vector(self, x: Tensor, u: Tensor, tolerance: float) -> Tensor:
        xs, us, time = x[..., 1:], u[..., 1:], x[..., :1]
        along = dot(xs, us)
        product = along - time * u[..., :1]
        size = (xs.abs() * us.abs()).sum(-1, keepdim=True) + (time * u[..., :1]).abs()
        kept = torch.cat([along / time, us.expand(torch.broadcast_shapes(xs.shape, us.shape))], -1)
        return torch.where(product.detach().abs() <= tolerance * size.detach(), kept, u + self._c * product * x)

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """The tangential part of g with its time coordinate turned around."""
        return self.to_tangent(x, torch.cat([-g[..., :1], g[..., 1:]], -1))

    @in_double_precision
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Of tangents: their time coordinates follow from the others, so parts along x are scaled by sqrt(k) / x_0."""
        space = x[..., 1:]
        unit = space / (dot(space, space) + tiny_square(x.dtype)).sqrt()
        a, b = dot(unit, u[..., 1:]), dot(unit, v[..., 1:])
        across = dot(u[..., 1:] - a * unit, v[..., 1:] - b * unit)
        return (across + a * b * self._k / x[..., :1].square()).squeeze(-1)

    @in_double_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        r""":math:`u + \langle y, u\rangle_L / (k - \langle x, y\rangle_L)\, (x + y)`, with y - x in place of the first y."""
        chord, step = self._chord(x, y)
        return u + self._product(x, step, u) / (2 * self._k + 0.5 * chord) * (x + y)

    def _product(self, x: Tensor, step: Tensor, u: Tensor) -> Tensor:
        r"""The Minkowski product of a step from x to a point with a tangent at x, without cancellation.

        With the parts a, p of the step and b, q of u along x and across it, :math:`\langle step, u \rangle = p \cdot q + b X /
        x_0`, where :math:`X = a x_0 - |x| \cdot rise` follows from the equation of the hyperboloid:
        :math:`X (T^2 - a^2) = T [2 k a + |p|^2 (a x_0 / T - |x|)]`, T the sum of the time coordinates.
        """
        time, space, rise = x[..., :1], x[..., 1:], step[..., :1]
        radius = (dot(space, space) + tiny_square(x.dtype)).sqrt()
        unit = space / radius
        a, b = dot(unit, step[..., 1:]), dot(unit, u[..., 1:])
        across = step[..., 1:] - a * unit
        total = 2 * time + rise
        is_near = a * a < 0.5 * total * total
        below = torch.where(is_near, total * total - a * a, 1.0)
        near = total * (2 * self._k * a + dot(across, across) * (a * time / total - radius)) / below
        along = torch.where(is_near, near, a * time - radius * rise)
        return dot(across, u[..., 1:] - b * unit) + b * along / time

    def tangent_basis(self, x: Tensor) -> Tensor:
        """The space axes at the apex, carried to x by the boost between them."""
        time, space = x[..., :1], x[..., 1:]
        root = self._k**0.5
        axes = torch.eye(self.d, dtype=x.dtype, device=x.device)
        lean = space.unsqueeze(-1) * (space / (self._k + root * time)).unsqueeze(-2)
        return torch.cat([space.unsqueeze(-1) / root, axes + lean], -1)

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The space coordinates as a chart: the basis, and the inverse of its space part, :math:`I - x x^T / (x_0 (x_0 +
        \sqrt k))`.

        The Minkowski trace :math:`\langle e_k, D_{e_k} v \rangle_L` is the same number, as a difference of terms larger by
        :math:`x_0^2`.
        """
        time, space = x[..., :1], x[..., 1:]
        axes = torch.eye(self.d, dtype=x.dtype, device=x.device)
        inverse = axes - space.unsqueeze(-1) * (space / (time * (self._k**0.5 + time))).unsqueeze(-2)
        return self.tangent_basis(x), torch.cat([torch.zeros_like(space).unsqueeze(-1), inverse], -1)

    def log_volume_element(self, x: Tensor) -> Tensor:
        r""":math:`\log(\sqrt k / x_0)`, of the space coordinates."""
        return 0.5 * math.log(self._k) - x[..., 0].log()

    @in_double_precision
    def residual(self, x: Tensor) -> Tensor:
        """Error of the time coordinate, relative where it exceeds 1."""
        return ((x - self.project(x))[..., 0].abs() / x[..., 0].abs().clamp_min(1)).clamp_min(0)


def _root(squared: Tensor) -> Tensor:
    return (squared + tiny_square(squared.dtype)).sqrt()


def _sinhc(squared: Tensor) -> Tensor:
    """sinh(r) / r of r**2."""
    r = _root(squared)
    return r.sinh() / r


def _tanhc(squared: Tensor) -> Tensor:
    """tanh(r) / r of r**2."""
    r = _root(squared)
    return r.tanh() / r


def _asinhc(squared: Tensor) -> Tensor:
    """asinh(r) / r of r**2."""
    r = _root(squared)
    return r.asinh() / r


def log_sinhc(squared: Tensor) -> Tensor:
    """log(sinh(r) / r) of r**2, without overflow: r + log((1 - exp(-2 r)) / (2 r)), with a series where r is small."""
    is_small = squared < 1e-2
    series = squared / 6 * (1 - squared / 30 * (1 - squared * 4 / 63))
    r = squared.where(~is_small, 1.0).sqrt()
    return torch.where(is_small, series, r + (-torch.expm1(-2 * r) / (2 * r)).log())
