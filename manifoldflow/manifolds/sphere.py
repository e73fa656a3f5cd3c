"""The unit sphere S^d."""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from manifoldflow.manifolds import compiled, radial
from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.laws import log_wrapped_turns
from manifoldflow.manifolds.rows import compiled_as
from manifoldflow.numerics import (
    FEW,
    cos_of_square,
    cosc_of_square,
    cot_slope,
    dot,
    in_full_precision,
    polar_angle,
    safe_norm,
    sinc_of_square,
    smooth_norm,
    to_unit,
)


@dataclass(frozen=True)
class Sphere(Manifold):
    r"""The unit sphere :math:`S^d = \{x \in R^{d+1} : |x| = 1\}` with the round metric.

    Points and tangent vectors are tensors of shape ``(..., dim + 1)``; all leading axes are batch. A tangent vector at
    ``x`` is orthogonal to ``x`` and measured in radians.

    Args:
        dim: intrinsic dimension d; ``Sphere(2)`` is the ordinary sphere in R^3.
    """

    dim: int

    steps_by_projection: ClassVar[bool] = True
    has_ambient_metric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"Sphere: dim must be at least 1, got {self.dim}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim + 1,)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.eye(1, self.dim + 1, dtype=dtype, device=device).squeeze(0).expand(*shape, self.dim + 1)

    @in_full_precision
    @compiled_as(compiled.sphere_exp, least=FEW)
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        r"""Follow the geodesic from ``x`` with velocity ``u`` for unit time: :math:`\cos|u|\, x + \sin|u|\, u/|u|`.

        Of length 1 whatever that of x: a field that points inward would drive round-off off the sphere by a factor of
        :math:`e^{2 |u|}` in unit time, through the radial part that :meth:`to_tangent` leaves.
        """
        r = smooth_norm(u)
        return to_unit(torch.addcmul(r.cos() * x, r.sin() / r, u))

    @in_full_precision
    @compiled_as(compiled.sphere_log)
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        r"""The shortest tangent vector at ``x`` that reaches ``y``, of length :math:`\theta(x, y) \in [0, \pi]`.

        At an exact antipode the direction is a fixed tangent of ``x``: any is a minimiser.
        """
        tangential, sine, angle = self._polar(x, y)
        return (angle / sine) * tangential

    @in_full_precision
    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance 2 atan2(|y - x|, |y + x|) in radians, shape ``(...)``."""
        return (2 * torch.atan2(safe_norm(y - x), safe_norm(y + x))).squeeze(-1)

    @in_full_precision
    @compiled_as(compiled.sphere_geodesic)
    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""With the unit tangent e towards ``x1``: :math:`\cos(t\theta) x_0 + \sin(t\theta) e` and its derivative."""
        tangential, sine, angle = self._polar(x0, x1)
        turned = expand_time(t, tangential, 1) * angle
        cos, sin = turned.cos(), turned.sin()
        return cos * x0 + (sin / sine) * tangential, (angle / sine * cos) * tangential - (angle * sin) * x0

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        """The closest point of the sphere."""
        return x * dot(x, x).clamp_min(1e-30).rsqrt()

    @in_full_precision
    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """Remove the radial part of ``u``."""
        return torch.addcmul(u, dot(x, u), x, value=-1)

    @in_full_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Parallel transport: rotate in the plane of ``x`` and log(x, y), leave the rest; defined at an antipode
        too."""
        v = self.log(x, y)
        squared = dot(v, v)
        return u - dot(v, u) * (cosc_of_square(squared) * v + sinc_of_square(squared) * x)

    @in_full_precision
    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        r"""Carry ``v`` back to ``x``; stretch its part across ``w`` by :math:`r / \sin r`, r = |w| < pi; keep its
        part along ``w``."""
        squared = dot(w, w)
        cos, sinc = cos_of_square(squared), sinc_of_square(squared)
        back = v - dot(v, x) / (1 + cos) * ((1 + cos) * x + sinc * w)
        is_small = squared < 1e-2
        q = torch.where(is_small, squared, 0.0)
        series = -(1 / 6 + q * (7 / 360 + q * (31 / 15120 + q * (127 / 604800 + q * (73 / 3421440)))))
        along = torch.where(is_small, series, (1 - 1 / sinc) / squared.where(~is_small, 1.0))
        return back / sinc + along * dot(back, w) * w

    @in_full_precision
    def tangent_basis(self, x: Tensor) -> Tensor:
        """The reflection that takes the first axis to x or -x (whichever is farther) takes the other axes to a
        basis."""
        axes = torch.eye(self.dim + 1, dtype=x.dtype, device=x.device)
        sign = torch.where(x[..., :1] < 0, -1.0, 1.0).to(x.dtype)
        normal = (x + sign * axes[0]) / (1 + x[..., :1].abs())
        return axes[1:] - x[..., 1:].unsqueeze(-1) * normal.unsqueeze(-2)

    def _polar(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""The tangential part of ``y`` at ``x``, its length :math:`\sin\theta` (never 0), and :math:`\theta`.

        The chords y - x and y + x have the same tangential part; the shorter one loses no digits near 0 or near pi. The
        angle is an atan2: acos of a dot product would lose half of the digits.
        """
        cosine = dot(x, y)
        side = (cosine.detach() if cosine.requires_grad else cosine).sign()
        # At an exact antipode a tenth of the round-off of y, in a direction that is not near x, decides the direction.
        chord = torch.addcmul(torch.addcmul(y, side, x, value=-1), 1 - side, aside(x))
        tangential = torch.addcmul(chord, dot(x, chord), x, value=-1)
        sine = smooth_norm(tangential)
        return tangential, sine, polar_angle(sine, cosine)

    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`(d - 1) \log |\sin r / r|`, r = |u|."""
        return (self.dim - 1) * sinc_of_square(dot(u, u)).abs().log().squeeze(-1)

    @property
    def closed_geodesic(self) -> float:
        return 2 * math.pi

    @property
    def conjugate_radius(self) -> float:
        return math.pi

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        return self.to_tangent(x, v)

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self.to_tangent(x, g)

    def random_tangent(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.to_tangent(x, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))

    @in_full_precision
    def volume_gradient(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        r""":math:`(d - 1)(r \cot r - 1) / r^2 \, v`."""
        return (self.dim - 1) * cot_slope(dot(u, u)) * v

    @in_full_precision
    def carry_noise(self, x: Tensor, motion: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        squared = dot(u, u)
        cos, sinc = cos_of_square(squared), sinc_of_square(squared)
        return self.exp(x, u), cos * motion - sinc * dot(u, motion) * x, cos * z - sinc * dot(u, z) * x

    def log_wrapped_normal(self, mean: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        return log_wrapped_turns(self.dist(mean, x), scale, self.dim, self.dim - 1, 1.0)

    def log_fisher_normalizer(self, kappas: Tensor) -> Tensor:
        r"""S^2: :math:`\kappa / 2\pi (1 - e^{-2\kappa})`. S^d: :math:`\kappa^\nu / ((2\pi)^{\nu+1} e^{-\kappa} I_\nu(\kappa))`,
        :math:`\nu = (d-1)/2`."""
        from scipy import special

        k, order = kappas.double().numpy(), 0.5 * (self.dim - 1)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if self.dim == 2:
                value = np.log(k / (2 * math.pi)) - np.log(-np.expm1(-2 * k))
            else:
                value = order * np.log(k) - (order + 1) * math.log(2 * math.pi) - np.log(special.ive(order, k))
            value = np.where(k < 1e-12, -self.log_volume, value)
        return torch.from_numpy(np.asarray(value, dtype=np.float64))

    def _fisher_distance(self, kappa: float, place: Tensor) -> Tensor:
        if self.dim != 2:
            return radial.draw_distance(self, kappa, place)
        # 1 - cos is exponential, cut off at 2 (Ulrich 1984); for kappa 0 it is uniform.
        h = 2 * place if kappa == 0 else -torch.log1p(place * math.expm1(-2 * kappa)) / kappa
        return 2 * torch.asin((0.5 * h).clamp(0, 1).sqrt())

    def radial_area(self) -> radial.Profile:
        return radial.Profile(math.pi, lambda r: np.sin(r) ** (self.dim - 1), self.dim)

    def from_shares(self, shares: Tensor) -> Tensor:
        """Longitude and height of S^2 (Archimedes)."""
        if self.dim != 2:
            return super().from_shares(shares)
        turn, z = 2 * math.pi * shares[..., 0], 2 * shares[..., 1] - 1
        flat = (1 - z * z).clamp_min(0).sqrt()
        return torch.stack([flat * turn.cos(), flat * turn.sin(), z], -1)

    def to_shares(self, x: Tensor) -> Tensor:
        if self.dim != 2:
            return super().to_shares(x)
        turn = (torch.atan2(x[..., 1], x[..., 0]) / (2 * math.pi)).remainder(1)
        return torch.stack([turn, ((x[..., 2] + 1) / 2).clamp(0, 1 - 1e-7)], -1)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        return dot(u, u).squeeze(-1) < math.pi**2

    def residual(self, x: Tensor) -> Tensor:
        """How far the length is from 1."""
        return (torch.linalg.vector_norm(x, dim=-1) - 1).abs()

    @property
    def log_volume(self) -> float:
        r""":math:`\log 2 \pi^{(d+1)/2} / \Gamma((d+1)/2)`."""
        half = 0.5 * (self.dim + 1)
        return math.log(2) + half * math.log(math.pi) - math.lgamma(half)

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.project(torch.randn(*shape, self.dim + 1, generator=generator, dtype=dtype, device=device))


def aside(x: Tensor) -> Tensor:
    """A vector of about a tenth of the round-off of 1 that is never near ``x``: fixed, without the axis that x is near."""
    weights = _weights if torch.compiler.is_compiling() or type(x) is not Tensor else _cached_weights
    return (x.abs() < 0.7) * weights(x.shape[-1], x.dtype, x.device)


def _weights(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A point all of whose numbers are below 0.7 is at least 16 degrees from these, whose first is 0.87 of their length.
    return 0.5 ** torch.arange(n, dtype=dtype, device=device) * (0.05 * torch.finfo(dtype).eps)


@functools.lru_cache(maxsize=64)
def _cached_weights(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or autograd could not use them later
        return _weights(n, dtype, device)
