r"""The laws :math:`\exp(-\kappa h)` of a bounded function h of the distance: von Mises, von Mises-Fisher, matrix Fisher."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.euclidean import Euclidean
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.so3 import SO3
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.manifolds.torus import Torus
from manifoldflow.numerics import smooth_norm

NODES = 1 << 14
"""Of the table of angles, evenly spaced: the density of the draws is constant between two of them, every mass is right."""


@dataclass(frozen=True)
class VonMisesFisher(Distribution):
    r"""The law around a point whose density falls with the cosine of the distance:

    ========== ==================================================== ====================================================
    manifold   density with respect to the volume                   name
    ========== ==================================================== ====================================================
    S^d        :math:`c\, e^{\kappa \langle \mu, x \rangle}`         von Mises-Fisher (Fisher 1953)
    T^d        :math:`c \prod_i e^{\kappa \cos(x_i - \mu_i)}`        product of von Mises
    rotations  :math:`c\, e^{\kappa\, (tr(M^T R) - 1) / 2}`          isotropic matrix Fisher (Downs 1972)
    ========== ==================================================== ====================================================

    On a torus of another period the cosine is that of the angle that makes a turn a period. For a large kappa it is a
    Gaussian of the scale :math:`1 / \sqrt{\kappa}` radians, for 0 uniform.

    Args:
        kappa: concentration, at least 0.
        mean: the point :math:`\mu`, its numbers in a row; ``manifold.origin`` if absent.
        manifold: sphere, torus or rotations; :class:`manifoldflow.Flow` fills it in.

    Raises:
        ValueError: for another manifold, or a mean that is not on it.
    """

    kappa: float = 1.0
    mean: tuple[float, ...] | None = None
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < math.inf:
            raise ValueError(f"VonMisesFisher: kappa must be at least 0 and finite, got {self.kappa}")
        if self.manifold is None:
            return
        if not isinstance(self.manifold, Sphere | Torus | SO3 | UnitQuaternion):
            raise ValueError(f"VonMisesFisher is for spheres, tori and rotations, not for {self.manifold}")
        if self.mean is not None:
            if len(self.mean) != math.prod(self.manifold.event_shape):
                raise ValueError(f"VonMisesFisher: the mean of {self.manifold} cannot have {len(self.mean)} numbers")
            self.manifold.check(self._centre(torch.float64, None), 1e-4)

    def _centre(self, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        if self.mean is None:
            return self.space.origin((), dtype=dtype, device=device)
        return torch.tensor(self.mean, dtype=dtype, device=device).reshape(self.space.event_shape)

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        space = self.space
        is_torus = isinstance(space, Torus)
        place = torch.rand(
            (*shape, space.dim if is_torus else 1), generator=generator, dtype=torch.float64, device=device
        )
        angle = _draw_angles(space, self.kappa, place).to(dtype)
        centre = self._centre(dtype, device).expand(*shape, *space.event_shape)
        direction = torch.randn(
            (*shape, *(centre.shape[-1:] if is_torus or isinstance(space, Sphere) else (3,))),
            generator=generator,
            dtype=dtype,
            device=device,
        )
        if isinstance(space, Torus):
            return space.exp(centre, direction.sign() * angle * (space.period / (2 * math.pi)))
        direction = space.to_tangent(centre, direction)
        return space.exp(centre, direction * (angle / smooth_norm(direction)))

    def _log_density(self, x: Tensor) -> Tensor:
        space, centre = self.space, self._centre(x.dtype, x.device)
        front = float(log_normalizer(space, torch.tensor([self.kappa], dtype=torch.float64)))
        # 1 - cos by the sine of the half: the cosine has lost the digits of small angles.
        if isinstance(space, Torus):
            h = 2 * torch.sin((x - centre) * (math.pi / space.period)).square().sum(-1)
        else:
            h = 2 * torch.sin(0.5 * space.dist(centre.expand_as(x), x)).square()
        return front - self.kappa * h


def log_normalizer(space: Manifold, kappas: Tensor) -> Tensor:
    r""":math:`\log c(\kappa)` of :math:`c\, e^{-\kappa h}` with respect to the volume; Bessel functions that do not overflow.

    h is :math:`1 - \cos` of the distance (summed over the coordinates of a torus; half of the square on flat space).

    S^2: :math:`\kappa / 2\pi (1 - e^{-2\kappa})`. S^d: :math:`\kappa^\nu / ((2\pi)^{\nu+1} e^{-\kappa} I_\nu(\kappa))` with
    :math:`\nu = (d-1)/2`. T^d: :math:`(L e^{-\kappa} I_0(\kappa))^{-d}` for the period L. Rotations, total volume
    :math:`8\pi^2`: :math:`1 / 8\pi^2 e^{-\kappa}(I_0 - I_1)(\kappa)`. R^d: :math:`(\kappa / 2\pi)^{d/2}`.

    Args:
        space: sphere, torus, rotations or flat space.
        kappas: concentrations.

    Returns:
        float64, the shape of ``kappas``.
    """
    k = kappas.double().numpy()
    two_pi = 2 * math.pi
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if isinstance(space, Sphere) and space.dim == 2:
            value = np.log(k / two_pi) - np.log(-np.expm1(-2 * k))
        elif isinstance(space, Sphere):
            order = 0.5 * (space.dim - 1)
            value = order * np.log(k) - (order + 1) * math.log(two_pi) - np.log(special.ive(order, k))
        elif isinstance(space, Torus):
            value = -space.d * (math.log(space.period) + np.log(special.i0e(k)))
        elif isinstance(space, SO3 | UnitQuaternion):
            # I0 - I1 cancels: for large kappa from its expansion.
            series = (1 + 0.375 / k + 0.3515625 / k**2) / (2 * k * np.sqrt(two_pi * k))
            gap = np.where(k > 1e4, series, special.i0e(k) - special.i1e(k))
            value = -math.log(8 * math.pi**2) - np.log(gap)
        elif isinstance(space, Euclidean):
            value = 0.5 * space.dim * np.log(k / two_pi)
        else:
            raise ValueError(f"no kernel density estimate on {space}")
        if isinstance(space, Sphere):
            value = np.where(k < 1e-12, -space.log_volume, value)
    return torch.from_numpy(np.asarray(value, dtype=np.float64))


def _power(space: Manifold) -> int:
    """Which factor the density of the angle has besides the exponential: a power of its sine; -1 stands for rotations."""
    if isinstance(space, Torus):
        return 0
    return space.dim - 1 if isinstance(space, Sphere) else -1


def _draw_angles(space: Manifold, kappa: float, place: Tensor) -> Tensor:
    """The distances from the mean at cumulative probabilities ``place``: on S^2 by formula, elsewhere by table."""
    if isinstance(space, Sphere) and space.dim == 2:
        # 1 - cos is exponential, cut off at 2 (Ulrich 1984); for kappa 0 it is uniform.
        h = 2 * place if kappa == 0 else -torch.log1p(place * math.expm1(-2 * kappa)) / kappa
        return 2 * torch.asin((0.5 * h).clamp(0, 1).sqrt())
    angle, cumulative = _table(_power(space), kappa, place.device)
    # The cell is searched for, not computed: steps of equal probability would smear the last one over the whole tail.
    high = torch.searchsorted(cumulative, place, right=True).clamp(1, NODES - 1)
    below, above = cumulative[high - 1], cumulative[high]
    share = (place - below) / (above - below).clamp_min(torch.finfo(place.dtype).tiny)
    return torch.lerp(angle[high - 1], angle[high], share.clamp(0, 1))


@functools.lru_cache(maxsize=64)
def _table(power: int, kappa: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Angles at equal steps and their cumulative probabilities, ``(NODES,)`` float64."""
    parts = 16  # of a step, for its mass
    reach = min(math.pi, 12 / math.sqrt(max(kappa, 1e-9)) * (1 + abs(power)) ** 0.5)
    angle = np.linspace(0, reach, parts * (NODES - 1) + 1)
    factor = np.sin(angle / 2) ** 2 if power < 0 else np.sin(angle) ** power
    density = factor * np.exp(-2 * kappa * np.sin(angle / 2) ** 2)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])[::parts]
    return torch.from_numpy(angle[::parts].copy()).to(device), torch.from_numpy(mass / mass[-1]).to(device)
