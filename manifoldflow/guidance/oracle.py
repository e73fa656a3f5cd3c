"""Guidance by a score of sequences or by a classifier of noisy ones."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manifoldflow.flow import Flow
from manifoldflow.guidance.base import Guided
from manifoldflow.state import State, fields, like

Score = Callable[[Tensor], Tensor]


class Oracle(Guided):
    r"""Tilts the predicted clean categories towards a larger score f, in every representation that predicts logits.

    The law of the samples is to become :math:`p(x)\, e^{w f(x)}`. To first order in the predicted probabilities
    :math:`\hat p`, which all positions share,

    .. math:: \hat p'(x_i = y) \propto \hat p(x_i = y)\, \exp\!\Big(w\, \frac{\partial f}{\partial \hat p_{iy}}(\hat p)\Big),

    which is exact where f is a sum over positions **and** the positions are independent of each other given the noisy sequence.
    Where they depend on each other it is an approximation even for such an f: the tilt of one token says something of the others,
    which the network cannot know (two dependent tokens: total variation 0.155 to the tilted law, where
    :class:`Particles` reach 0.02). Use particles where the law matters, this where a high score does: no gradient goes through
    the network, and f need not know noise; it must take probabilities (a motif's expected score does, and so does a classifier
    that was trained on one-hot sequences).

    Args:
        flow: of tokens or of a simplex with logits.
        score: f: probabilities ``(B, L, K)`` -> ``(B,)``, differentiable.
        scale: w.
        field: which field; the only one if absent.
    """

    def __init__(self, flow: Flow, score: Score, scale: float = 1.0, *, field: str | None = None) -> None:
        name = _logit_field(flow, field)
        super().__init__(flow, _Tilt(flow, score, scale, name))


class _Tilt(nn.Module):
    def __init__(self, flow: Flow, score: Score, scale: float, name: str) -> None:
        super().__init__()
        self.flow, self.score, self.scale, self.name = flow, score, scale, name

    def forward(
        self,
        x: State,
        t: Any,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        previous: State | None = None,
    ) -> State:
        pred = self.flow.predict(x, t, mask=mask, cond=cond, previous=previous)
        made, path = fields(pred), self.flow.path[self.name]
        logits = made[self.name]
        with torch.enable_grad():
            time = t[self.name] if isinstance(t, dict) else t
            p = path.logits(logits.detach(), fields(x)[self.name], time).softmax(-1)
            p = path.posterior(p, fields(x)[self.name])  # tokens that are there already count as they are
            p = p.requires_grad_(True)
            value = self.score(p)
            if value.shape != p.shape[:1]:
                raise ValueError(
                    f"the score must return one number a sample, {tuple(p.shape[:1])}, got {tuple(value.shape)}"
                )
            (slope,) = torch.autograd.grad(value.sum(), p)
        made[self.name] = logits + self.scale * slope
        return like(made, pred)


class NoisyClassifier(Guided):
    r"""Jump rates of tokens multiplied by what a classifier of *noisy* sequences says (Nisonoff et al. 2024):

    .. math:: u_t(y | z, c) = u_t(y | z) \left(\frac{p_t(c | y)}{p_t(c | z)}\right)^w

    for all sequences y that differ from z in one token. With the exact classifier and w = 1 samples of :class:`Masking` have the
    law given c. Those of :class:`UniformJump` nearly do: a token that is there already may be noise, so what it says of c is
    less than what a known token would (the exact factor is :math:`p(c | z, x_1^i = y)`, which no classifier of x_t gives).

    Args:
        flow: of tokens.
        log_p: ``(x, t) -> (B,)``, log p(c | x_t) of noisy sequences x ``(B, L)`` (mask tokens among them) at times ``(B,)``.
            For ``method="gradient"`` it takes one-hot sequences ``(B, L, size)`` and must be differentiable.
        scale: w.
        method: ``"exact"`` asks the classifier about every change, L (K - 1) sequences a step; ``"gradient"`` expands to first
            order, one backward pass.
        chunk: sequences per call of the classifier.
    """

    def __init__(
        self,
        flow: Flow,
        log_p: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
        *,
        method: Literal["exact", "gradient"] = "exact",
        chunk: int = 4096,
        field: str | None = None,
    ) -> None:
        super().__init__(flow)
        self.name = _logit_field(flow, field)
        if not flow.path[self.name].jumps:
            raise TypeError("NoisyClassifier multiplies jump rates, so it is for tokens; a simplex has Oracle")
        if method not in ("exact", "gradient"):
            raise ValueError(f"method must be 'exact' or 'gradient', got {method!r}")
        self.log_p, self.scale, self.method, self.chunk = log_p, scale, method, chunk

    def rate_shift(self, name: str, x: State, t: Tensor, mask: Tensor | None, cond: Any) -> Tensor | None:
        below = super().rate_shift(name, x, t, mask, cond)
        if name != self.name:
            return below
        own = self.scale * self._change(name, x, t)
        return own if below is None else below + own

    def _change(self, name: str, x: State, t: Tensor) -> Tensor:
        """log p(c | y) - log p(c | z) for every change of one token, ``(B, L, K)``."""
        tokens = fields(x)[name]
        space = self.path[name].space
        time = t.expand(tokens.shape[0])
        if self.method == "gradient":
            with torch.enable_grad():
                hot = space.one_hot(tokens, dtype=t.dtype).requires_grad_(True)
                (slope,) = torch.autograd.grad(self.log_p(hot, time).sum(), hot)
            change = slope - slope.gather(-1, tokens.unsqueeze(-1))
            return change[..., : space.categories]
        batch, length = tokens.shape
        here = self.log_p(tokens, time)
        count = length * space.categories
        position = torch.arange(count, device=tokens.device) // space.categories
        category = torch.arange(count, device=tokens.device) % space.categories
        parts = []
        for at in torch.arange(batch * count, device=tokens.device).split(self.chunk):
            row, change = at // count, at % count
            changed = tokens[row].scatter(1, position[change].unsqueeze(1), category[change].unsqueeze(1))
            parts.append(self.log_p(changed, time[row]) - here[row])
        return torch.cat(parts).reshape(batch, length, space.categories)


def _logit_field(flow: Flow, field: str | None) -> str:
    """The field whose categories are steered.

    Raises:
        ValueError: no such field, several to choose from, or one without logits.
    """
    able = [n for n, p in flow.path.items() if p.predicts == "logits"]
    if field is not None and field not in able:
        raise ValueError(f"field {field!r} predicts no logits; those that do: {', '.join(able) or 'none'}")
    if field is None and len(able) != 1:
        raise ValueError(f"say which field= to steer, one of: {', '.join(able) or 'none predicts logits'}")
    return field or able[0]
