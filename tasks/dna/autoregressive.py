"""The usual baseline: letter after letter, from left to right, as one more path of tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.paths import Jumps, Masking
from manifoldflow.paths.base import NoisyPoint
from manifoldflow.state import Move
from manifoldflow.tasks.dna.model import STACK, ConvBlock, SequenceNet


class LeftToRight(Masking):
    r"""Tokens are unmasked in the order of the sequence: :math:`\log p(x) = \sum_i \log p(x_i | x_{<i})`.

    At time t the first t L tokens are known. With a causal network one call gives the terms of all positions, so training shows
    it the clean sequence, the bound of :meth:`manifoldflow.Flow.elbo` is the log-probability itself, and sampling takes one step
    for every letter. Letters that are known in advance (``known=``) are kept, but only those to the left of a letter are seen.
    """

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        return NoisyPoint(x1, t, x1)

    def bound(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The negative log-probability of every token, whatever the time."""
        return self.loss(pred, point)

    def bound_times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Any time gives the same."""
        return u, torch.ones_like(u)

    def _counted(self, value: Tensor, point: NoisyPoint) -> Tensor:
        return value

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
        """Draw the letter whose time lies between ``t`` and ``s``.

        Raises:
            ValueError: several letters' do.
        """
        length = x.shape[-1]
        first, end = round(float(t) * length), round(float(s) * length)
        if end - first > 1:
            raise ValueError(f"an autoregressive model draws one letter a step: use steps={length}")
        if shift is not None:
            pred = pred + shift
        how = how or Jumps()
        here = slice(first, end)
        drawn = x.clone()
        drawn[:, here] = self._new_tokens(pred[:, here], x[:, here], None, None, how, generator)
        return Move(drawn if mask is None else torch.where(mask, drawn, x))


class CausalConvNet(SequenceNet):
    """:class:`manifoldflow.tasks.dna.model.ConvNet` with kernels that reach to the left only.

    The logits of a letter see those before it.

    Args:
        length, classes, categories, width, kernel, dilations, dropout: as there.
    """

    def __init__(
        self,
        length: int,
        classes: int = 0,
        *,
        categories: int = 4,
        width: int = 64,
        kernel: int = 9,
        dilations: tuple[int, ...] = STACK,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(length, classes, categories=categories, width=width)
        self.blocks = nn.ModuleList([ConvBlock(width, kernel, d, dropout, causal=True) for d in dilations])
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, categories))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        cond_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits ``(B, L, K)`` of every letter from those before it; the time says nothing here."""
        before = torch.cat([torch.full_like(x[:, :1], self.categories), x[:, :-1]], 1)
        value, code = self.embed(before, torch.zeros(len(x), device=x.device), cond, cond_mask)
        for block in self.blocks:
            value = block(value, code)
        return self.last(value)
