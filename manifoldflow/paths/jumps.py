r"""Conditional paths of tokens that jump: mixtures of the source and the data point (Campbell et al. 2024; Gat et al. 2024).

.. math:: p_t(x | x_0, x_1) = (1 - k(t))\, \delta_{x_0}(x) + k(t)\, \delta_{x_1}(x)

independently for every token. The network sees x_t and t and predicts the posterior :math:`p_{1|t}` of every clean token
(logits over the K categories). The jump rates of one token from z to y are

.. math:: u_t(y | z) = \frac{k'}{1 - k}\, [p_{1|t}(y | z) - \delta_z(y)],

and any multiple of the corrector's may be added, which leave p_t as it is (they draw the token anew from
:math:`p_t(\cdot | x_1)`, with :math:`x_1` from the posterior):

.. math:: c_t(y | z) = \frac{k'}{1 - k}\, [(1 - k)\, p_0(y) + k\, p_{1|t}(y | z) - \delta_z(y)].
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.discrete import Tokens, draw_categorical, probabilities
from manifoldflow.discrete.draws import CHUNK
from manifoldflow.distributions.tokens import AllMasked, Categorical, TokenSource
from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.logits import NoisyPoint, mix_logits
from manifoldflow.paths.schedule import Linear, Schedule
from manifoldflow.state import where_mask

Objective = Literal["cross_entropy", "elbo"]


@dataclass(frozen=True)
class Jumps:
    r"""How tokens jump: a ``method`` of :meth:`manifoldflow.Flow.sample`. Fields on manifolds take Euler steps meanwhile.

    Args:
        corrector: how much of the corrector's rates is added, a number or a function of time. A token that is already there
            may change again, so errors are mended, at the price of more steps. 0 for none.
        temperature: the predicted logits are divided by it; below 1 likelier and less diverse.
        top_p: tokens are drawn from the likeliest categories that together have this probability.
        order: ``"random"``, or ``"confidence"``: of the tokens that are masked, those first whose likeliest category has the
            largest probability, as many as jump at random otherwise. For :class:`Masking` without corrector.
        confidence_noise: Gumbel noise on the logarithm of the confidence, times the fraction of time that is left; above 0
            samples differ more.
        leap: ``"exact"`` takes the last of the jumps of a step; ``"tau"`` draws Poisson numbers of all jumps as if the first
            changed no rates (Campbell et al. 2022). Where states have an order, counts and levels, such jumps add up; of tokens
            without one, a second jump in a step has no meaning and both are undone. For tokens it is therefore worse whenever
            a step has more than a few jumps, near t = 1 above all: use it there to compare with papers only.
    """

    corrector: float | Callable[[Tensor], Tensor] = 0.0
    temperature: float = 1.0
    top_p: float = 1.0
    order: Literal["random", "confidence"] = "random"
    confidence_noise: float = 0.0
    leap: Literal["exact", "tau"] = "exact"

    def __post_init__(self) -> None:
        if self.leap not in ("exact", "tau"):
            raise ValueError(f"Jumps: leap must be 'exact' or 'tau', got {self.leap!r}")
        if self.leap == "tau" and self.order == "confidence":
            raise ValueError("Jumps: order='confidence' says which tokens jump, so it takes no leap='tau'")
        if not callable(self.corrector) and not self.corrector >= 0:
            raise ValueError(f"Jumps: corrector must be at least 0 or a function of time, got {self.corrector}")
        if not self.temperature >= 0:
            raise ValueError(f"Jumps: temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Jumps: top_p must lie in (0, 1], got {self.top_p}")
        if self.order not in ("random", "confidence"):
            raise ValueError(f"Jumps: order must be 'random' or 'confidence', got {self.order!r}")
        if self.order == "confidence" and (callable(self.corrector) or self.corrector > 0):
            raise ValueError("Jumps: order='confidence' unmasks every token once, so it takes no corrector")

    @property
    def has_corrector(self) -> bool:
        """Whether tokens may change again."""
        return callable(self.corrector) or self.corrector > 0

    def corrector_at(self, t: Tensor) -> Tensor:
        """The corrector's multiple at time ``t``."""
        return self.corrector(t) if callable(self.corrector) else torch.full_like(t, self.corrector)


