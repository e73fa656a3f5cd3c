"""Probability laws on any manifold, from exp, log, transport and an orthonormal basis alone.

What a wrapped normal, a law of the distance or the noise around a moving point need to know of the geometry. The forms here hold
on every manifold; subclasses replace them by closed ones, which are faster and have all digits.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds import radial

if TYPE_CHECKING:
    pass

LOG_2PI = math.log(2 * math.pi)


class Laws:
    """The part of :class:`Manifold` that distributions and noisy paths call."""

    is_hadamard: ClassVar[bool] = False
    """exp is one-to-one from every tangent space onto the manifold."""

    is_homogeneous: ClassVar[bool] = True
    """Every point looks like every other one. Where there are walls, or folds, laws of the distance have no common form."""

    @property
    def closed_geodesic(self) -> float | None:
        """Length after which every geodesic is back where it started (2 pi on spheres), None if there is none.

        With it the density of a wrapped normal counts the tangents that go around; without, the shortest one alone.
        """
        return None

    @property
    def conjugate_radius(self) -> float:
        """Length up to which exp stretches volumes by more than 0: pi on spheres, infinite on flat space."""
        return math.inf

    def random_tangent(self: Any, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A standard normal tangent at every point ``x`` ``(..., *event)``: ``(..., *tangent_event)``."""
        basis = self.tangent_basis(x)
        axis = x.ndim - self.event_ndim
        weight = torch.randn(basis.shape[: axis + 1], generator=generator, dtype=x.dtype, device=x.device)
        return (weight.reshape(weight.shape + (1,) * self.tangent_ndim) * basis).sum(axis)

    def volume_gradient(self: Any, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        r"""Riemannian gradient at y of :math:`\log J(\log_x y)`, J the volume factor of exp; the density of a Gaussian u has
        the score minus ``v`` over its variance, minus this.

        Args:
            x: points ``(..., *event)``.
            u: tangents at ``x``, shorter than :attr:`conjugate_radius`.
            y: exp(x, u).
            v: ``u`` carried to ``y`` along its geodesic.

        Returns:
            Tangents at ``y``.
        """
        return radial.volume_gradient(self, x, u, y)

    def carry_noise(self: Any, x: Tensor, motion: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""The point :math:`\exp_x u`, its velocity when x moves with ``motion`` and carries u along, and z carried to it.

        u is carried by parallel transport here; any isometric way is right that does not depend on u.

        Args:
            x: points ``(..., *event)``.
            motion: velocity of x, a tangent there.
            u, z: parallel tangents at x.

        Returns:
            Points, and two tangents there.
        """
        return radial.carry_noise(self, x, motion, u, z)

    def log_wrapped_normal(self: Any, mean: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        r"""Log-density at ``x`` of :math:`\exp_\mu u, u \sim N(0, \mathrm{scale}^2 I)`, with respect to the volume, ``(...)``.

        The sum over the tangents that lead to x, each divided by the volume factor of exp there. Without
        :attr:`closed_geodesic` the shortest alone is counted: exact where exp is one-to-one, and for scales well below
        the distance of the cut locus.

        Args:
            mean, x: points ``(..., *event)``, broadcast.
            scale: standard deviation, a number or ``(...)``.

        Raises:
            ValueError: the manifold has walls or folds.
        """
        self._need_homogeneous("WrappedNormal has no closed-form density")
        u = self.log(mean, x)
        squared = self.inner(mean, u, u)
        if self.closed_geodesic is None:
            return log_normal(squared, scale, self.dim) - self.log_exp_volume(mean, u)
        turn, s = self.closed_geodesic, expand(scale)
        is_zero = squared <= 0
        r = torch.where(is_zero, 0.0, squared.where(~is_zero, 1.0).sqrt()).unsqueeze(-1)
        images = r + turn * image_numbers(scale, turn, r)
        unit = u / r.clamp_min(torch.finfo(x.dtype).tiny ** 0.5).reshape(r.shape[:-1] + (1,) * self.tangent_ndim)
        axis, n = u.ndim - self.tangent_ndim, self.tangent_ndim
        along = unit.unsqueeze(axis) * images.reshape(images.shape + (1,) * n)
        volume = self.log_exp_volume(mean.unsqueeze(mean.ndim - self.event_ndim), along)
        volume = volume.clamp_min(0.5 * math.log(torch.finfo(x.dtype).tiny))
        return (log_normal(images.square(), s, self.dim) - volume).logsumexp(-1)

    def log_pushed_normal(
        self: Any, x: Tensor, mean: Tensor, scale: float | Tensor, y: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        r"""Log-density at y of :math:`\exp_x u, u \sim N(\mathrm{mean}, \mathrm{scale}^2 I)`, by the volume: the law of a step
        with noise. ``(...)``, or one value per set on mean-free spaces.

        The sum over the tangents that lead to y, each divided by the volume factor of exp there, as for
        :meth:`log_wrapped_normal`.

        Args:
            x, y: points ``(..., *event)``.
            mean: tangent at x.
            scale: standard deviation: a number, or ``(...)`` over leading batch axes.
            mask: bool of real elements, for spaces whose elements are not independent.

        Raises:
            ValueError: the manifold has walls or folds.
        """
        self._need_homogeneous("a step with noise has no closed-form density")
        u = self.log(x, y)
        s = over_batch(scale, u, u.ndim - self.tangent_ndim)
        if self.closed_geodesic is None:
            off = u - mean
            return log_normal(self.inner(x, off, off), s, self.dim) - self.log_exp_volume(x, u)
        n, axis = self.tangent_ndim, u.ndim - self.tangent_ndim
        squared = self.inner(x, u, u)
        is_zero = squared <= 0
        r = torch.where(is_zero, 0.0, squared.where(~is_zero, 1.0).sqrt()).unsqueeze(-1)
        images = r + self.closed_geodesic * image_numbers(scale, self.closed_geodesic, r)
        unit = u / r.clamp_min(torch.finfo(u.dtype).tiny ** 0.5).reshape(r.shape[:-1] + (1,) * n)
        along = unit.unsqueeze(axis) * images.reshape(images.shape + (1,) * n)
        at = x.unsqueeze(x.ndim - self.event_ndim)
        off = along - mean.unsqueeze(axis)
        volume = self.log_exp_volume(at, along).clamp_min(0.5 * math.log(torch.finfo(u.dtype).tiny))
        return (log_normal(self.inner(at, off, off), expand(s), self.dim) - volume).logsumexp(-1)

    def versine(self: Any, x: Tensor, y: Tensor) -> Tensor:
        r"""h of the laws :math:`c\, e^{-\kappa h}`: 1 - cos of the distance, by the sine of its half, which keeps the digits of
        small angles; ``(...)``."""
        return 2 * torch.sin(0.5 * self.dist(x, y)).square()

    def log_fisher_normalizer(self: Any, kappas: Tensor) -> Tensor:
        r""":math:`\log c(\kappa)` of :math:`c\, e^{-\kappa h}` with respect to the volume, h the :meth:`versine`; float64.

        Here by quadrature of the area of geodesic spheres, for compact manifolds that look the same in every direction.

        Raises:
            ValueError: the manifold is not one of them.
        """
        self._need_homogeneous("no law of the distance alone")
        return radial.log_fisher_normalizer(self, kappas)

    def draw_fisher(
        self: Any, mean: Tensor, kappa: float, shape: tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Points with the density :math:`c\, e^{-\kappa h}` around ``mean``, ``(*shape, *event)``.

        Args:
            mean: one point, or one that broadcasts with the batch.
            kappa: concentration, at least 0.
            shape: of the batch.
            generator: of every random number.
        """
        self._need_homogeneous("no law of the distance alone")
        place = torch.rand((*shape, 1), generator=generator, dtype=torch.float64, device=mean.device)
        angle = self._fisher_distance(kappa, place).to(mean.dtype)
        centre = mean.expand(*shape, *self.event_shape)
        direction = self.random_tangent(centre, generator=generator)
        length = self.inner(centre, direction, direction).clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
        share = (angle.squeeze(-1) / length).reshape(length.shape + (1,) * self.tangent_ndim)
        return self.exp(centre, share * direction)

    def _fisher_distance(self: Any, kappa: float, place: Tensor) -> Tensor:
        """The distances from the mean at cumulative probabilities ``place``."""
        return radial.draw_distance(self, kappa, place)

    def radial_area(self: Any) -> "radial.Profile":
        """The area of a geodesic sphere as a function of its radius, up to a factor, and the largest radius."""
        return radial.measured_profile(self)

    def _need_homogeneous(self: Any, what: str) -> None:
        if not self.is_homogeneous:
            raise ValueError(f"{what} on {self}: its points do not all look the same")


def over_batch(scale: float | Tensor, like: Tensor, axes: int) -> float | Tensor:
    """A scale of leading batch axes with axes of size 1 for the rest of ``axes``; a single one stays as it is."""
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        return scale
    return scale.reshape(scale.shape + (1,) * (axes - scale.ndim))


def expand(scale: float | Tensor) -> float | Tensor:
    """A scale ``(...)`` with an axis for images behind its batch, ``(..., 1)``; numbers stay."""
    return scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.ndim else scale


def log_normal(squared: Tensor, scale: float | Tensor, dim: int) -> Tensor:
    """Log-density of an isotropic Gaussian of ``dim`` coordinates at squared lengths ``(...)``."""
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return -0.5 * squared / scale**2 - dim * (log_scale + 0.5 * LOG_2PI)


MOST_TURNS = 10
"""Images each way where the scale is a tensor: nothing may depend on its values, and wider laws than this are rare."""


def image_numbers(scale: float | Tensor, period: float, like: Tensor) -> Tensor:
    """Whole turns ``(images,)`` whose Gaussian weight exceeds 1e-16 of the total: 9 standard deviations each way."""
    most = MOST_TURNS if isinstance(scale, Tensor) else 1 + math.ceil(9 * scale / period)
    return torch.arange(-most, most + 1, dtype=like.dtype, device=like.device)


def log_wrapped_turns(angle: Tensor, scale: float | Tensor, dim: int, power: int, half: float) -> Tensor:
    r"""The wrapped normal where geodesics close after 2 pi and the volume factor is :math:`|\mathrm{half} \sin(r / \mathrm{half})
    / r|^{\mathrm{power}}`: spheres and rotations.

    Where all images but one come together the density of a wide law has an integrable pole; the logarithm stays finite.

    Args:
        angle: distance from the mean, ``(...)``.
        scale: number or ``(...)``.
        dim, power, half: of the space.
    """
    angle = angle.unsqueeze(-1)
    radius = (angle + 2 * math.pi * image_numbers(scale, 2 * math.pi, angle)).abs()
    # The volume factor of every image has the same numerator, a power of the sine of the one angle.
    floor = torch.finfo(angle.dtype).tiny ** 0.25
    sine = half * torch.sin(angle / half).abs()
    nearest = torch.arange(radius.shape[-1], device=angle.device) == radius.shape[-1] // 2
    ratio = torch.where(nearest & (radius < 1e-4), 1.0, radius.clamp_min(floor) / sine.clamp_min(floor))
    return (log_normal(radius**2, expand(scale), dim) + power * ratio.log()).logsumexp(-1)
