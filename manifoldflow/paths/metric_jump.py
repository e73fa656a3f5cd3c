"""A path of tokens along a distance between categories (Shaul et al. 2024): near ones are reached before far ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.discrete import draw_categorical, probabilities
from manifoldflow.distributions.tokens import Categorical
from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import NoisyPoint
from manifoldflow.paths.how import Jumps
from manifoldflow.paths.jumps import UniformJump, check_forward
from manifoldflow.state import Move

Distance = Literal["ordinal", "cyclic"] | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MetricJump(UniformJump):
    r"""Tokens from the law :math:`p_t(x | x_1) \propto e^{-\beta_t d(x, x_1)}`, uniform at t = 0 and certain at t = 1.

    With :math:`\beta_t = c\, (t / (1 - t))^a` and the kinetic-optimal conditional rates (Shaul et al. 2024, eq. 16)

    .. math:: u_t(y | z, x_1) = p_t(y | x_1)\, \beta'_t\, [d(z, x_1) - d(y, x_1)]_+

    a token only ever moves nearer to its data. The network predicts logits of the clean token. For levels of a signal, ages,
    quantised angles: wherever being off by one is better than being off by many.

    Args:
        distance: ``"ordinal"``: \|x - y\| / (K - 1); ``"cyclic"``: the same around a circle of K; or a function of two tensors
            of tokens, not negative, 0 only for equal ones.
        scale, power: c and a.
        objective, source, manifold: as for :class:`UniformJump`; the source is uniform.
    """

    distance: Distance = "ordinal"
    scale: float = 10.0
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0 or not self.power > 0:
            raise ValueError(f"MetricJump: scale and power must be positive, got {self.scale} and {self.power}")
        if self.distance not in ("ordinal", "cyclic") and not callable(self.distance):
            raise ValueError(f"MetricJump: distance must be 'ordinal', 'cyclic' or a function, got {self.distance!r}")

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """As for :class:`UniformJump`.

        Raises:
            ValueError: a mask token, or a source that is not uniform.
        """
        if space.is_discrete and space.mask:
            raise ValueError("MetricJump has no mask token: use mf.Tokens(K)")
        if source is not None and not (isinstance(source, Categorical) and source.weights is None):
            raise ValueError(f"MetricJump starts from uniform tokens, not from {source}")
        return super().bind(space, predicts, source)

    def logits(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """With ``own_evidence`` the network's logits and :math:`\\log p_t(x | x_1)` of all clean tokens."""
        if not self.own_evidence:
            return pred
        k = self.space.categories
        d = self.distances(torch.arange(k, device=x.device), pred.dtype)  # (x1, x)
        level = torch.as_tensor(expand_time(self.beta(t), pred, 1)).to(pred.dtype)
        # log Z depends on x1 where the ends of a scale are not alike
        normaliser = torch.logsumexp(-level.unsqueeze(-1) * d, -1)
        return pred - level * d[:, x].movedim(0, -1) - normaliser

    def distances(self, x1: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Distances of all categories to ``x1`` ``(...)``, ``(..., K)``."""
        k = self.space.categories
        every = torch.arange(k, device=x1.device)
        if callable(self.distance):
            return self.distance(every, x1.unsqueeze(-1)).to(dtype or torch.get_default_dtype())
        gap = (every - x1.unsqueeze(-1)).abs()
        gap = torch.minimum(gap, k - gap) if self.distance == "cyclic" else gap
        return gap.to(dtype or torch.get_default_dtype()) / (k - 1)

    def beta(self, t: Tensor) -> Tensor:
        """The inverse temperature at time ``t``; at most 1e9."""
        return (self.scale * (t / (1 - t).clamp_min(1e-12)) ** self.power).clamp_max(1e9)

    def beta_rate(self, t: Tensor) -> Tensor:
        """Its derivative, at t < 1."""
        left = (1 - t).clamp_min(1e-12)
        return self.scale * self.power * (t / left) ** (self.power - 1) / left**2

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        """A draw of p_t given ``x1``; ``x0`` is unused but for its shape."""
        level = torch.as_tensor(expand_time(self.beta(t), x1, 0)).unsqueeze(-1)
        x = draw_categorical(-level * self.distances(x1, t.dtype), generator=generator)
        return NoisyPoint(torch.where(torch.as_tensor(expand_time(t, x1, 0)) >= 1, x1, x), t, x1)

    def conditional_rates(self, x: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """Rates ``(..., K)`` from the tokens ``x`` towards those nearer to ``x1``; 0 at the present ones."""
        d = self.distances(x1, t.dtype)
        p = torch.softmax(-torch.as_tensor(expand_time(self.beta(t), d, 1)) * d, -1)
        gain = (d.gather(-1, x.unsqueeze(-1)) - d).clamp_min(0)
        return torch.as_tensor(expand_time(self.beta_rate(t), d, 1)) * p * gain

    def rates(self, probabilities: Tensor, x: Tensor, t: Tensor, *, corrector: float = 0.0) -> Tensor:
        """The mean of the conditional rates over the posterior; costs K times as much as :meth:`advance`."""
        if corrector:
            raise ValueError("MetricJump has no corrector")
        k = self.space.categories
        every = torch.arange(k, device=x.device).expand(*x.shape, k)
        each = self.conditional_rates(x.unsqueeze(-1).expand_as(every), every, t)
        total = (probabilities.unsqueeze(-1) * each).sum(-2)
        return total - self.space.one_hot(x, dtype=total.dtype) * total.sum(-1, keepdim=True)

    def bound(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The integrand of the negative evidence bound per token, from all rates."""
        p = self.logits(pred, point.x, point.t).softmax(-1, dtype=torch.promote_types(pred.dtype, torch.float32))
        t = point.t.to(p.dtype)
        ours, truth = self.rates(p, point.x, t), self.conditional_rates(point.x, point.endpoint, t)
        ours = ours.clamp_min(0)  # the entry of the present token is minus the sum of the others
        part = torch.special.xlogy(truth, truth / ours.clamp_min(1e-30)) - truth + ours
        return part.sum(-1)

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
        """Draw the clean token from the posterior, then jump with its conditional rates; at s = 1 land on it.

        ``Jumps(leap="tau")`` draws Poisson numbers of jumps to all tokens and adds up their lengths, along the scale (and not
        beyond its ends) or around the circle.
        """
        how = how or Jumps()
        self._check_how(how)
        check_forward(t, s)
        pred = self.logits(pred, x, t)
        logits = pred if shift is None else pred.log_softmax(-1) + shift
        x1 = draw_categorical(logits, temperature=how.temperature, top_p=how.top_p, generator=generator)
        rates = self._step_rates(x, x1, t, s)
        if how.leap == "tau":
            jumped = self._leapt(rates, x, generator)
        else:
            total = rates.sum(-1)
            u = torch.rand(x.shape, generator=generator, dtype=total.dtype, device=x.device)
            # a token that is there already has no rates: it is drawn, and stays
            drawn = rates.scatter(-1, x.unsqueeze(-1), (total <= 0).to(rates.dtype).unsqueeze(-1))
            jumped = torch.where(u < -torch.expm1(-total), draw_categorical(drawn.log(), generator=generator), x)
        moved = torch.where(s >= 1, x1, jumped)
        return Move(moved if mask is None else torch.where(mask, moved, x))

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
        """Log-probability of every token's step: the mean over all clean tokens that may have been drawn; K times as dear as
        the step."""
        how = how or Jumps()
        self._check_how(how)
        if how.leap != "exact":
            raise TypeError("tau-leaps have no log-probability in closed form")
        pred = self.logits(pred, x, t)
        p = probabilities(pred if shift is None else pred.log_softmax(-1) + shift, how.temperature, how.top_p)
        p = p / p.sum(-1, keepdim=True)
        k = self.space.categories
        every = torch.arange(k, device=x.device).expand(*x.shape, k)
        rates = self._step_rates(x.unsqueeze(-1).expand_as(every), every, t, s)  # (..., x1, y)
        total = rates.sum(-1)
        there = torch.where(
            total > 0, rates / total.clamp_min(1e-30).unsqueeze(-1) * -torch.expm1(-total).unsqueeze(-1), 0
        )
        stays = torch.exp(-total)
        to_y = there.gather(-1, y[..., None, None].expand(*y.shape, k, 1)).squeeze(-1)
        to_y = to_y + stays * (x == y).unsqueeze(-1)
        to_y = torch.where(s >= 1, (every == y.unsqueeze(-1)).to(to_y.dtype), to_y)
        return (p * to_y).sum(-1).log()

    def _check_how(self, how: Jumps) -> None:
        if how.has_corrector or how.order != "random":
            raise ValueError("MetricJump takes leap, temperature and top_p of Jumps, no corrector and no order")
        if how.leap == "tau" and callable(self.distance):
            raise ValueError("leap='tau' adds up jumps, so it needs distance='ordinal' or 'cyclic'")

    def _step_rates(self, x: Tensor, x1: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Rates ``(..., K)`` times the length of the step: taken in its middle, and as a difference of betas, exact for the
        total pull, whatever the step."""
        middle = 0.5 * (t + s.clamp_max(1 - 1e-6))
        gained = (self.beta(s) - self.beta(t)) / self.beta_rate(middle)
        rates = self.conditional_rates(x, x1, middle)
        return rates * expand_time(gained, rates, 1)

    def _leapt(self, mean: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Tokens after Poisson numbers of jumps with these means, ``(..., K)``."""
        k = self.space.categories
        length = torch.arange(k, device=x.device) - x.unsqueeze(-1)
        if self.distance == "cyclic":
            length = (length + k // 2) % k - k // 2
        moved = x + (torch.poisson(mean, generator=generator).to(x.dtype) * length).sum(-1)
        return moved % k if self.distance == "cyclic" else moved.clamp(0, k - 1)
