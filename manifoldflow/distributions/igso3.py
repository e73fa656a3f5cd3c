"""The isotropic Gaussian of the rotation group: the law of Brownian motion on SO(3)."""

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.rotation_group import RotationGroup
from manifoldflow.manifolds.so3 import SO3
from manifoldflow.numerics import smooth_norm

SWITCH = 1.5
"""Scales from here on use the character series, smaller ones the sum over whole turns; both are exact and agree."""

INTERVALS = 4096
"""Of the table of angles."""

LOG_VOLUME = math.log(8 * math.pi**2)


@dataclass(frozen=True)
class IGSO3(Distribution):
    r"""IGSO(3): heat kernel at time ``scale**2`` (Nikolayev & Savyolova 1997; Leach et al. 2022).

    For a rotation by :math:`\omega` from the mean the density with respect to the volume (total :math:`8 \pi^2`, as for
    :class:`Uniform`) is :math:`f(\omega) / 8 \pi^2`,

    .. math:: f(\omega) = \sum_{l \ge 0} (2l + 1)\, e^{-l(l+1) s^2 / 2} \frac{\sin((l + 1/2)\omega)}{\sin(\omega / 2)}
        = \frac{\sqrt{2\pi}\, e^{s^2/8}}{s^3} \sum_{k \in Z} (-1)^k
        \frac{(\omega + 2\pi k)\, e^{-(\omega + 2\pi k)^2 / 2 s^2}}{\sin(\omega/2)}

    (equal by Poisson summation). For a small scale it is the Gaussian :math:`N(0, s^2 I)` of rotation vectors in
    radians, for a large one the uniform distribution. Angles are drawn by an inverse table that is made once per
    (scale, dtype, device) on the device; densities and scores are evaluated directly, in float64.

    Args:
        scale: s > 0 in radians.
        mean: rotation ``(..., *event)`` that broadcasts with the batch; the identity if absent.
        manifold: :class:`SO3` or :class:`UnitQuaternion`; :class:`manifoldflow.Flow` fills it in.
    """

    scale: float = 1.0
    mean: Tensor | None = field(default=None, compare=False)
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"IGSO3: scale must be positive, got {self.scale}")
        if self.manifold is not None and not isinstance(self.manifold, RotationGroup):
            raise ValueError(f"IGSO3 is a distribution of rotations (SO3 or UnitQuaternion), not on {self.manifold}")

    @property
    def space(self) -> RotationGroup:
        """SO3 unless bound to quaternions."""
        return self.manifold if isinstance(self.manifold, RotationGroup) else SO3()

    def _centre(self, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        return (
            self.space.origin((), dtype=dtype, device=device)
            if self.mean is None
            else self.mean.to(dtype=dtype, device=device)
        )

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        # A quaternion needs the angle and a Gaussian direction only; the rotation vector between them would cost more.
        normal = torch.randn(*shape, 3, generator=generator, dtype=dtype, device=device)
        half = 0.5 * self.sample_angle(shape, generator=generator, dtype=dtype, device=device).unsqueeze(-1)
        q = torch.cat([half.cos(), half.sin() / smooth_norm(normal) * normal], -1)
        turned = self.space.from_quaternion(q)
        if self.mean is None:  # no product with the identity
            return turned
        centre = self._centre(dtype, device)
        return self.space.multiply(centre, turned)

    def sample_angle(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""Rotation angles in [0, pi] with density :math:`f(\omega)(1 - \cos\omega)/\pi`, shape ``shape``."""
        u = torch.rand(shape, generator=generator, dtype=dtype, device=device) * INTERVALS
        share, other, width = _angle_table(self.scale, u.dtype, u.device)
        own = u.long()
        interval = torch.where(u.sub_(own) < share.take(own), own, other.take(own))
        # A second number for the place within the interval: the digits that are left of the first are few.
        within = torch.rand(shape, generator=generator, dtype=dtype, device=device)
        return within.add_(interval).mul_(width)

    def _log_density(self, x: Tensor) -> Tensor:
        angle = self.space.dist(self._centre(x.dtype, x.device), x)
        return log_heat_kernel(angle, self.scale) - LOG_VOLUME

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log-density as a body-frame tangent vector at ``x``, ``(..., 3)``; 0 at the mean.

        At angle pi, where the density has a ridge and no gradient, it is the one-sided value along the axis of ``log``.
        """
        w = self.space.log(self._centre(x.dtype, x.device), x)
        return heat_kernel_slope(torch.linalg.vector_norm(w, dim=-1), self.scale).unsqueeze(-1) * w


def log_heat_kernel(angle: Tensor, scale: float) -> Tensor:
    r""":math:`\log f(\omega)`, the density with respect to Haar measure of total 1, in the dtype of ``angle``
    (radians)."""
    w = angle.double()
    if scale >= SWITCH:
        j, c = _series_coefficients(scale, w)
        value = (c * (j * w.unsqueeze(-1)).cos()).sum(-1).log()
    else:
        ratio, _ = _turns(w.clamp_min(1e-4), scale)
        half = 0.5 * w
        value = (
            -0.5 * (w / scale) ** 2
            - torch.sinc(half / math.pi).log()
            + math.log(2)
            + torch.log1p(ratio)
            + _log_front(scale)
        )
    return value.to(angle.dtype)


def heat_kernel_slope(angle: Tensor, scale: float) -> Tensor:
    r""":math:`\frac{d \log f}{d\omega} / \omega`: what a rotation vector is multiplied with to give the score."""
    w = angle.double().clamp_min(1e-3)  # even and smooth in the angle: constant to 1e-7 below
    if scale >= SWITCH:
        j, c = _series_coefficients(scale, w)
        turn = j * w.unsqueeze(-1)
        slope = -(c * j * turn.sin()).sum(-1) / (c * turn.cos()).sum(-1)
    else:
        ratio, change = _turns(w, scale)
        slope = -w / scale**2 + 1 / w - 0.5 / torch.tan(0.5 * w) + change / (1 + ratio)
    return (slope / w).to(angle.dtype)


def _log_front(scale: float) -> float:
    return 0.5 * math.log(2 * math.pi) + scale**2 / 8 - 3 * math.log(scale)


def _turns(w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The terms k = +-1, +-2 of the sum over turns, divided by the term k = 0, and the derivative of this ratio."""
    k = torch.tensor([-1.0, 1.0, -2.0, 2.0], dtype=w.dtype, device=w.device)
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=w.dtype, device=w.device)
    w = w.unsqueeze(-1)
    turn = 2 * math.pi * k
    weight = sign * torch.exp(-turn * (w + 0.5 * turn) / scale**2)
    ratio = (1 + turn / w) * weight
    change = -(turn / w**2) * weight - turn / scale**2 * ratio
    return ratio.sum(-1), change.sum(-1)


def _series_coefficients(scale: float, like: Tensor) -> tuple[Tensor, Tensor]:
    r"""f as a cosine series: :math:`\sin((l + 1/2)\omega)/\sin(\omega/2) = 1 + 2 \sum_{j \le l} \cos j\omega`."""
    most = math.ceil(9 / scale) + 1
    j = torch.arange(most + 1, dtype=like.dtype, device=like.device)
    term = (2 * j + 1) * torch.exp(-0.5 * scale**2 * j * (j + 1))
    tail = term.flip(0).cumsum(0).flip(0)
    return j, torch.where(j > 0, 2 * tail, tail)


@functools.lru_cache(maxsize=64)
def _angle_table(scale: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Alias table (Walker 1977; Vose 1991) of an even grid of angles that covers all but 1e-17 of the mass.

    Every interval keeps a share of its column of height 1 / INTERVALS and gives the rest of the column to one other.
    Drawing is two look-ups; a search in the cumulative sum costs four times as much on a CPU, which cannot predict its
    branches.

    Returns the shares, the others, and the width of an interval in radians.
    """
    last = min(math.pi, 10 * scale)
    angle = torch.linspace(0, 1, INTERVALS + 1, dtype=torch.float64) * last
    density = log_heat_kernel(angle, scale).exp() * torch.sin(0.5 * angle) ** 2
    mass = density[1:] + density[:-1]
    height = (mass * (INTERVALS / mass.sum())).tolist()
    share, other = [1.0] * INTERVALS, list(range(INTERVALS))
    low = [i for i, h in enumerate(height) if h < 1]
    high = [i for i, h in enumerate(height) if h >= 1]
    while low and high:
        i, j = low.pop(), high[-1]
        share[i], other[i] = height[i], j
        height[j] -= 1 - height[i]
        if height[j] < 1:
            low.append(high.pop())
    return torch.tensor(share, dtype=dtype, device=device), torch.tensor(other, device=device), last / INTERVALS
