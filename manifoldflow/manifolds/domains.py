r"""Convex domains with walls: flat space that ends. Straight lines are reflected, so nothing ever lies outside.

Between two points of a convex domain the shortest geodesic is the straight segment, so paths and training targets are
those of flat space; only ``exp`` differs, which follows a ray and its reflections (Xie et al. 2024, reflected flow
matching). Results end with a clamp in the arithmetic of the points, so that :meth:`residual` is exactly 0.

``dexp_inv`` gives a velocity found behind a reflection back in the directions of the ray that led there, so Runge-Kutta
steps in normal coordinates (``method="rk4"``) see a continuous trajectory; ``transport`` follows the straight segment and
leaves vectors alone. At a step that meets a wall every integrator is of first order: the velocity has a kink there.

Likelihood: a flow keeps its total mass if nothing crosses the walls, i.e. the normal component of the velocity vanishes
there. That is so for the exact velocity, and nearly so for a trained one; :meth:`Domain.without_flux` makes any field
vanish there, and then the density integrates to 1 whatever the training.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.flat import Flat
from manifoldflow.manifolds.laws import expand, image_numbers, log_normal, over_batch
from manifoldflow.numerics import checks_points, dot, in_full_precision, tiny_square


class Domain(Flat, Manifold):
    """What the domains of :math:`R^d` share; a subclass gives ``exp``, ``project``, ``residual`` and ``_reflected_back``."""

    has_walls: ClassVar[bool] = True
    is_homogeneous: ClassVar[bool] = False

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @checks_points
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return u

    @in_full_precision
    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        """``v`` reflected back at every wall that the ray ``w`` met, last wall first; exact for flat walls."""
        return self._reflected_back(x, w, v)

    def _reflected_back(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    @checks_points
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        u = x1 - x0
        return self._clamp(x0 + expand_time(t, u, 1) * u), u

    def _clamp(self, x: Tensor) -> Tensor:
        """Undo round-off at the walls."""
        return self.project(x)

    def tangent_basis(self, x: Tensor) -> Tensor:
        return torch.eye(self.dim, dtype=x.dtype, device=x.device).expand(*x.shape[:-1], self.dim, self.dim)

    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        """0 on straight segments and behind flat walls; curved walls focus rays, which is left out here."""
        return torch.zeros_like(u[..., 0])

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        """Whether the straight segment ends inside."""
        return self.residual(x + u) <= 0

    def without_flux(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        r"""``v`` with its normal component multiplied by :math:`\tanh(\text{distance} / \text{width})` towards the walls.

        Args:
            x: points ``(..., *event)``.
            v: tangents.
            width: in units of length.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Box(Domain):
    """The box ``lower <= x <= upper``; reflection is the triangle wave in every coordinate.

    Args:
        lower, upper: finite corners, one number per dimension.

    Raises:
        ValueError: if the corners differ in length, or a side has no length.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if len(self.lower) != len(self.upper) or not self.lower:
            raise ValueError(f"Box: lower and upper need one number per dimension, got {self.lower} and {self.upper}")
        if not all(math.isfinite(b - a) and b > a for a, b in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"Box: every lower must be below its upper, and finite; got {self.lower} and {self.upper}")

    @property
    def dim(self) -> int:
        return len(self.lower)

    def corners(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``lower`` and ``upper`` in the dtype and on the device of ``like``."""
        return like.new_tensor(self.lower), like.new_tensor(self.upper)

    def log_pushed_normal(
        self, x: Tensor, mean: Tensor, scale: float | Tensor, y: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """The product over the coordinates, each the sum over the mirror images of ``y`` in both walls."""
        low, high = self.corners(x)
        side, s = high - low, over_batch(scale, y, y.ndim - 1)
        turns = image_numbers(scale, 2 * min(b - a for a, b in zip(self.lower, self.upper, strict=True)), x)
        both = torch.stack([y, 2 * low - y], -1).unsqueeze(-1) + (2 * side).unsqueeze(-1).unsqueeze(-1) * turns
        off = both.flatten(-2) - (x + mean).unsqueeze(-1)
        return log_normal(off**2, expand(expand(s)), 1).logsumexp(-1).sum(-1)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """The centre."""
        centre = [0.5 * (a + b) for a, b in zip(self.lower, self.upper, strict=True)]
        return torch.tensor(centre, dtype=dtype, device=device).expand(*shape, self.dim)

    @in_full_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        low, high = self.corners(x)
        side, end = high - low, x + u
        # As a multiple of the side counted from the nearest wall image, so that a short step keeps all its digits.
        turns = ((end - low) / (2 * side)).floor()
        place = end - 2 * side * turns
        folded = torch.where(place > high, 2 * high - place, place)
        return folded.maximum(low).minimum(high)

    def _reflected_back(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        low, high = self.corners(x)
        walls = ((x + w - low) / (high - low)).floor()
        return torch.where(walls.remainder(2) == 0, v, -v)

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        low, high = self.corners(x)
        return x.maximum(low).minimum(high)

    @in_full_precision
    def residual(self, x: Tensor) -> Tensor:
        """Largest distance outside, over coordinates; 0 inside."""
        low, high = self.corners(x)
        return (low - x).maximum(x - high).amax(-1).clamp_min(0)

    @property
    def log_volume(self) -> float:
        return sum(math.log(b - a) for a, b in zip(self.lower, self.upper, strict=True))

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        share = torch.rand(*shape, self.dim, generator=generator, dtype=dtype, device=device)
        low, high = self.corners(share)
        return self.project(low + (high - low) * share)

    def without_flux(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        low, high = self.corners(x)
        return v * ((x - low) / width).tanh() * ((high - x) / width).tanh()


@dataclass(frozen=True)
class HalfSpace(Domain):
    r"""The half-space :math:`\{x : \langle n, x\rangle \le \text{offset}\}`; reflection is the mirror.

    Args:
        normal: outward normal n, scaled to length 1 (and ``offset`` with it).
        offset: of the wall along the normal.

    Raises:
        ValueError: if the normal is zero.
    """

    normal: tuple[float, ...]
    offset: float = 0.0

    def __post_init__(self) -> None:
        length = math.sqrt(sum(float(v) ** 2 for v in self.normal))
        if not (length > 0 and math.isfinite(length) and math.isfinite(self.offset)):
            raise ValueError(
                f"HalfSpace: needs a finite normal other than 0 and a finite offset, got {self.normal}, {self.offset}"
            )
        scale = 1.0 if abs(length - 1) < 1e-12 else length
        object.__setattr__(self, "normal", tuple(float(v) / scale for v in self.normal))
        object.__setattr__(self, "offset", float(self.offset) / scale)

    @property
    def dim(self) -> int:
        return len(self.normal)

    def _beyond(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance behind the wall (negative inside), size 1 kept, and the normal."""
        normal = x.new_tensor(self.normal)
        return dot(x, normal.expand_as(x)) - self.offset, normal

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """The point at distance 1 in front of the wall's foot point."""
        point = [(self.offset - 1) * v for v in self.normal]
        return torch.tensor(point, dtype=dtype, device=device).expand(*shape, self.dim)

    @in_full_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        end = x + u
        beyond, normal = self._beyond(end)
        return self.project(end - 2 * beyond.clamp_min(0) * normal)

    def _reflected_back(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        beyond, normal = self._beyond(x + w)
        return torch.where(beyond > 0, v - 2 * dot(v, normal.expand_as(v)) * normal, v)

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        """The closest point, and a few units of round-off in front of the wall if it would be on or behind it."""
        beyond, normal = self._beyond(x)
        margin = 8 * torch.finfo(x.dtype).eps * ((x * normal).abs().sum(-1, keepdim=True) + abs(self.offset))
        return torch.where(beyond > -margin, x - (beyond + margin) * normal, x)

    @in_full_precision
    def residual(self, x: Tensor) -> Tensor:
        """Distance behind the wall; 0 in front."""
        return self._beyond(x)[0].squeeze(-1).clamp_min(0)

    @property
    def log_volume(self) -> float:
        raise ValueError(f"{self} has infinite volume, so no uniform distribution; use ReflectedNormal")

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        raise ValueError(f"{self} has infinite volume, so no uniform distribution; use ReflectedNormal")

    def without_flux(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        beyond, normal = self._beyond(x)
        through = dot(v, normal.expand_as(v))
        return v - through * (1 + (beyond / width).tanh()) * normal


@dataclass(frozen=True)
class Ball(Domain):
    r"""The ball :math:`|x| \le \text{radius}` of flat space.

    A reflected ray stays in the plane of x and u, where every further chord is the last one turned by the same angle; so the
    end of a ray of any length, with any number of reflections, has a closed form.

    Args:
        d: dimension.
        radius: in units of the coordinates.
    """

    d: int
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.d < 1:
            raise ValueError(f"Ball: d must be at least 1, got {self.d}")
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(f"Ball: radius must be positive, got {self.radius}")

    @property
    def dim(self) -> int:
        return self.d

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.zeros(*shape, self.d, dtype=dtype, device=device)

    def _ray(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Where the ray goes, in the plane of its first reflection.

        Returns:
            Whether it meets the wall; the first meeting's outward normal; the unit tangent of the wall along which the ray
            runs; angle of the turn from one meeting to the next; number of meetings after the first; what is left of
            the length after the last, in units of the chord (all with size 1 kept).
        """
        tiny = tiny_square(x.dtype)
        length = (dot(u, u) + tiny).sqrt()
        way = u / length
        middle = dot(x, way)
        inside = (self.radius**2 - dot(x, x)).clamp_min(0)
        root = (middle * middle + inside + tiny).sqrt()
        # Distance to the wall, in the form of the quadratic formula that does not cancel.
        first = torch.where(middle > 0, inside / torch.where(middle > 0, middle + root, 1.0), root - middle)
        hits = length > first
        at = x + first * way
        normal = at / (dot(at, at) + tiny).sqrt()
        cosine = dot(way, normal).clamp(1e-6, 1)  # a ray that grazes more than this is taken to do so
        slide = way - cosine * normal
        size = (dot(slide, slide) + tiny).sqrt()
        chord = 2 * self.radius * cosine
        rest = torch.where(hits, length - first, 0.0) / chord
        count = rest.floor()
        turn = 2 * torch.atan2(cosine, size)  # pi - 2 alpha, alpha the angle between ray and normal
        return hits, normal, slide / size, turn, count, rest - count

    @in_full_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        hits, normal, along, turn, count, left = self._ray(x, u)
        last, following = (
            (angle.cos() * normal + angle.sin() * along) * self.radius for angle in (turn * count, turn * (count + 1))
        )
        return self.project(torch.where(hits, last + left * (following - last), x + u))

    def _reflected_back(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        """Two reflections at walls an angle apart are a turn by twice the angle."""
        hits, normal, along, turn, count, _ = self._ray(x, w)
        is_even = (count + 1).remainder(2) == 0
        angle = turn * torch.where(is_even, count + 1, count)
        a, b = dot(v, normal), dot(v, along)
        rest = v - a * normal - b * along
        turned_a = angle.cos() * a + angle.sin() * b
        turned_b = angle.cos() * b - angle.sin() * a
        turned_a = torch.where(is_even, turned_a, -turned_a)
        return torch.where(hits, rest + turned_a * normal + turned_b * along, v)

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        """The closest point, and a few units of round-off inside of the wall if it would be on or behind it."""
        most = self.radius * (1 - (4 + 2 * math.sqrt(self.d)) * torch.finfo(x.dtype).eps)
        length = (dot(x, x) + tiny_square(x.dtype)).sqrt()
        return torch.where(length > most, x * (most / length), x)

    @in_full_precision
    def residual(self, x: Tensor) -> Tensor:
        """Distance outside of the ball; 0 inside."""
        return (torch.linalg.vector_norm(x, dim=-1) - self.radius).clamp_min(0)

    @property
    def log_volume(self) -> float:
        return 0.5 * self.d * math.log(math.pi) - math.lgamma(0.5 * self.d + 1) + self.d * math.log(self.radius)

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        way = torch.randn(*shape, self.d, generator=generator, dtype=dtype, device=device)
        share = torch.rand(*shape, 1, generator=generator, dtype=dtype, device=device)
        way = way / (dot(way, way) + tiny_square(way.dtype)).sqrt()
        return self.project(self.radius * share ** (1 / self.d) * way)

    def without_flux(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        # A function of |x|^2, so that it is smooth at the centre, where there is no radial direction.
        square, scale = dot(x, x), 2 * self.radius * width
        full = math.tanh(self.radius**2 / scale)
        is_middle = square < 1e-5 * self.radius**2
        inside = ((self.radius**2 - square) / scale).tanh() / full
        fade = (1 - inside) / torch.where(is_middle, 1.0, square)
        fade = torch.where(is_middle, (1 - full * full) / (full * scale), fade)
        return v - fade * dot(x, v) * x
