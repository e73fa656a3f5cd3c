r"""Bayesian flow on a torus (CrysBFN, Wu et al. 2025): the state is what von Mises observations of the data say of it so far.

Of every angle x there is a belief, the von Mises law of mean m and concentration c. An observation
:math:`y \sim vM(x, \alpha)` is taken in by adding vectors, :math:`c' e^{i m'} = c e^{i m} + \alpha e^{i y}`, so c may fall, and
after k observations

.. math:: c_k e^{i m_k} = \sum_{j \le k} \alpha_j e^{i y_j} = e^{i x} S_k, \qquad
    S_k = \sum_{j \le k} \alpha_j e^{i \xi_j},\ \xi_j \sim vM(0, \alpha_j).

The data point only turns :math:`S_k`, so a bank of simulated sums serves every data point and every training step.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import Path
from manifoldflow.state import where_mask


class BeliefPoint(NamedTuple):
    """One draw of a Bayesian flow.

    Attributes:
        x: the belief: means ``(..., d)`` and concentrations ``(..., d)`` side by side, ``(..., 2 d)``.
        t: its time, leading batch axes of x.
        endpoint: x_1, ``(..., d)``.
    """

    x: Tensor
    t: Tensor
    endpoint: Tensor


@dataclass(frozen=True)
class NoBelief:
    """The state before any observation: uniform means of concentration 0.

    Args:
        manifold: the torus.
    """

    manifold: Any

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Beliefs ``(*shape, 2 d)``; zeros at padding."""
        mean = self.manifold.sample_uniform(tuple(shape), generator=generator, dtype=dtype, device=device)
        x = torch.cat([mean, torch.zeros_like(mean)], -1)
        return where_mask(mask, x, torch.zeros_like(x))

    def log_prob(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Beliefs of concentration 0 fill no volume.

        Raises:
            TypeError: always.
        """
        raise TypeError("a state without belief has no density")


@dataclass(frozen=True)
class PeriodicBayes(Path):
    r"""Bayesian flow of points on a torus, for networks that predict the data point from the belief.

    The state has shape ``(..., 2 d)``: means in the units of the torus, then concentrations (per square radian). The network
    should see the logarithm of the concentration: it need not grow, so the time alone does not tell how good the mean is.

    The accuracies :math:`\alpha_1 .. \alpha_n` are such that the mean entropy of the belief falls linearly, from that of no
    belief to that of the concentration ``accuracy``. Time t is the share of the n observations that have been made. The
    loss is the bound, :math:`n\, \alpha_k A(\alpha_k)\, (1 - \cos(x - \hat x))` nats with :math:`A = I_1 / I_0`, k the next
    observation.

    Training draws the sum after k observations from a bank of simulated ones: it is made once per configuration and holds
    ``bank`` sums, whatever ``steps`` is. Two of its entries are combined (the early part of one, the late part of another, whose
    observations are independent), so there are as many different draws as pairs of entries. Cost and memory of a training pair do
    not depend on the number of observations.

    A sampling step takes the network's guess for the truth. With ``resample`` the next belief is drawn anew, from all
    observations of the guess ("end-back"); otherwise the observations since the last step are added to the belief. A step to
    t = 1 ends at the guess.

    Args:
        steps: n, number of observations.
        accuracy: concentration at the end, per square radian; 1000 is a standard deviation of 0.005 turns.
        bank: sums in the bank, over all its knots: 4 million are 32 MB.
        knots: numbers of observations that the bank has, evenly spread, at most; times are rounded to them.
        resample: how a sampling step draws.
        seed: of the bank.
        manifold: a :class:`Torus`; :class:`manifoldflow.Flow` fills it in.
    """

    steps: int = 1000
    accuracy: float = 1000.0
    bank: int = 2**22
    knots: int = 250
    resample: bool = True
    seed: int = 0

    predicts = "endpoint"
    is_flow: ClassVar[bool] = False
    takes_coupling: ClassVar[bool] = False
    uses_source_point: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("steps", "bank", "knots"):
            if getattr(self, name) < 1:
                raise ValueError(f"PeriodicBayes: {name} must be at least 1, got {getattr(self, name)}")
        if not self.accuracy > 0:
            raise ValueError(f"PeriodicBayes: accuracy must be positive, got {self.accuracy}")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space``.

        Raises:
            TypeError: no torus.
            ValueError: another prediction, or another start than no belief.
        """
        if predicts not in (None, "endpoint"):
            raise ValueError(f"PeriodicBayes: the network predicts the data point, not {predicts!r}")
        if getattr(space, "coordinate_period", None) is None:
            raise TypeError(f"PeriodicBayes is for mf.Torus(d), not for {space}; flat space has GaussianBayes")
        if source is not None and not (isinstance(source, NoBelief) or getattr(source, "is_uniform", False)):
            raise ValueError(f"PeriodicBayes starts from no belief, uniform means, not from {source}")
        own: Any = super().bind(space, None, NoBelief(space))
        return own

    def with_source(self, source: Any) -> Any:
        """No belief."""
        own: Any = self
        return replace(own, source=NoBelief(self.space))

    # ---------------------------------------------------------------- schedule

    def accuracies(self) -> Tensor:
        """:math:`\\alpha_1 .. \\alpha_n`, float64."""
        return torch.from_numpy(_accuracies(self.steps, self.accuracy)[0])

    def knot_of(self, t: Tensor) -> Tensor:
        """The number of the knot nearest to time ``t``, 0 for no observation."""
        most = len(_knots(self.steps, self.knots)) - 1
        return (t * most).round().long().clamp(0, most)

    def observations(self, t: Tensor) -> Tensor:
        """How many observations have been made at time ``t``."""
        return torch.as_tensor(_knots(self.steps, self.knots), device=t.device)[self.knot_of(t)]

    def _bank(self, like: Tensor) -> Tensor:
        """Sums ``(knots + 1, draws, 2)``."""
        return _bank_on(self._key(), like.dtype, like.device)

    def _key(self) -> tuple[int, float, int, int, int]:
        return self.steps, self.accuracy, self.draws, self.knots, self.seed

    @property
    def draws(self) -> int:
        """Entries of the bank at every knot."""
        return max(1, self.bank // min(self.steps, self.knots))

    # ---------------------------------------------------------------- beliefs

    def state_of(self, x1: Tensor) -> Tensor:
        """A data point as a belief of the final concentration."""
        return torch.cat([x1, torch.full_like(x1, self.accuracy)], -1)

    def data_of(self, x: Tensor) -> Tensor:
        """The means."""
        return x.chunk(2, -1)[0]

    def belief(self, total: Tensor) -> Tensor:
        """The belief of sums of observations ``(..., d, 2)``: where nothing was observed the mean is the point 0."""
        turn = self.space.coordinate_period / (2 * math.pi)
        mean = self.space.project(torch.atan2(total[..., 1], total[..., 0]) * turn)
        return torch.cat([mean, total.square().sum(-1).sqrt()], -1)

    def total(self, belief: Tensor) -> Tensor:
        """Sums of observations ``(..., d, 2)`` that lead to a belief."""
        mean, c = belief.chunk(2, -1)
        angle = mean * (2 * math.pi / self.space.coordinate_period)
        return torch.stack([c * angle.cos(), c * angle.sin()], -1)

    def observed(self, x1: Tensor, since: Tensor, until: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Sums ``(..., d, 2)`` of the observations of ``x1`` between two knots, one draw a coordinate.

        Args:
            x1: points ``(..., d)``.
            since, until: numbers of knots, that broadcast with x1.
            generator: of the entries of the bank.
        """
        bank = self._bank(x1)
        since, until = (v.expand(x1.shape) for v in torch.broadcast_tensors(since, until))
        early, late = (torch.randint(self.draws, x1.shape, generator=generator, device=x1.device) for _ in range(2))
        side = torch.randint(2, x1.shape, generator=generator, device=x1.device).to(x1.dtype) * 2 - 1
        between = torch.as_tensor(_joints(*self._key()[:2], self.knots), device=x1.device)[until].maximum(since)
        sums = bank[between, early] - bank[since, early] + bank[until, late] - bank[between, late]
        cos, sin = sums[..., 0], side * sums[..., 1]  # the law is symmetric
        angle = x1 * (2 * math.pi / self.space.coordinate_period)
        return torch.stack([cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()], -1)

    # ---------------------------------------------------------------- training

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> BeliefPoint:
        """The belief at time ``t``.

        Args:
            x0: states of no belief ``(..., 2 d)``, whose means are kept where there is no observation yet.
            x1: data points ``(..., d)``.
            t: times, leading axes of the batch; 1 after all observations.
            generator: of the observations.
        """
        knot = torch.as_tensor(expand_time(self.knot_of(t), x1, 1)).expand(x1.shape)
        seen = self.belief(self.observed(x1, torch.zeros_like(knot), knot, generator=generator))
        none = knot == 0
        return BeliefPoint(torch.where(torch.cat([none, none], -1), x0, seen), t, x1)

    def loss(self, pred: Tensor, point: BeliefPoint) -> Tensor:
        """The bound per element, as a rate in t: nats of all n observations if the belief stayed as it is."""
        gap = (pred - point.endpoint) * (math.pi / self.space.coordinate_period)
        rate = torch.as_tensor(_rates(self.steps, self.accuracy, self.knots), dtype=gap.dtype, device=gap.device)
        weight = rate[self.knot_of(point.t)]
        return torch.as_tensor(expand_time(weight, gap, 1)).expand_as(gap).mul(2 * gap.sin().square()).sum(-1)

    def bound(self, pred: Tensor, point: BeliefPoint) -> Tensor:
        """As the loss."""
        return self.loss(pred, point)

    def bound_times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Even times: the integrand is bounded."""
        return u, torch.ones_like(u)

    # ---------------------------------------------------------------- sampling

    def rest(self, pred: Tensor) -> Tensor:
        """The origin."""
        return torch.zeros_like(pred)

    def is_random(self, how: Any = None) -> bool:
        """Every step draws."""
        return True

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The next belief, with the guess ``pred`` ``(..., d)`` taken for the data; a step to t = 1 ends at it."""
        until = torch.as_tensor(expand_time(self.knot_of(s), pred, 1))
        if self.resample:
            moved = self.belief(self.observed(pred, torch.zeros_like(until), until, generator=generator))
        else:
            since = torch.as_tensor(expand_time(self.knot_of(t), pred, 1))
            added = self.observed(pred, torch.minimum(since, until), until, generator=generator)
            moved = self.belief(self.total(x) + added)
        is_last = torch.as_tensor(expand_time(s >= 1, x, 1))
        return torch.where(is_last, self.state_of(self.space.project(pred)), moved)


# ---------------------------------------------------------------- tables


def _ratio(kappa: np.ndarray) -> np.ndarray:
    """I1(k) / I0(k), the mean cosine of a von Mises law."""
    from scipy.special import i0e, i1e

    return i1e(kappa) / i0e(kappa)


def _entropy(kappa: np.ndarray) -> np.ndarray:
    """Of a von Mises law, nats."""
    from scipy.special import i0e

    return np.log(2 * np.pi * i0e(kappa)) + kappa * (1 - _ratio(kappa))


@lru_cache(maxsize=32)
def _accuracies(steps: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    r"""The accuracies, and the root-mean-square concentrations that they lead to.

    The mean entropy after k observations is to be linear in k. Their sum has the mean :math:`\sum \alpha A` along the data, and
    the variances :math:`\sum \alpha^2 (1 - A/\alpha - A^2)` along and :math:`\sum \alpha A` across; its law is taken to be
    Gaussian, but for the first, whose concentration is :math:`\alpha_1`.
    """
    end = float(_entropy(np.array(accuracy)))
    start = math.log(2 * math.pi)
    points, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    along_z, across_z = (v.ravel() for v in np.meshgrid(points, points, indexing="ij"))
    log_grid = np.linspace(math.log(1e-6), math.log(100 * accuracy), 4000)
    table = _entropy(np.exp(log_grid))

    def mean_entropy(drift: float, along: float, across: float) -> float:
        squared = (drift + math.sqrt(along) * along_z) ** 2 + across * across_z**2
        return float(weights @ np.interp(0.5 * np.log(squared + 1e-24), log_grid, table))

    alphas, reached = np.empty(steps), np.empty(steps)
    drift = along = across = 0.0
    for k in range(steps):
        wanted = start + (end - start) * (k + 1) / steps
        left, right = 1e-6, 8 * accuracy
        for _ in range(40):
            a = math.sqrt(left * right)
            mean = float(_ratio(np.array(a)))
            sums = (drift + a * mean, along + max(a * a * (1 - mean * mean) - a * mean, 0.0), across + a * mean)
            is_short = (float(_entropy(np.array(a))) if k == 0 else mean_entropy(*sums)) > wanted
            left, right = (a, right) if is_short else (left, a)
        drift, along, across = sums
        alphas[k], reached[k] = a, math.sqrt(drift * drift + along + across)
    return alphas, reached


@lru_cache(maxsize=32)
def _knots(steps: int, knots: int) -> np.ndarray:
    """Numbers of observations ``(min(steps, knots) + 1,)``, from 0 to all."""
    return np.round(np.linspace(0, steps, min(steps, knots) + 1)).astype(np.int64)


@lru_cache(maxsize=32)
def _joints(steps: int, accuracy: float, knots: int) -> np.ndarray:
    """For every knot the one before it at which the concentration was half."""
    at = _knots(steps, knots)
    reached = np.concatenate([[0.0], _accuracies(steps, accuracy)[1]])[at]
    return np.searchsorted(reached, 0.5 * reached, side="right").astype(np.int64) - 1


@lru_cache(maxsize=32)
def _rates(steps: int, accuracy: float, knots: int) -> np.ndarray:
    """n alpha A(alpha) of the observations that follow each knot; at the last knot those before it."""
    alphas, at = _accuracies(steps, accuracy)[0], _knots(steps, knots)
    done = np.concatenate([[0.0], np.cumsum(alphas * _ratio(alphas))])[at]
    rate = steps * np.diff(done) / np.diff(at)
    return np.concatenate([rate, rate[-1:]])


@lru_cache(maxsize=4)
def _bank(steps: int, accuracy: float, draws: int, knots: int, seed: int) -> np.ndarray:
    """Sums of simulated observations of the point 0 at all knots, ``(knots + 1, draws, 2)`` float32."""
    rng = np.random.default_rng(seed)
    alphas, at = _accuracies(steps, accuracy)[0], _knots(steps, knots)
    total = np.zeros((draws, 2))
    made = np.zeros((len(at), draws, 2), dtype=np.float32)
    knot = 1
    for k, alpha in enumerate(alphas, start=1):
        angle = rng.vonmises(0.0, alpha, draws)
        total += alpha * np.stack([np.cos(angle), np.sin(angle)], -1)
        if k == at[knot]:
            made[knot] = total
            knot += 1
    return made


@lru_cache(maxsize=8)
def _bank_on(key: tuple[int, float, int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(_bank(*key)).to(dtype=dtype, device=device)
