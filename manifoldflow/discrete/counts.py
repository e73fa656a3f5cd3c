"""The space of counts: whole numbers from 0 on, with or without a largest one."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from manifoldflow.discrete.tokens import Tokens

_ENDLESS = 2**62  # the number of categories where there is no largest count: nothing may be allocated for them


@dataclass(frozen=True)
class Counts(Tokens):
    """Whole numbers ``0 .. largest``: tokens whose order and sums have a meaning, for :class:`manifoldflow.BirthDeath`.

    Points are int64 tensors without event axes, as those of :class:`Tokens`; numbers of events, of reads, levels of a pixel.

    Args:
        largest: the largest count; None for no bound, where networks predict a mean in place of logits.

    Raises:
        ValueError: a largest count below 1.
    """

    categories: int = field(init=False, repr=False)
    mask: bool = field(init=False, repr=False, default=False)
    largest: int | None = None

    def __post_init__(self) -> None:
        if self.largest is not None and self.largest < 1:
            raise ValueError(f"Counts: largest must be at least 1, got {self.largest}")
        object.__setattr__(self, "categories", _ENDLESS if self.largest is None else self.largest + 1)

    def check(self, x: Tensor, atol: float = 0.0, *, with_mask: bool | None = None) -> None:
        """Raise if ``x`` does not hold counts.

        Args:
            x: any shape.
            atol, with_mask: ignored; counts are exact and have no mask token.

        Raises:
            TypeError: not whole numbers.
            ValueError: a number out of range; says which and where.
        """
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"counts are whole numbers (int64), got {x.dtype}")
        is_off = (x < 0) | (x >= self.categories)
        if bool(is_off.any()):
            where = is_off.nonzero()[0].tolist()
            bound = "" if self.largest is None else f" and at most {self.largest}"
            raise ValueError(f"count {int(x[tuple(where)])} at {where} is off: counts are at least 0{bound}")

    def one_hot(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Counts as corners of the simplex, ``(..., largest + 1)``.

        Raises:
            ValueError: without a largest count there is none.
        """
        if self.largest is None:
            raise ValueError("counts without a largest one have no one-hot form: use Counts(largest)")
        return super().one_hot(x, dtype)
