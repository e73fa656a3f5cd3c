r"""Conditional paths of tokens that jump: mixtures of the source and the data point (Campbell et al. 2024; Gat et al. 2024).

.. math:: p_t(x | x_0, x_1) = (1 - k(t))\, \delta_{x_0}(x) + k(t)\, \delta_{x_1}(x)

independently for every token. The network sees x_t and t and predicts the posterior :math:`p_{1|t}` of every clean token
(logits over the K categories). The jump rates of one token from z to y are

.. math:: u_t(y | z) = \frac{k'}{1 - k}\, [p_{1|t}(y | z) - \delta_z(y)],

and any multiple of the corrector's may be added, which leave p_t as it is (they draw the token anew from
:math:`p_t(\cdot | x_1)`, with :math:`x_1` from the posterior):

.. math:: c_t(y | z) = \frac{k'}{1 - k}\, [(1 - k)\, p_0(y) + k\, p_{1|t}(y | z) - \delta_z(y)].
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from manifoldflow.discrete import draw_categorical, probabilities
from manifoldflow.discrete.draws import CHUNK
from manifoldflow.distributions.tokens import Categorical, TokenSource
from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import NoisyPoint, Path
from manifoldflow.paths.how import Jumps
from manifoldflow.paths.logits import mix_logits
from manifoldflow.paths.schedule import Linear, Schedule
from manifoldflow.state import Move

Objective = Literal["cross_entropy", "elbo"]


@dataclass(frozen=True)
class UniformJump(Path):
    r"""Mixture path from random tokens: every position jumps from a draw of the source to its data.

    Args:
        schedule: k, the share of tokens that are data at time t.
        objective: ``"cross_entropy"`` of the posterior; or ``"elbo"``, the generalised Kullback-Leibler divergence of the rates,
            :math:`-\frac{k'}{1-k}[p(x_t) - \delta_{x_1}(x_t) + (1 - \delta_{x_1}(x_t)) \log p(x_1)]`, whose mean over t is a
            bound on the negative log-likelihood (Shaul et al. 2024, eq. 26). Both have the same minimiser.
        own_evidence: what a token says of itself is added to the network's logits, :math:`\log\frac{(1-k)\, p_0(x_t) +
            k}{(1-k)\, p_0(x_t)}` at the present token, so that the network need only learn what the other tokens say. It is the
            exact factor of Bayes' rule, grows without limit as t goes to 1, and makes the bound usable there.
        source: where tokens come from; :class:`manifoldflow.Flow` puts its own here. Uniform if absent.
        manifold: the space; filled in by the flow.
    """

    schedule: Schedule = field(default_factory=Linear)
    objective: Objective = "cross_entropy"
    own_evidence: bool = False
    predicts: Literal["logits"] = "logits"

    is_flow: ClassVar[bool] = False
    jumps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.objective not in ("cross_entropy", "elbo"):
            raise ValueError(
                f"{type(self).__name__}: objective must be 'cross_entropy' or 'elbo', got {self.objective!r}"
            )

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space`` with ``source``.

        Raises:
            TypeError: the space holds no tokens.
            ValueError: the network is said to predict anything but logits.
        """
        name = type(self).__name__
        if not space.is_discrete:
            raise TypeError(f"{name} moves tokens, not points of {space}; use mf.Tokens(K)")
        if predicts not in (None, "logits", "velocity"):
            raise ValueError(f"{name}: the network predicts logits of the clean tokens, not {predicts!r}")
        return super().bind(space, None, source)

    def with_source(self, source: Any) -> Any:
        """A copy that starts from ``source``, the path's own, or its default."""
        return super().with_source(source or self.source or self.default_source())

    def default_source(self) -> TokenSource:
        """Equal probabilities."""
        return Categorical()

    def check_method(self, how: Any) -> None:
        """Tokens jump: in their own way, or as :class:`Jumps` says."""
        if how is not None and not how.is_for_jumps:
            raise ValueError(f"tokens jump: use method='euler' or method=Jumps(...) for them, not {how}")

    # ---------------------------------------------------------------- training

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        """Every token is that of ``x1`` with probability k(t), else that of ``x0``.

        Args:
            x0, x1: source and data tokens ``(...)``.
            t: times in [0, 1], leading axes of x0.
            generator: of the choice.
        """
        k = expand_time(self.schedule.k(t), x1, 0)
        u = torch.rand(x1.shape, generator=generator, dtype=t.dtype, device=x1.device)
        return NoisyPoint(torch.where(u < k, x1, x0), t, x1)

    def logits(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the posterior ``(..., K)`` from what the network returned: with ``own_evidence`` completed, else the same."""
        if not self.own_evidence:
            return pred
        k = torch.as_tensor(expand_time(self.schedule.k(t), x, 0))
        noise = torch.as_tensor(expand_time(self.schedule.remaining(t), x, 0)).clamp_min(1e-9)
        gain = torch.log1p(k / (noise * self._tokens.probabilities(dtype=k.dtype, device=x.device)[x].clamp_min(1e-9)))
        pred = pred.to(
            torch.promote_types(pred.dtype, torch.float32)
        )  # half precision would round the gain by percents
        return pred.scatter_add(-1, x.unsqueeze(-1), gain.to(pred.dtype).unsqueeze(-1))

    def loss(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The objective per token, ``(...)``, of logits ``pred`` ``(..., K)``."""
        if self.objective == "elbo":
            return self.bound(pred, point)
        pred = self.logits(pred, point.x, point.t).flatten(0, -2)
        pred = pred.to(torch.promote_types(pred.dtype, torch.float32))  # mixed precision ends at the network
        value = torch.nn.functional.cross_entropy(pred, point.endpoint.flatten(), reduction="none")
        return self._counted(value.reshape(point.x.shape), point)

    def bound(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The integrand of the negative evidence bound per token, nats per unit of time ``(...)``."""
        pred = self.logits(pred, point.x, point.t)
        log_p = torch.log_softmax(pred, -1, dtype=torch.promote_types(pred.dtype, torch.float32))
        right = log_p.gather(-1, point.endpoint.unsqueeze(-1)).squeeze(-1)
        stays = self._probability_of(log_p, point.x)
        is_there = (point.x == point.endpoint).to(log_p.dtype)
        rate = expand_time(self.schedule.dk(point.t) / self.schedule.remaining(point.t).clamp_min(1e-7), right, 0)
        return -rate * (stays - is_there + (1 - is_there) * right)

    def _counted(self, value: Tensor, point: NoisyPoint) -> Tensor:
        """What the cross-entropy counts: every token."""
        return value

    def _probability_of(self, log_p: Tensor, x: Tensor) -> Tensor:
        """The predicted probability that the clean token is the present one."""
        return log_p.gather(-1, x.unsqueeze(-1)).squeeze(-1).exp()

    # ---------------------------------------------------------------- sampling

    def posterior(self, probabilities: Tensor, x: Tensor) -> Tensor:
        """Probabilities ``(..., K)`` of the clean tokens, those that are known made certain."""
        return probabilities

    def rates(self, probabilities: Tensor, x: Tensor, t: Tensor, *, corrector: float = 0.0) -> Tensor:
        """Jump rates of every token to every state, ``(..., size)``; the entry of the present state makes the sum 0.

        Args:
            probabilities: of the clean tokens, ``(..., K)``.
            x: present tokens ``(...)``.
            t: times before 1, leading axes of x.
            corrector: multiple of the corrector's rates.
        """
        space = self.space
        p = torch.nn.functional.pad(self.posterior(probabilities, x), (0, space.size - space.categories))
        here = space.one_hot(x, dtype=p.dtype)
        k = torch.as_tensor(expand_time(self.schedule.k(t), p, 1))
        rate = expand_time(self.schedule.dk(t) / self.schedule.remaining(t), p, 1)
        p0 = self._source_probabilities(p)
        return rate * (p - here + corrector * ((1 - k) * p0 + k * p - here))

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
        r"""Jump from time ``t`` to ``s`` with the posterior held fixed.

        The total rate of events of a token, :math:`(1 + \eta) k'/(1-k)` with the corrector's multiple :math:`\eta`, integrates to
        the probability :math:`1 - [(1-k(s))/(1-k(t))]^{1+\eta}` of at least one, whatever the step; the last event decides what
        the token is: a draw of the posterior, or for a part :math:`\eta (1-k)/(1+\eta)` of the source. A step to s = 1 draws
        every token that may change from the posterior.

        Args:
            pred: logits ``(..., K)``.
            x: tokens ``(...)``.
            t, s: scalar times, t < s.
            mask: bool of real tokens; the others stay.
            generator: of every random number.
            how: temperature, order and corrector.
            shift: logarithms ``(..., K)`` of factors on the rates towards every category (guidance): the total rate of a token is
                multiplied by :math:`Z = \sum_y p(y)\, e^{shift(y)}`, and what it becomes is drawn from the tilted posterior.
        """
        pred, event, eta = self._event(pred, x, t, s, shift, how)
        how = how or Jumps()
        jumps = torch.rand(x.shape, generator=generator, dtype=event.dtype, device=x.device) < event
        if mask is not None:
            jumps = jumps & mask
        if not how.has_corrector:
            jumps = jumps & self._may_change(x)
        if how.order == "confidence":
            jumps = self._most_confident(pred, x, jumps, mask, 1 - s, how, generator)
        noise = eta * self.schedule.remaining(s) / (1 + eta) if how.has_corrector else None
        if how.leap == "tau":
            return Move(self._leap(pred, x, jumps, event, s >= 1, noise, how, generator))
        if x.device.type != "cpu":
            return Move(torch.where(jumps, self._new_tokens(pred, x, None, noise, how, generator), x))
        # On the host only the tokens that jump are looked at: of a long grid, a few in a hundred.
        at = jumps.flatten().nonzero().squeeze(-1)
        old = x.flatten()
        new = self._new_tokens(pred, old[at], at, noise, how, generator)
        return Move(old.index_copy(0, at, new).reshape(x.shape))

    def _event(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, shift: Tensor | None, how: Jumps | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of what a token becomes, the probability of an event ``(...)``, and the corrector's multiple."""
        check_forward(t, s)
        eta = (how or Jumps()).corrector_at(t)
        pred = self.logits(pred, x, t)
        rate: Tensor = torch.as_tensor(expand_time(1 + eta, x, 0))
        if shift is not None:
            pred = pred.log_softmax(-1) + shift
            rate = rate * pred.logsumexp(-1).exp()
        left = (1 - torch.as_tensor(expand_time(self.schedule.fraction(t, s), x, 0))).clamp_min(0)
        return pred, 1 - left**rate, eta

    def is_random(self, how: Any = None) -> bool:
        """Jumps are drawn."""
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
        r"""Log-probability of every token's step, ``(...)``: with the probability e of an event and that q of what comes of it,
        :math:`\log[(1 - e)\, \delta_x(y) + e\, q(y)]`."""
        pred, event, eta = self._event(pred, x, t, s, shift, how)
        how = how or Jumps()
        if how.order != "random" or how.leap != "exact":
            raise TypeError("steps in the order of confidence, and tau-leaps, have no log-probability token by token")
        p = probabilities(pred, how.temperature, how.top_p) if how.temperature else _likeliest(pred)
        p = p / p.sum(-1, keepdim=True)
        p = torch.nn.functional.pad(self.posterior(p, x), (0, self.space.size - self.space.categories))
        becomes = p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        if how.has_corrector:
            noise = torch.as_tensor(expand_time(eta * self.schedule.remaining(s) / (1 + eta), x, 0))
            becomes = (1 - noise) * becomes + noise * self._source_probabilities(p)[y]
        else:
            event = torch.where(self._may_change(x), event, 0.0)
        return ((1 - event) * (x == y) + event * becomes).log()

    def _leap(
        self,
        logits: Tensor,
        x: Tensor,
        jumps: Tensor,
        event: Tensor,
        is_end: Tensor,
        noise: Tensor | None,
        how: Jumps,
        generator: torch.Generator | None,
    ) -> Tensor:
        r"""Tau-leaping of tokens: of those with an event, only those move that have one jump to another token, and no more.

        An event draws a token anew, which may be the present one, with probability q. Jumps to others are therefore Poisson with
        mean :math:`m = \Lambda (1 - q)`, where :math:`1 - e^{-\Lambda}` is the probability of an event; one alone has the
        probability :math:`m e^{-m}`. In a step to t = 1 the last event counts. Rows in pieces: no copy of all logits.
        """
        space, rows, old = self.space, logits.reshape(-1, logits.shape[-1]), x.flatten()
        at = jumps.flatten().nonzero().squeeze(-1) if x.device.type == "cpu" else None
        chance = event.expand(x.shape).flatten()
        u = torch.rand(x.shape, generator=generator, dtype=chance.dtype, device=x.device).flatten()
        new = []
        every = torch.arange(len(old), device=x.device) if at is None else at
        for some in every.split(max(1, CHUNK // rows.shape[-1])):
            if how.temperature == 0:
                p = torch.nn.functional.one_hot(rows[some].argmax(-1), rows.shape[-1]).to(chance.dtype)
            else:
                p = probabilities(rows[some], how.temperature, how.top_p)
                p = p / p.sum(-1, keepdim=True)
            here = old[some].unsqueeze(-1)
            p = torch.nn.functional.pad(self.posterior(p, old[some]), (0, space.size - space.categories))
            p = p if noise is None else (1 - noise) * p + noise * self._source_probabilities(p)
            others = p.scatter(-1, here, 0.0)
            total = others.sum(-1)
            is_sure = total <= 0
            drawn = draw_categorical(
                others.scatter(-1, here, is_sure.to(p.dtype).unsqueeze(-1)).log(), generator=generator
            )
            seen = chance[some].clamp(1e-30, 1 - torch.finfo(chance.dtype).eps)
            mean = -torch.log1p(-seen) * total
            alone = torch.where(is_end, total, mean * torch.exp(-mean) / seen)
            new.append(torch.where(u[some] < alone, drawn, old[some]))
        moved = torch.cat(new) if new else old[:0]
        if at is None:
            return torch.where(jumps, moved.reshape(x.shape), x)
        return old.index_copy(0, at, moved).reshape(x.shape)

    def _new_tokens(
        self,
        logits: Tensor,
        x: Tensor,
        at: Tensor | None,
        noise: Tensor | None,
        how: Jumps,
        generator: torch.Generator | None,
    ) -> Tensor:
        drawn = draw_categorical(logits, temperature=how.temperature, top_p=how.top_p, at=at, generator=generator)
        drawn = self.known(drawn, x)
        if noise is None:
            return drawn
        fresh = self._tokens.sample(tuple(x.shape), generator=generator, device=x.device)
        u = torch.rand(x.shape, generator=generator, dtype=noise.dtype, device=x.device)
        return torch.where(u < noise, fresh, drawn)

    def known(self, drawn: Tensor, x: Tensor) -> Tensor:
        """Draws of the clean tokens, those that are known already put back."""
        return drawn

    def guess(self, pred: Tensor, x: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Clean tokens drawn from a prediction, those that are known already put back."""
        return self.known(draw_categorical(self.logits(pred, x, t), generator=generator), x)

    def _may_change(self, x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool)

    def _most_confident(
        self,
        pred: Tensor,
        x: Tensor,
        jumps: Tensor,
        mask: Tensor | None,
        left: Tensor,
        how: Jumps,
        generator: torch.Generator | None,
    ) -> Tensor:
        raise ValueError(
            f"order='confidence' is for Masking; with {type(self).__name__} no token is known before the end"
        )

    @property
    def _tokens(self) -> TokenSource:
        return cast(TokenSource, self.source)

    def _source_probabilities(self, like: Tensor) -> Tensor:
        return self._tokens.probabilities(dtype=like.dtype, device=like.device)

    def mix(self, pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
        r"""Logits of :math:`p_a^w p_b^{1-w}`, the blend of two predictions that guidance needs."""
        return mix_logits(pred_a, pred_b, weight)


def check_forward(t: Tensor, s: Tensor) -> None:
    """Raise if times fall; on the host only, where looking costs nothing.

    Raises:
        ValueError: tokens have no backward sampler.
    """
    if s.device.type == "cpu" and bool((s < t).any()):
        raise ValueError("tokens have no backward sampler: the times must increase")


def _likeliest(logits: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(
        torch.promote_types(logits.dtype, torch.float32)
    )
