r"""A path of counts that grow from nothing: pure death run backward (Santos et al. 2023, Blackout diffusion).

Every unit of the data count :math:`x_1` is there at time t with probability k(t), independently,

.. math:: q(x_t | x_1) = \mathrm{Binomial}(x_1, k(t)),

so that all counts are 0 at t = 0. Each unit that is still missing comes at the rate k' / (1 - k), and hence counts grow by one at

.. math:: \lambda_t(x) = \frac{k'}{1 - k}\, E[x_1 - x_t | x_t = x].
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from manifoldflow.discrete import Tokens, draw_categorical, probabilities
from manifoldflow.discrete.counts import Counts
from manifoldflow.distributions.tokens import TokenSource
from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import NoisyPoint, Path
from manifoldflow.paths.how import Jumps
from manifoldflow.paths.jumps import check_forward
from manifoldflow.paths.logits import mix_logits
from manifoldflow.paths.schedule import Linear, Schedule
from manifoldflow.state import Move

Predicts = Literal["births", "logits"]


@dataclass(frozen=True)
class NoCounts(TokenSource):
    """Every count is 0: the source of :class:`BirthDeath`.

    Args:
        tokens: the space; filled in by the flow.
    """

    tokens: Tokens | None = None

    def log_prob(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """0 at counts of 0 (and at padding), minus infinity elsewhere."""
        value = torch.zeros(x.shape, device=x.device).masked_fill(x != 0, -torch.inf)
        return value if mask is None else value.masked_fill(~mask.expand_as(x), 0.0)

    def probabilities(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        p = torch.zeros(self.space.size, dtype=dtype, device=device)
        p[0] = 1.0
        return p

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None, device: Any) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class BirthDeath(Path):
    r"""Counts that grow from 0 to the data, one unit at a time (Santos et al. 2023).

    Args:
        schedule: k, the probability that a unit of the data is there at time t.
        predicts: ``"logits"`` of the clean count, ``(..., largest + 1)``; or ``"births"``, one real number for every count whose
            softplus is :math:`\hat m = E[x_1 - x_t | x_t]`, the only form for counts without a largest one.
        objective: ``"elbo"``: the divergence of the rates, :math:`\frac{k'}{1-k}\,[\hat m - m + m \log(m / \hat m)]` with
            :math:`m = x_1 - x_t`, whose mean over t is a bound on the negative log-likelihood, tight with the exact posterior
            (the likelihood loss of the paper); or, for logits only and there the default, their ``"cross_entropy"``.
        own_evidence: what a count says of its own data, :math:`\log \mathrm{Binomial}(x_t; x_1, k)`, is added to the network's
            logits, so that it need only learn what the other counts say. For logits.
        source: all 0.
        manifold: the space, :class:`manifoldflow.discrete.counts.Counts`; filled in by the flow.
    """

    schedule: Schedule = field(default_factory=Linear)
    predicts: Predicts = "logits"
    objective: Literal["elbo", "cross_entropy"] | None = None
    own_evidence: bool = False

    is_flow: ClassVar[bool] = False
    jumps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.predicts not in ("births", "logits"):
            raise ValueError(f"BirthDeath: predicts must be 'births' or 'logits', got {self.predicts!r}")
        if self.objective not in (None, "elbo", "cross_entropy"):
            raise ValueError(f"BirthDeath: objective must be 'elbo' or 'cross_entropy', got {self.objective!r}")
        if self.predicts == "births" and (self.objective == "cross_entropy" or self.own_evidence):
            raise ValueError("BirthDeath: cross_entropy and own_evidence are of logits, so they need predicts='logits'")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space``.

        Raises:
            TypeError: the space holds no counts.
            ValueError: a prediction that counts do not have, logits without a largest count, or a source that is not 0.
        """
        if not isinstance(space, Counts):
            raise TypeError(f"BirthDeath adds units to counts, not to points of {space}; use Counts(largest)")
        if predicts not in (None, "births", "logits"):
            raise ValueError(f"BirthDeath: the network predicts 'births' or 'logits', not {predicts!r}")
        if source is not None and not isinstance(source, NoCounts):
            raise ValueError(f"BirthDeath starts from counts of 0, not from {source}")
        given: Any = predicts or self.predicts
        if given == "logits" and space.largest is None:
            raise ValueError("without a largest count there are no logits: use Counts(largest), or predicts='births'")
        return super().bind(space, given, source or self.source or NoCounts())

    def check_method(self, how: Any) -> None:
        """Counts jump: in their own way, or as :class:`Jumps` says."""
        if how is not None and not how.is_for_jumps:
            raise ValueError(f"counts jump: use method='euler' or method=Jumps(...) for them, not {how}")

    # ---------------------------------------------------------------- training

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        """Every unit of ``x1`` stays with probability k(t).

        Args:
            x0: unused, all 0.
            x1: data counts ``(...)``.
            t: times in [0, 1], leading axes of x1.
            generator: of the thinning.
        """
        return NoisyPoint(self._thin(x1, torch.as_tensor(expand_time(self.schedule.k(t), x1, 0)), generator), t, x1)

    def logits(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the clean counts ``(..., largest + 1)``: minus infinity for those that are exceeded already.

        Raises:
            ValueError: the network predicts births.
        """
        if self.predicts != "logits":
            raise ValueError("this BirthDeath predicts births, so it has no logits; use predicts='logits'")
        pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
        every = torch.arange(self.space.size, device=x.device)
        missing = every - x.unsqueeze(-1)
        if self.own_evidence:
            log_left = torch.as_tensor(expand_time(self.schedule.remaining(t), pred, 1)).clamp_min(1e-30).log()
            ways = torch.lgamma(every + 1.0) - torch.lgamma(missing.clamp_min(0) + 1.0)
            pred = pred + (ways + missing * log_left).to(pred.dtype)
        return pred.masked_fill(missing < 0, -torch.inf)

    def births(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`E[x_1 - x_t | x_t]` from the prediction, ``(...)``, at least in single precision."""
        pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
        if self.predicts == "births":
            if pred.shape != x.shape:
                raise ValueError(f"births are one number a count, {tuple(x.shape)}, got {tuple(pred.shape)}")
            return torch.nn.functional.softplus(pred)
        p = self.logits(pred, x, t).softmax(-1)
        return ((torch.arange(self.space.size, device=x.device) - x.unsqueeze(-1)).clamp_min(0) * p).sum(-1)

    def rate(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The rate at which counts grow by one, per unit of time ``(...)``; at t < 1."""
        hazard = self.schedule.dk(t) / self.schedule.remaining(t).clamp_min(1e-7)
        return torch.as_tensor(expand_time(hazard, x, 0)) * self.births(pred, x, t)

    def loss(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The objective per count, ``(...)``."""
        if self.objective == "elbo" or self.predicts == "births":
            return self.bound(pred, point)
        log_p = self.logits(pred, point.x, point.t).log_softmax(-1)
        return -log_p.gather(-1, point.endpoint.unsqueeze(-1)).squeeze(-1)

    def bound(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The integrand of the negative evidence bound per count, nats per unit of time ``(...)``."""
        ours = self.births(pred, point.x, point.t)
        truth = (point.endpoint - point.x).to(ours.dtype)
        log_ours = ours.clamp_min(torch.finfo(ours.dtype).tiny).log()
        if self.predicts == "births":  # log softplus(a) is a where the softplus underflows
            a = pred.to(ours.dtype)
            log_ours = torch.where(a < -15, a, ours.clamp_min(1e-7).log())
        hazard = self.schedule.dk(point.t) / self.schedule.remaining(point.t).clamp_min(1e-7)
        return expand_time(hazard, ours, 0) * (ours - truth + torch.special.xlogy(truth, truth) - truth * log_ours)

    # ---------------------------------------------------------------- sampling

    def known(self, drawn: Tensor, x: Tensor) -> Tensor:
        """Draws of the clean counts, which are never below the present ones."""
        return torch.maximum(drawn, x)

    def advance(
        self,
        pred: Tensor,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        shift: Tensor | None = None,
        how: Jumps | None = None,
    ) -> Move:
        r"""Add units from time ``t`` to ``s`` with the prediction held fixed.

        From logits a clean count is drawn, and of the units that are missing each comes with probability
        :math:`f = (k(s) - k(t)) / (1 - k(t))`: exact for a count by itself, whatever the step. From births the number that is
        missing is :math:`\hat m`, rounded up or down at random. With ``Jumps(leap="tau")``, or a ``shift``, the number of births
        is :math:`\mathrm{Poisson}(f \hat m)`: the right mean in either case, and the right law for small steps. A step to s = 1
        ends at the clean count.

        Args:
            pred: what the network returned.
            x: counts ``(...)``.
            t, s: scalar times, t < s.
            mask: bool of real counts; the others stay.
            generator: of every random number.
            how: leap, and for logits temperature and top_p.
            shift: logarithms ``(..., largest + 1)`` of factors on the rates towards every count (guidance); that of x + 1 counts.

        Raises:
            ValueError: the times fall, or a corrector, an order, or a temperature of no use is asked for.
        """
        check_forward(t, s)
        how = how or Jumps()
        leaps = self._leaps(shift, how)
        f = self.schedule.fraction(t, s)
        if not leaps:
            born = self._thin(self._missing(pred, x, t, how, generator), f.expand(x.shape), generator)
        else:
            mean = self._shifted_births(pred, x, t, shift)
            born = torch.poisson(f.to(mean.dtype) * mean, generator=generator).to(x.dtype)
            if s.device.type != "cpu" or bool(s >= 1):
                born = torch.where(s >= 1, self._missing(pred, x, t, how, generator), born)
        moved = (x + born).clamp_max(self.space.categories - 1)
        return Move(moved if mask is None else torch.where(mask, moved, x))

    def is_random(self, how: Any = None) -> bool:
        """Births are drawn."""
        return True

    def log_prob(
        self,
        pred: Tensor,
        x: Tensor,
        y: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        shift: Tensor | None = None,
        how: Jumps | None = None,
    ) -> Tensor:
        r"""Log-probability of every count's step, ``(...)``: from logits :math:`\sum_{x_1} p(x_1)\, \mathrm{Binomial}(y - x;
        x_1 - x, f)`; from births the same of the two numbers next to :math:`\hat m`; of leaps Poisson."""
        how = how or Jumps()
        f = torch.as_tensor(expand_time(self.schedule.fraction(t, s), x, 0))
        born = (y - x).to(torch.promote_types(pred.dtype, torch.float32))
        if self._leaps(shift, how):
            mean = self._shifted_births(pred, x, t, shift)
            mean = (f.to(mean.dtype) * mean).clamp_min(torch.finfo(mean.dtype).tiny)
            value = torch.special.xlogy(born, mean) - mean - torch.lgamma(born.clamp_min(0) + 1)
            return torch.where(born < 0, -torch.inf, value)
        if self.predicts == "births":
            mean = self.births(pred, x, t)
            low = mean.floor()
            most, p = torch.stack([low, low + 1], -1), torch.stack([1 - (mean - low), mean - low], -1)
        else:
            logits = self.logits(pred, x, t)
            p = probabilities(logits, how.temperature, how.top_p)
            p = p / p.sum(-1, keepdim=True)
            most = (torch.arange(self.space.size, device=x.device) - x.unsqueeze(-1)).to(p.dtype)
        return (
            _log_binomial(born.unsqueeze(-1).to(p.dtype), most, f.unsqueeze(-1).to(p.dtype)).add(p.log()).logsumexp(-1)
        )

    def certain(self, x1: Tensor, x: Tensor) -> Tensor:
        """Logits of the data, or the number whose softplus is what is missing."""
        if self.predicts == "logits":
            return super().certain(x1, x)
        missing = (x1 - x).to(torch.float64)
        return missing + torch.log(-torch.expm1(-missing).clamp_max(-1e-30))

    def _leaps(self, shift: Tensor | None, how: Jumps) -> bool:
        """Whether the number of births is Poisson.

        Raises:
            ValueError: what counts do not have.
        """
        if how.has_corrector or how.order != "random":
            raise ValueError("BirthDeath takes leap, temperature and top_p of Jumps, no corrector and no order")
        leaps = how.leap == "tau" or shift is not None
        if (leaps or self.predicts == "births") and (how.temperature != 1 or how.top_p < 1):
            raise ValueError(
                "BirthDeath draws clean counts from logits at leap='exact' only: no temperature or top_p here"
            )
        return leaps

    def _shifted_births(self, pred: Tensor, x: Tensor, t: Tensor, shift: Tensor | None) -> Tensor:
        mean = self.births(pred, x, t)
        if shift is None:
            return mean
        return mean * shift.gather(-1, (x + 1).clamp_max(shift.shape[-1] - 1).unsqueeze(-1)).squeeze(-1).exp()

    def guess(self, pred: Tensor, x: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Clean counts drawn from a prediction."""
        return x + self._missing(pred, x, t, Jumps(), generator).clamp_min(0)

    def mix(self, pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
        r"""The blend of two predictions that guidance needs: logits of :math:`p_a^w p_b^{1-w}`, births
        :math:`m_a^w m_b^{1-w}`."""
        if self.predicts == "logits":
            return mix_logits(pred_a, pred_b, weight)
        log_a, log_b = (torch.nn.functional.softplus(v).clamp_min(1e-30).log() for v in (pred_a, pred_b))
        blend = (log_b + weight * (log_a - log_b)).exp()
        return blend + torch.log(-torch.expm1(-blend).clamp_max(-1e-30))  # the number whose softplus it is

    def _missing(self, pred: Tensor, x: Tensor, t: Tensor, how: Jumps, generator: torch.Generator | None) -> Tensor:
        """A draw of the number of units still to come."""
        if self.predicts == "births":
            mean = self.births(pred, x, t)
            noise = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            return (mean + noise).floor().to(x.dtype)
        logits = self.logits(pred, x, t)
        return draw_categorical(logits, temperature=how.temperature, top_p=how.top_p, generator=generator) - x

    def _thin(self, count: Tensor, share: Tensor, generator: torch.Generator | None) -> Tensor:
        """Binomial(count, share). Whole numbers above 2^24 need double precision."""
        largest = self.space.largest
        dtype = torch.float32 if largest is not None and largest < 2**24 else torch.float64
        share = share.to(dtype).clamp(0, 1).expand(count.shape).contiguous()
        return torch.binomial(count.to(dtype), share, generator=generator).to(count.dtype)


def _log_binomial(k: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """log Binomial(k; n, p), minus infinity for k or n out of range; p = 0 and 1 too."""
    can = (k >= 0) & (k <= n)
    k, n = torch.where(can, k, 0.0), torch.where(can, n, 0.0)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where(can, ways + torch.special.xlogy(k, p) + torch.special.xlogy(n - k, 1 - p), -torch.inf)