@dataclass(frozen=True)
class UniformJump:
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
        tokens: the space; filled in by the flow.
    """

    schedule: Schedule = field(default_factory=Linear)
    objective: Objective = "cross_entropy"
    own_evidence: bool = False
    source: TokenSource | None = None
    tokens: Tokens | None = None
    predicts: Literal["logits"] = "logits"

    def __post_init__(self) -> None:
        if self.objective not in ("cross_entropy", "elbo"):
            raise ValueError(
                f"{type(self).__name__}: objective must be 'cross_entropy' or 'elbo', got {self.objective!r}"
            )

    def bind(self, space: Tokens, predicts: str | None = None, source: TokenSource | None = None) -> Any:
        """A copy on ``space`` with ``source``.

        Raises:
            TypeError: the space holds no tokens.
            ValueError: the network is said to predict anything but logits.
        """
        name = type(self).__name__
        if not isinstance(space, Tokens):
            raise TypeError(f"{name} moves tokens, not points of {space}; use mf.Tokens(K)")
        if predicts == "endpoint":
            raise ValueError(f"{name}: the network predicts logits of the clean tokens, not {predicts!r}")
        tokens = self.tokens or space
        return replace(self, tokens=tokens, source=(source or self.source or self.default_source()).bind(tokens))

    def default_source(self) -> TokenSource:
        """Equal probabilities."""
        return Categorical()

    @property
    def space(self) -> Tokens:
        """The space of a bound path."""
        if self.tokens is None:
            raise ValueError(f"this path has no space yet: use {type(self).__name__}().bind(Tokens(K))")
        return self.tokens

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
        gain = torch.log1p(k / (noise * self._source.probabilities(dtype=k.dtype, device=x.device)[x].clamp_min(1e-9)))
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
        how: Jumps | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
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
        if (s < t).any() if s.device.type == "cpu" else False:
            raise ValueError("tokens have no backward sampler: the times must increase")
        how = how or Jumps()
        pred = self.logits(pred, x, t)
        eta = how.corrector_at(t)
        rate: Tensor = 1 + eta
        if shift is not None:
            pred = pred.log_softmax(-1) + shift
            rate = rate * pred.logsumexp(-1).exp()
        event = 1 - (1 - self.schedule.fraction(t, s)).clamp_min(0) ** rate
        jumps = torch.rand(x.shape, generator=generator, dtype=event.dtype, device=x.device) < event
        if mask is not None:
            jumps = jumps & mask
        if not how.has_corrector:
            jumps = jumps & self._may_change(x)
        if how.order == "confidence":
            jumps = self._most_confident(pred, x, jumps, mask, 1 - s, how, generator)
        noise = eta * self.schedule.remaining(s) / (1 + eta) if how.has_corrector else None
        if how.leap == "tau":
            return self._leap(pred, x, jumps, event, s >= 1, noise, how, generator)
        if x.device.type != "cpu":
            return torch.where(jumps, self._new_tokens(pred, x, None, noise, how, generator), x)
        # On the host only the tokens that jump are looked at: of a long grid, a few in a hundred.
        at = jumps.flatten().nonzero().squeeze(-1)
        old = x.flatten()
        return old.index_copy(0, at, self._new_tokens(pred, old[at], at, noise, how, generator)).reshape(x.shape)

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
        fresh = self._source.sample(tuple(x.shape), generator=generator, device=x.device)
        u = torch.rand(x.shape, generator=generator, dtype=noise.dtype, device=x.device)
        return torch.where(u < noise, fresh, drawn)

    def known(self, drawn: Tensor, x: Tensor) -> Tensor:
        """Draws of the clean tokens, those that are known already put back."""
        return drawn

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
    def _source(self) -> TokenSource:
        return self.source if self.source is not None else self.default_source().bind(self.space)

    def _source_probabilities(self, like: Tensor) -> Tensor:
        return self._source.probabilities(dtype=like.dtype, device=like.device)

    def mix(self, pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
        r"""Logits of :math:`p_a^w p_b^{1-w}`, the blend of two predictions that guidance needs."""
        return mix_logits(pred_a, pred_b, weight)


@dataclass(frozen=True)
class Masking(UniformJump):
    """Mixture path from mask tokens: every position is unmasked once (absorbing diffusion in reverse).

    Args:
        schedule, objective, tokens: as for :class:`UniformJump`. The cross-entropy counts masked tokens only; at the others the
            network is not asked.
        source: all masked.
    """

    def bind(self, space: Tokens, predicts: str | None = None, source: TokenSource | None = None) -> Any:
        """As for :class:`UniformJump`, on a space with a mask token.

        Raises:
            ValueError: the space has no mask token, or the source is another one.
        """
        if isinstance(space, Tokens) and not space.mask:
            raise ValueError(f"Masking needs a mask token: use Tokens({space.categories}, mask=True)")
        if source is not None and not isinstance(source, AllMasked):
            raise ValueError(f"Masking starts from mask tokens, not from {source}; use UniformJump for other sources")
        return super().bind(space, predicts, source)

    def default_source(self) -> TokenSource:
        """All masked."""
        return AllMasked()

    def logits(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """As the network returned them: a mask says nothing of the token."""
        return pred

    def posterior(self, probabilities: Tensor, x: Tensor) -> Tensor:
        known = torch.nn.functional.one_hot(x.clamp_max(self.space.categories - 1), self.space.categories)
        return torch.where((x == self.space.mask_token).unsqueeze(-1), probabilities, known.to(probabilities.dtype))

    def _counted(self, value: Tensor, point: NoisyPoint) -> Tensor:
        return torch.where(point.x == self.space.mask_token, value, torch.zeros_like(value))

    def _probability_of(self, log_p: Tensor, x: Tensor) -> Tensor:
        return (x != self.space.mask_token).to(log_p.dtype)

    def known(self, drawn: Tensor, x: Tensor) -> Tensor:
        return torch.where(x == self.space.mask_token, drawn, x)

    def _may_change(self, x: Tensor) -> Tensor:
        return x == self.space.mask_token

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
        """As many tokens as ``jumps`` has in each sequence, those of the most certain predictions."""
        count = jumps.sum(-1, keepdim=True)
        confidence = pred.amax(-1) - pred.logsumexp(-1)
        if how.confidence_noise > 0:
            u = torch.rand(x.shape, generator=generator, dtype=confidence.dtype, device=x.device)
            confidence = confidence - how.confidence_noise * left * (-(u.clamp_min(1e-20)).log()).log()
        confidence = where_mask(mask, confidence, torch.full_like(confidence, -torch.inf))
        confidence = confidence.masked_fill(x != self.space.mask_token, -torch.inf)
        rank = confidence.argsort(-1, descending=True).argsort(-1)
        return rank < count
