"""Tokens that start as masks and are unmasked once each (absorbing diffusion in reverse; Campbell et al. 2024)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldflow.distributions.tokens import AllMasked, TokenSource
from manifoldflow.paths.base import NoisyPoint
from manifoldflow.paths.how import Jumps
from manifoldflow.paths.jumps import UniformJump
from manifoldflow.state import where_mask


@dataclass(frozen=True)
class Masking(UniformJump):
    """Mixture path from mask tokens: every position is unmasked once (absorbing diffusion in reverse).

    Args:
        schedule, objective, manifold: as for :class:`UniformJump`. The cross-entropy counts masked tokens only; at the others the
            network is not asked.
        source: all masked.
    """

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """As for :class:`UniformJump`, on a space with a mask token.

        Raises:
            ValueError: the space has no mask token, or the source is another one.
        """
        if space.is_discrete and not space.mask:
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
