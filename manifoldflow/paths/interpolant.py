r"""Stochastic interpolants: the geodesic path with noise, whose score is learned along with its velocity.

Albergo, Boffi & Vanden-Eijnden (2023) on flat space; here on flat space, spheres and rotations.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import Path
from manifoldflow.paths.schedule import Linear, Schedule


@dataclass(frozen=True)
class NoiseLevel:
    r"""Base class of :math:`\gamma(t)`, the standard deviation of the noise: 0 at both ends.

    Args:
        scale: the maximum, in the units of length of the space (radians on spheres and rotations).
    """

    scale: float = 0.3

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"{type(self).__name__}: scale must be positive, got {self.scale}")

    def level(self, t: Tensor) -> Tensor:
        r""":math:`\gamma(t)`."""
        raise NotImplementedError

    def rate(self, t: Tensor) -> Tensor:
        r""":math:`\gamma'(t)`."""
        raise NotImplementedError


@dataclass(frozen=True)
class BumpNoise(NoiseLevel):
    r""":math:`\gamma = \mathrm{scale} \cdot \sin^2(\pi t)`: smooth at both ends."""

    def level(self, t: Tensor) -> Tensor:
        return self.scale * torch.sin(torch.pi * t) ** 2

    def rate(self, t: Tensor) -> Tensor:
        return self.scale * torch.pi * torch.sin(2 * torch.pi * t)


@dataclass(frozen=True)
class BridgeNoise(NoiseLevel):
    r""":math:`\gamma = \mathrm{scale} \cdot 2 \sqrt{t (1 - t)}`: the spread of a Brownian bridge.

    Its rate is infinite at both ends, where it is cut at times 1e-4 from them. Targets stay bounded, and so do Euler and
    SDE steps, which use differences of the level; Runge-Kutta steps and likelihoods want :class:`BumpNoise`.
    """

    def level(self, t: Tensor) -> Tensor:
        return 2 * self.scale * (t * (1 - t)).clamp_min(0).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return self.scale * (1 - 2 * t) / (t * (1 - t)).clamp_min(1e-4).sqrt()


class InterpolantPoint(NamedTuple):
    """One draw of a stochastic interpolant.

    Attributes:
        x: the point x_t, ``(..., *event)``.
        t: its time, leading batch axes of x.
        velocity: d x_t / dt, a tangent at x: ``drift + gamma' * noise``.
        endpoint: x_1.
        drift, noise: targets of the two predictions, tangents at x.
    """

    x: Tensor
    t: Tensor
    velocity: Tensor
    endpoint: Tensor
    drift: Tensor
    noise: Tensor


@dataclass(frozen=True)
class StochasticInterpolant(Path):
    r"""The path :math:`x_t = \exp_{I_t}(\gamma(t) z)` around the geodesic :math:`I_t` from x_0 to x_1.

    z is standard normal in an orthonormal frame of the tangent space at :math:`I_t`, carried along with it (parallel
    transport on spheres, fixed in the body frame on rotations). The network returns **two** tangents at x_t, stacked as
    ``(..., 2, *tangent)``: a drift v and a noise :math:`\eta`, with

    .. math:: \eta = -\gamma\, E[\nabla_x \log p(x_t | I_t) \mid x_t], \quad v = E[\dot x_t \mid x_t] - \gamma' \eta

    so that the velocity of the probability flow is :math:`b = v + \gamma' \eta` and the score of the marginal
    :math:`\nabla \log p_t = -\eta / \gamma` (:math:`b = v - \gamma\gamma' s`, Albergo et al. 2023, eq. 2.20). With
    :math:`\rho = \gamma |z|`, :math:`\tilde z` the tangent z carried to x_t along its own geodesic and J the volume factor
    of exp, the targets are

    .. math:: \eta^* = (1 + \gamma^2 c)\, \tilde z, \quad c = \frac{1}{\rho} \frac{d \log J}{d \rho}, \qquad
        v^* = \dot x_t - \gamma' \eta^*

    c is 0 on flat space, :math:`(d - 1)(\rho \cot\rho - 1)/\rho^2` on :math:`S^d` and half the same of :math:`\rho / 2` on
    rotations. Both targets are bounded at t = 0 and t = 1 whatever the slope of :math:`\gamma` there (so pairs
    :math:`\pm z` are not needed). :math:`\eta^*` is the score of the image of x_t that was drawn; its mean over images is
    the score of the wrapped law.

    The law of x_t given the pair is known, so score and SDE are exact for any source and any coupling.

    Args:
        noise: :math:`\gamma`: :class:`BumpNoise` or :class:`BridgeNoise`. At most :math:`\pi / (\sqrt d + 5)` on :math:`S^d` and
            :math:`2 \pi / (\sqrt 3 + 5)` on rotations: beyond, noise would reach the point where all geodesics meet again, and
            the density has a pole there.
        schedule: k of the geodesic.
        noise_weight: factor of the squared error of :math:`\eta` beside that of v.
        manifold: Euclidean, Torus, Sphere, SO3 or UnitQuaternion; :class:`manifoldflow.Flow` fills it in.
    """

    noise: NoiseLevel = field(default_factory=BumpNoise)
    schedule: Schedule = field(default_factory=Linear)
    noise_weight: float = 1.0

    outputs: ClassVar[int] = 2
    predicts = "drift and noise"

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space``.

        Raises:
            TypeError: no closed form on this manifold.
            ValueError: the noise is too wide for it, or an endpoint prediction is asked for.
        """
        if predicts == "endpoint":
            raise ValueError("StochasticInterpolant: the network predicts a drift and a noise, not the endpoint")
        bound = super().bind(space, None, source)
        space = bound.space
        if not space.is_homogeneous:
            raise TypeError(
                f"StochasticInterpolant: noise on {space} meets walls or folds, where its law has no closed form; use "
                "Geodesic() there"
            )
        most = space.conjugate_radius / (space.dim**0.5 + 5)
        if self.noise.scale > most:
            raise ValueError(
                f"StochasticInterpolant: noise of scale {self.noise.scale:g} wraps around {space}; at most {most:.3g} radians"
            )
        return bound

    def sample(
        self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None
    ) -> InterpolantPoint:
        """A noisy point at time ``t`` and its targets.

        Args:
            x0, x1: source and data points ``(..., *event)``.
            t: times in [0, 1], leading batch axes of x0.
            generator: of z.
        """
        centre, direction = self.space.geodesic(x0, x1, self.schedule.k(t))
        return self.around(centre, direction, self.space.random_tangent(centre, generator=generator), t, x1)

    def around(self, centre: Tensor, direction: Tensor, z: Tensor, t: Tensor, x1: Tensor) -> InterpolantPoint:
        r"""The point :math:`\exp_{I_t}(\gamma z)` and its targets.

        Args:
            centre: :math:`I_t`, ``(..., *event)``.
            direction: its derivative by k, a tangent at the centre.
            z: tangent at the centre.
            t: times, leading batch axes.
            x1: data points, handed through.
        """
        space, n = self.space, self.space.tangent_ndim
        motion = expand_time(self.schedule.dk(t), direction, n) * direction
        level = expand_time(self.noise.level(t), z, n)
        rate = expand_time(self.noise.rate(t), z, n)
        u = level * z
        x, carried, z = space.carry_noise(centre, motion, u, z)
        bend = level * space.volume_gradient(centre, u, x, level * z)
        return InterpolantPoint(x, t, carried + rate * z, x1, carried - rate * bend, z + bend)

    def split(self, pred: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The drift and the noise of a prediction ``(..., 2, *tangent)``, made tangent at ``x``."""
        axis = x.ndim - self.space.event_ndim
        if pred.ndim != axis + 1 + self.space.tangent_ndim or pred.shape[axis] != 2:
            raise ValueError(
                f"StochasticInterpolant: the model must return a drift and a noise, shape (..., 2, *tangent), "
                f"got {tuple(pred.shape)} at points {tuple(x.shape)}"
            )
        drift, noise = pred.unbind(axis)
        return self.space.to_tangent(x, drift), self.space.to_tangent(x, noise)

    def loss(self, pred: Tensor, point: InterpolantPoint) -> Tensor:
        r""":math:`|v - v^*|^2 + \mathrm{noise\_weight}\, |\eta - \eta^*|^2` per element, shape of the batch."""
        drift, noise = self.split(pred, point.x)
        off, off_noise = drift - point.drift, noise - point.noise
        return self.space.inner(point.x, off, off) + self.noise_weight * self.space.inner(point.x, off_noise, off_noise)

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r"""The velocity of the probability flow, :math:`b = v + \gamma' \eta`."""
        drift, noise = self.split(pred, x)
        return drift + expand_time(self.noise.rate(t), noise, self.space.tangent_ndim) * noise

    def noise_prediction(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`\eta = -\gamma \nabla \log p_t`."""
        return self.split(pred, x)[1]

    def noise_level(self, t: Tensor) -> Tensor:
        r""":math:`\gamma(t)`."""
        return self.noise.level(torch.as_tensor(t))

    def score(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`\nabla \log p_t(x) = -\eta / \gamma`; :math:`\gamma` is kept above 1e-4 of its maximum, as both go to 0 at
        the ends."""
        noise = self.noise_prediction(pred, x, t)
        level = self.noise_level(t).clamp_min(1e-4 * self.noise.scale)
        return -noise / expand_time(level, noise, self.space.tangent_ndim)

    def check_score(self, coupling: Any) -> None:
        """The network learns the score, whatever the source and the coupling."""

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""One geodesic step of the probability flow, :math:`\exp_x((s - t) v + (\gamma(s) - \gamma(t)) \eta)`: the noise level
        is followed exactly, so a steep one costs nothing."""
        drift, noise = self.split(pred, x)
        n = self.space.tangent_ndim
        gained = self.noise.level(s) - self.noise.level(t)
        return self.space.exp(x, expand_time(s - t, drift, n) * drift + expand_time(gained, noise, n) * noise)
