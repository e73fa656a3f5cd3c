"""The conditional path along the shortest geodesic from source to data (Chen & Lipman 2024, eq. 14)."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from manifoldflow.distributions import Normal
from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import Path, PathPoint
from manifoldflow.paths.logits import cross_entropy, land, mix_logits
from manifoldflow.paths.schedule import Linear, Schedule

Predicts = Literal["velocity", "endpoint", "logits"]


@dataclass(frozen=True)
class Geodesic(Path):
    r"""Geodesic path :math:`x_t = \exp_{x_0}(k(t) \log_{x_0} x_1)`, :math:`u_t = k'(t) [\log_{x_t} x_1 - \log_{x_t} x_0]`.

    Args:
        schedule: k of training.
        sample_schedule: k of sampling if it differs. A prediction is first turned into an endpoint direction with the
            training schedule and then followed with this one (FrameFlow and ReQFlow need ``Exponential(10)`` on rotations).
        predicts: what the network returns: ``"velocity"`` (a tangent at x_t), ``"endpoint"`` (a point, the clean x_1), or on a
            simplex ``"logits"`` of the corner that x_1 is, trained by cross-entropy. The velocity is then the mean over the
            corners, :math:`\frac{k'}{1-k} \sum_i p_i \log_{x_t} e_i`, and a step to t = 1 draws one (Eijkelboom et al. 2024).
        clip: floor of 1 - k(t) in the endpoint loss and in velocities near t = 1.
        average_targets: regress on the mean velocity of all paths of the batch that pass through x_t, see
            :meth:`mean_velocity`, instead of the velocity of one of them. The minimiser is the same, the noise of the loss
            smaller, the cost a ``(B, B)`` table. For velocity predictions from a uniform source with independent coupling.
        own_evidence: what a point of the simplex says of its own corner is added to the network's logits, see
            :meth:`manifoldflow.Simplex.corner_evidence`, so that the network need only learn what the other elements say. It
            is the exact factor of Bayes' rule for a uniform source with independent coupling. For logits.
        manifold, source: where the path lives and starts; :class:`manifoldflow.Flow` fills them in.
    """

    schedule: Schedule = field(default_factory=Linear)
    sample_schedule: Schedule | None = None
    predicts: Predicts = "velocity"
    clip: float = 0.1
    average_targets: bool = False
    own_evidence: bool = False

    def __post_init__(self) -> None:
        if self.predicts not in ("velocity", "endpoint", "logits"):
            raise ValueError(f"predicts must be 'velocity', 'endpoint' or 'logits', got {self.predicts!r}")
        if self.average_targets and self.predicts != "velocity":
            raise ValueError("average_targets are mean velocities, so they need predicts='velocity'")
        if self.own_evidence and self.predicts != "logits" and self.manifold is not None:
            raise ValueError("own_evidence is of the corner that the data is, so it needs predicts='logits'")
        if self.predicts == "logits" and self.manifold is not None and not self.manifold.has_corners:
            raise ValueError(f"predicts='logits' is for data at the corners of a Simplex, not for {self.manifold}")

    def check(self, coupling: Any) -> None:
        """Averages over the batch and own evidence are for a uniform source with the independent coupling."""
        super().check(coupling)
        for name in ("average_targets", "own_evidence"):
            plain = getattr(coupling, "is_independent", False) and getattr(self.source, "is_uniform", False)
            if getattr(self, name) and not plain:
                raise ValueError(f"{name} need a uniform source and the independent coupling")

    def for_pairs(self, *, only_start: bool) -> Any:
        """The target of a pair is its own velocity: an average over the batch is for independent pairs."""
        return replace(self, average_targets=False)

    def on_training_clock(self) -> Any:
        """Without ``sample_schedule``."""
        return replace(self, sample_schedule=None)

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> PathPoint:
        """The point and velocity at time ``t``; deterministic, so ``generator`` is unused.

        Args:
            x0, x1: source and data points ``(..., *event)``.
            t: times in [0, 1], leading batch axes of x0.
        """
        x, direction = self.space.geodesic(x0, x1, self.schedule.k(t))
        velocity = expand_time(self.schedule.dk(t), direction, self.space.tangent_ndim) * direction
        if self.average_targets:
            velocity = self.mean_velocity(x, t, x1, one=velocity)
        return PathPoint(x, t, velocity, x1)

    def mean_velocity(self, x: Tensor, t: Tensor, x1: Tensor, *, one: Tensor) -> Tensor:
        r"""The mean velocity at ``x`` of the paths to all data points ``x1``, from a uniform source.

        The geodesic path contracts the uniform law towards its endpoint, so its conditional density is known:

        .. math:: p_t(x | y) = \frac{1}{(1-k)^d\, vol}\, \frac{J_y(w / (1-k))}{J_y(w)}, \quad w = \log_y x,

        with the volume factor J of exp, where w / (1 - k) is shorter than the way to the cut locus of y, and 0 elsewhere. The
        mean of :math:`u_t(x | y) = k' \log_x y / (1 - k)` with these weights is the expectation of the drawn path's velocity
        given the point and the batch (every data point is equally likely to have led there), so replacing the one by the
        other leaves the minimiser of the loss as it is and takes variance away (Rao-Blackwell). It is also what the exact
        field of the empirical distribution of ``x1`` is (cf. Xu et al. 2023, stable target field).

        Args:
            x: points of the paths ``(B, *event)``.
            t: times ``(B,)``.
            x1: data points ``(M, *event)``, with those of the batch among them.
            one: velocities of the drawn paths, used where no weight can be told from 0 (close to t = 1).
        """
        space, event = self.space, self.space.event_ndim
        if x.ndim != event + 1:
            raise ValueError(
                f"average_targets need a batch of single points (B, *event), got {tuple(x.shape)}: the paths of the "
                "elements of a set are not independent"
            )
        left = self.schedule.remaining(t).clamp_min(1e-5).unsqueeze(-1)
        here, there = x.unsqueeze(1), x1.unsqueeze(0)
        u = space.log(here, there)
        stretched = u / expand_time(left, u, space.tangent_ndim)
        # The volume factors depend on the two ends alike, so those at x serve for those at y (length and angle are shared).
        log_weight = space.log_exp_volume(here, stretched) - space.log_exp_volume(here, u)
        log_weight = torch.where(space.is_minimising(here, stretched), log_weight, -torch.inf)
        most = log_weight.amax(-1, keepdim=True)
        is_known = most > -torch.inf
        weight = torch.exp(log_weight - torch.where(is_known, most, 0.0))
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-30)
        spread = weight.reshape(weight.shape + (1,) * space.tangent_ndim)
        mean = (spread * stretched).sum(1)
        mean = expand_time(self.schedule.dk(t), mean, space.tangent_ndim) * mean
        return torch.where(is_known.reshape(is_known.shape[:1] + (1,) * space.tangent_ndim), mean, one)

    def logits(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the corners ``(..., K)`` from what the network returned: with ``own_evidence`` completed, else the same."""
        pred = super().logits(pred, x, t)
        if not self.own_evidence:
            return pred
        left = torch.as_tensor(expand_time(self.schedule.remaining(t), x, 1))
        return pred.to(torch.promote_types(pred.dtype, torch.float32)) + self.space.corner_evidence(x, left)

    def loss(self, pred: Tensor, point: PathPoint) -> Tensor:
        r"""Squared error per element, shape of the batch.

        Velocity: :math:`|v - u_t|^2`. Endpoint: :math:`|\log_{x_t} \hat x_1 - \log_{x_t} x_1|^2 / \max(1 - k, clip)^2`. Logits:
        cross-entropy.
        """
        space = self.space
        if self.predicts == "logits":
            return cross_entropy(self.logits(pred, point.x, point.t), point.endpoint)
        if self.predicts == "velocity":
            error = space.to_tangent(point.x, pred) - point.velocity
            return space.inner(point.x, error, error)
        error = space.log(point.x, pred) - space.log(point.x, point.endpoint)
        squared = space.inner(point.x, error, error)
        left = self.schedule.remaining(point.t).clamp_min(self.clip)
        return squared / expand_time(left**2, squared, 0)

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The tangent that moves ``x`` at time ``t`` on the sampling schedule."""
        space, to = self.space, self.sample_schedule or self.schedule
        if self.predicts != "velocity":
            rate = to.hazard(t)
            u = self._ahead(pred, x, t)
            return expand_time(rate, u, space.tangent_ndim) * u
        u = space.to_tangent(x, pred)
        if self.sample_schedule is None:
            return u
        rate = self.schedule.remaining(t) / self.schedule.dk(t).clamp_min(1e-6) * to.hazard(t)
        return expand_time(rate, u, space.tangent_ndim) * u

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """One geodesic step from time ``t`` to ``s`` with the prediction held fixed.

        An endpoint prediction is followed exactly (no linearisation of the schedule), so a step to s = 1 lands on it; with
        logits, on a corner drawn from them.
        """
        space = self.space
        if self.predicts == "velocity":
            if self.sample_schedule is None:
                return super().follow(pred, x, t, s, generator=generator)
            # What the velocity says of the end is followed on the other schedule exactly: no steep one overshoots.
            whole = self.schedule.remaining(t) / self.schedule.dk(t).clamp_min(1e-6)
            u = space.to_tangent(x, pred)
            return space.exp(x, expand_time(whole * self.sample_schedule.fraction(t, s), u, space.tangent_ndim) * u)
        fraction = (self.sample_schedule or self.schedule).fraction(t, s)
        u = self._ahead(pred, x, t)
        moved = space.exp(x, expand_time(fraction, u, space.tangent_ndim) * u)
        return land(self.logits(pred, x, t), moved, s >= 1, generator) if self.predicts == "logits" else moved

    def rest(self, pred: Tensor) -> Tensor:
        """Zeros, or for endpoints the origin."""
        if self.predicts != "endpoint":
            return super().rest(pred)
        shape = pred.shape[: pred.ndim - self.space.event_ndim]
        return self.space.origin(shape, dtype=pred.dtype, device=pred.device)

    def centred(self, pred: Tensor, mask: Tensor | None) -> Tensor:
        """Velocities without the drift of the centre, where the space has none."""
        return pred if self.predicts == "endpoint" else self.space.center(pred, mask)

    # ---------------------------------------------------------------- noise and score

    def check_score(self, coupling: Any) -> None:
        r"""With a Gaussian source :math:`N(0, c^2)` of flat space, drawn independently of the data, the score follows:
        :math:`-\hat x_0 / (c^2 (1 - k))`, see :mod:`manifoldflow.sampling.stochastic`."""
        advice = "; use path=StochasticInterpolant(), whose network learns the score"
        if not self.space.is_linear or self.predicts == "logits":
            super().check_score(coupling)
        if not getattr(self.source, "is_gaussian", False):
            raise TypeError(f"the score follows from the velocity for a Normal source, not for {self.source}" + advice)
        if not getattr(coupling, "is_independent", False):
            raise TypeError(
                f"the score follows from the velocity if source and data are paired independently, not by {coupling}"
                + advice
            )
        if self.sample_schedule is not None:
            raise TypeError("the score belongs to the training schedule, but this path has a sample_schedule" + advice)

    def noise_level(self, t: Tensor) -> Tensor:
        r""":math:`c\,(1 - k)`."""
        if not self.space.is_linear or not getattr(self.source, "is_gaussian", False) or self.predicts == "logits":
            return super().noise_level(t)
        return cast(Normal, self.source).scale * self.schedule.remaining(t)

    def noise_prediction(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`\hat x_0 / c`, the source point that the prediction means."""
        space, k = self.space, self.schedule.k(t)
        if self.predicts == "endpoint":
            left = self.schedule.remaining(t).clamp_min(1e-3)
            ahead = space.log(x, pred) / expand_time(left, x, space.tangent_ndim)
        else:
            rate = self.schedule.dk(t).clamp_min(1e-3)
            ahead = self.velocity(pred, x, t) / expand_time(rate, x, space.tangent_ndim)
        return (x - expand_time(k, x, space.tangent_ndim) * ahead) / cast(Normal, self.source).scale

    def mix(self, pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
        r"""The blend of two predictions that guidance needs, a at weight 1 and b at 0, beyond a above 1.

        Velocities linearly, logits as :math:`p_a^w p_b^{1-w}`, endpoints along the geodesic from b to a.
        """
        if self.predicts == "logits":
            return mix_logits(pred_a, pred_b, weight)
        if self.predicts == "endpoint":
            return self.space.exp(pred_b, weight * self.space.log(pred_b, pred_a))
        return pred_b + weight * (pred_a - pred_b)

    def _ahead(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The tangent at ``x`` that leads to the predicted endpoint, or on average to the corners."""
        space = self.space
        if self.predicts == "logits":
            return space.mean_log(x, self.logits(pred, x, t).softmax(-1))
        return space.log(x, pred)
