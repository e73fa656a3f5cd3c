r"""A bridge on the sphere from noise or from a mask to the corner that a token is (cf. Jo & Hwang 2025, RDLM).

Token k is the corner :math:`e_k` of the positive orthant. Riemannian diffusion language models join it to the source by
:math:`dX = \gamma_t \log_X e_k\, dt + \sigma_t\, dB` on the sphere, whose law at time t has no closed form; the paper fits
Riemannian normals to simulated paths. Here the bridge is the direction of a bridge of the flat space around the sphere,

.. math:: x_t = y_t / |y_t|, \quad y_t = (1 - k)\, y_0 + k\, e_k + \text{noise},

with the same two ends. All about it is known: x_t is the direction of a normal vector, its density and its velocity towards the
corner are functions of one number (:mod:`manifoldflow.paths.projected_normal`), and the step from t to s can be drawn exactly.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from manifoldflow.discrete import draw_categorical
from manifoldflow.distributions.base import Distribution
from manifoldflow.distributions.uniform import Uniform
from manifoldflow.manifolds.base import Manifold, expand_time
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.paths.base import NoisyPoint, Path
from manifoldflow.paths.logits import cross_entropy, mix_logits
from manifoldflow.paths.projected_normal import draw_length, log_density, mean_inverse_length
from manifoldflow.paths.schedule import Linear, Schedule

_LEAST_NOISE = 1e-4  # standard deviation, where there is none: at the mask


@dataclass(frozen=True)
class MaskCorner(Distribution):
    """Every point is the last corner of the sphere: the mask.

    Args:
        manifold: a :class:`manifoldflow.Sphere`; filled in by the flow.
    """

    manifold: Manifold | None = None

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        x = torch.zeros(*shape, *self.space.event_shape, dtype=dtype, device=device)
        x[..., -1] = 1.0
        return x

    def _log_density(self, x: Tensor) -> Tensor:
        raise TypeError("MaskCorner is one point, so it has no density")


@dataclass(frozen=True)
class SphericalBridge(Path):
    r"""Points :math:`x_t = y_t / |y_t|` of the sphere around the corners, from a source to the corner that is the data.

    With the standard normal vector :math:`\epsilon` and the noise c

    .. math:: \text{"uniform"}:\; y_t = k\, e_i + c\, (1 - k)\, \epsilon, \qquad
        \text{"mask"}:\; y_t = (1 - k)\, e_m + k\, e_i + c \sqrt{k (1 - k)}\, \epsilon,

    so x_0 is uniform on all of the sphere, or the mask :math:`e_m`, a further corner, and x_1 is the corner. The network sees x_t
    and t and predicts logits of the corner, by cross-entropy.

    A sampling step (``method="euler"``) draws the corner from the prediction, the length of y_t given x_t and the corner, then
    the bridge: exact for a token by itself, whatever the step, with an error that shrinks with it for tokens that depend on
    each other. As steps shrink it is the diffusion :math:`dX = u\, dt + c \sqrt{k' E[|y_t|^{-2} | X]}\, dB` with the drift of
    :meth:`drift`, the posterior mean of tangents towards the corners; without noise from the uniform source: a flow, which
    ``method="midpoint"`` and the others integrate. A point is no source of a flow, so from the mask there is no other method.

    Args:
        start: ``"uniform"``, or ``"mask"``, the last corner of the space, which is then ``Simplex(K + 1)``: data points have
            K + 1 entries, logits K.
        noise: c. A token tells itself from K others where :math:`k / (1 - k)` is about :math:`c \sqrt{2 \log K}` (uniform), or
            its square (mask).
        schedule: k.
        own_evidence: what a point says of its own corner, the density of x_t on every bridge, is added to the network's logits,
            so that it need only learn what the other tokens say. It is the exact factor of Bayes' rule.
        manifold: a :class:`manifoldflow.Sphere`; :class:`manifoldflow.Flow` fills it in.
    """

    start: Literal["uniform", "mask"] = "uniform"
    noise: float = 1.0
    schedule: Schedule = field(default_factory=Linear)
    own_evidence: bool = False
    predicts: Literal["logits"] = "logits"

    uses_source_point: ClassVar[bool] = False
    takes_coupling: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.start not in ("uniform", "mask"):
            raise ValueError(f"SphericalBridge: start must be 'uniform' or 'mask', got {self.start!r}")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"SphericalBridge: noise must be positive, got {self.noise}")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on the sphere that has the corners of ``space``.

        Args:
            space: ``Simplex(K)``, whose corners are the tokens (and the mask, if there is one), or that sphere itself.
            predicts: ``"logits"`` or nothing.
            source: that of the path, or nothing.

        Raises:
            TypeError: another space.
            ValueError: too few corners, another source, or the network is said to predict anything but logits.
        """
        if not (space.has_corners or isinstance(space, Sphere)):
            raise TypeError(f"SphericalBridge is for mf.Simplex(K), not for {space}")
        corners = space.categories if space.has_corners else space.dim + 1
        if predicts not in (None, "logits"):
            raise ValueError(f"SphericalBridge: the network predicts logits of the corner, not {predicts!r}")
        if corners - (self.start == "mask") < 2:
            raise ValueError(f"SphericalBridge: a mask and two tokens are three corners, {space} has {corners}")
        return super().bind(Sphere(corners - 1), None, source)

    def with_source(self, source: Any) -> Any:
        """The source is the path's own.

        Raises:
            ValueError: another one is given.
        """
        own = Uniform(self.space) if self.start == "uniform" else MaskCorner(self.space)
        if source is not None and source.bind(self.space) != own:
            raise ValueError(f"{type(self).__name__} starts from {own}, not from {source}")
        return super().with_source(own)

    @property
    def categories(self) -> int:
        """Number of tokens K, the mask not counted."""
        return self.space.dim + 1 - (self.start == "mask")

    def deviation(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise in y_t."""
        left = self.schedule.remaining(t).clamp_min(0)
        return self.noise * (left if self.start == "uniform" else (left * self.schedule.k(t).clamp_min(0)).sqrt())

    # ---------------------------------------------------------------- training

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        """A draw of x_t given the corner.

        Args:
            x0: unused but for its shape.
            x1: corners ``(..., D)``, D = K, or K + 1 with the mask.
            t: times in [0, 1], leading axes of the batch.
            generator: of the noise.
        """
        noise = torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
        y = self._mean(x1, t) + expand_time(self.deviation(t), x1, 1) * noise
        return NoisyPoint(self.space.project(y), t, x1)

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """Log-densities of ``x`` on the bridges to all corners, relative to the largest, ``(..., K)``; not in half precision."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        value = log_density(self._along(x, x[..., : self.categories], t), self.space.dim + 1)
        return value - value.amax(
            -1, keepdim=True
        )  # what they share may be large, and logits added to it would lose digits

    def logits(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the corners ``(..., K)`` from what the network returned: with ``own_evidence`` completed, else the same."""
        if pred.shape[-1] != self.categories:
            raise ValueError(f"SphericalBridge: logits of {self.categories} tokens expected, got {pred.shape[-1]}")
        if not self.own_evidence:
            return pred
        return pred.to(torch.promote_types(pred.dtype, torch.float32)) + self.evidence(x, t)

    def loss(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """Cross-entropy of the corner per element, ``(...)``."""
        return cross_entropy(self.logits(pred, point.x, point.t), point.endpoint[..., : self.categories])

    # ---------------------------------------------------------------- sampling

    def drift(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r"""The drift of the process at ``x``, a tangent; every term is along :math:`\log_x e_i`:

        .. math:: u_t(x) = \frac{k'}{1 - k} \sum_i p_i\, E\big[|y_t|^{-1} \,\big|\, x, e_i\big]\, (e_i - x_i x).
        """
        p = self.logits(pred, x, t).softmax(-1)
        deviation = torch.as_tensor(expand_time(self.deviation(t), x, 1)).clamp_min(_LEAST_NOISE).to(x.dtype)
        inverse = mean_inverse_length(self._along(x, x[..., : self.categories], t), self.space.dim + 1) / deviation
        hazard = self.schedule.dk(t) / self.schedule.remaining(t).clamp_min(1e-3)
        w = torch.nn.functional.pad(p * inverse, (0, self.start == "mask")) * expand_time(hazard, x, 1)
        return w - x * (w * x).sum(-1, keepdim=True)

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The field that carries the uniform source to the corners: the drift.

        Raises:
            ValueError: from the mask.
        """
        if self.start == "mask":
            raise ValueError(
                "from the mask a SphericalBridge is no flow: sample with method='euler', which adds its noise"
            )
        return self.drift(pred, x, t)

    def has_pole(self) -> bool:
        """The drift grows without limit at t = 1."""
        return True

    def is_random(self, how: Any = None) -> bool:
        """Corner, length and noise are drawn."""
        return True

    def log_prob(self, *_: Any, **__: Any) -> Tensor:
        """Not in closed form: corner and length of a step are integrated over.

        Raises:
            TypeError: always.
        """
        raise TypeError("a step of SphericalBridge has no log-probability in closed form")

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""A step of the bridge to a corner that is drawn from the prediction; one to s = 1 lands on it.

        .. math:: y_s = (1 - f)\, y_t + f\, e_i + c \sqrt{f (1 - k_s)}\, \epsilon, \quad f = \frac{k_s - k_t}{1 - k_t},

        the noise from the mask only, with :math:`y_t = r x` and the length r drawn from its law given x and i.

        Args:
            pred: logits ``(..., K)``.
            x: points ``(..., D)``.
            t, s: scalar times, t < s.
            generator: of all draws.

        Raises:
            ValueError: the times fall.
        """
        if (s < t).any() if s.device.type == "cpu" else False:
            raise ValueError("a SphericalBridge has no backward sampler: the times must increase")
        corner = draw_categorical(self.logits(pred, x, t), generator=generator).unsqueeze(-1)
        deviation = torch.as_tensor(expand_time(self.deviation(t), x, 1)).clamp_min(_LEAST_NOISE).to(x.dtype)
        z = self._along(x, x.gather(-1, corner), t).squeeze(-1)
        y = x * (deviation * draw_length(z, self.space.dim + 1, generator=generator).unsqueeze(-1))
        f = torch.as_tensor(expand_time(self.schedule.fraction(t, s), x, 1)).to(x.dtype)
        moved = (1 - f) * y + f * torch.zeros_like(x).scatter_(-1, corner, 1.0)
        if self.start == "mask":
            left = torch.as_tensor(expand_time(self.schedule.remaining(s), x, 1)).to(x.dtype)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            moved = moved + self.noise * (f * left).clamp_min(0).sqrt() * noise
        return self.space.project(moved)

    def mix(self, pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
        r"""Logits of :math:`p_a^w p_b^{1-w}`, the blend of two predictions that guidance needs."""
        return mix_logits(pred_a, pred_b, weight)

    def _mean(self, x1: Tensor, t: Tensor) -> Tensor:
        """The mean of y_t."""
        mean = expand_time(self.schedule.k(t), x1, 1) * x1
        if self.start == "uniform":
            return mean
        left = torch.as_tensor(expand_time(self.schedule.remaining(t), x1, 1)).expand(*x1.shape[:-1], 1)
        return mean + torch.nn.functional.pad(left.to(x1.dtype), (self.categories, 0))

    def _along(self, x: Tensor, at: Tensor, t: Tensor) -> Tensor:
        r""":math:`z = \langle m, x \rangle / \rho` for corners where ``x`` has the entries ``at``."""
        inner = expand_time(self.schedule.k(t), x, 1) * at
        if self.start == "mask":
            inner = inner + expand_time(self.schedule.remaining(t), x, 1) * x[..., -1:]
        deviation = torch.as_tensor(expand_time(self.deviation(t), x, 1)).clamp_min(_LEAST_NOISE)
        return inner / deviation.to(x.dtype)
