"""Sources of tokens."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from manifoldflow.discrete import Tokens
from manifoldflow.state import where_mask


class TokenSource:
    """What sources of tokens have in common: ``sample`` and ``log_prob`` as for every distribution, in int64.

    A frozen dataclass with a field ``tokens``, the space, which :class:`manifoldflow.Flow` fills in.
    """

    if TYPE_CHECKING:  # a field of every subclass, which sets its place among the arguments

        @property
        def tokens(self) -> Tokens | None: ...

    def bind(self, space: Tokens) -> Self:
        """A copy on ``space``; a source that already has one is returned as it is."""
        own: Any = self
        return self if self.tokens is not None else replace(own, tokens=space)

    @property
    def space(self) -> Tokens:
        """The space of a bound source."""
        if self.tokens is None:
            raise ValueError(f"this {type(self).__name__} has no space yet: use source.bind(Tokens(K))")
        return self.tokens

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Independent tokens ``shape``, int64; 0 at padding. ``dtype`` is that of the rest of the state, ignored here."""
        x = self._draw(tuple(shape), generator, device)
        return where_mask(mask, x, torch.zeros_like(x))

    def log_prob(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Log-probability of every token, ``x.shape``; 0 at padding."""
        table = self.probabilities(device=x.device).log()
        value = table[x]
        return where_mask(mask, value, torch.zeros_like(value))

    def probabilities(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """Probabilities of all tokens, ``(size,)``."""
        raise NotImplementedError

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None, device: Any) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class AllMasked(TokenSource):
    """Every token is the mask token.

    Args:
        tokens: the space; filled in by the flow.
    """

    tokens: Tokens | None = None

    def probabilities(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        p = torch.zeros(self.space.size, dtype=dtype, device=device)
        p[self.space.mask_token] = 1.0
        return p

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None, device: Any) -> Tensor:
        return torch.full(shape, self.space.mask_token, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Categorical(TokenSource):
    """Independent tokens with given probabilities; the mask token never comes.

    Args:
        weights: one per category, not negative, such as the letter frequencies of the data; equal if absent.
        tokens: the space; filled in by the flow.

    Raises:
        ValueError: weights that are negative, not finite, or all zero, or not one per category.
    """

    weights: tuple[float, ...] | None = None
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        w = self.weights
        if w is not None and (not all(math.isfinite(v) and v >= 0 for v in w) or sum(w) <= 0):
            raise ValueError(f"Categorical: weights must be finite and not negative, some above 0, got {w}")
        if w is not None and self.tokens is not None and len(w) != self.tokens.categories:
            raise ValueError(f"Categorical: {len(w)} weights for {self.tokens.categories} categories")

    def probabilities(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        space = self.space
        p = torch.zeros(space.size, dtype=dtype, device=device)
        if self.weights is None:
            p[: space.categories] = 1 / space.categories
        else:
            w = torch.tensor(self.weights, dtype=dtype, device=device)
            p[: space.categories] = w / w.sum()
        return p

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None, device: Any) -> Tensor:
        if self.weights is None:
            return torch.randint(self.space.categories, shape, generator=generator, device=device)
        running = self.probabilities(dtype=torch.float64, device=device).cumsum(0)
        u = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        return torch.searchsorted(running, u, right=True).clamp_max(self.space.categories - 1)
