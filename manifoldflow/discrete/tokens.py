"""The space of tokens: one of K categories, with or without a further one that means "not known yet"."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Whole numbers ``0 .. categories - 1``; with ``mask=True`` also the number ``categories``, the mask token.

    Points are int64 tensors without event axes: a batch of sequences is ``(B, L)``. Data never hold the mask token.

    Args:
        categories: number K of categories.
        mask: whether there is a mask token, the source of :class:`manifoldflow.Masking`.

    Raises:
        ValueError: fewer than two categories.
    """

    categories: int
    mask: bool = False

    event_ndim: ClassVar[int] = 0
    tangent_ndim: ClassVar[int] = 0
    is_discrete: ClassVar[bool] = True
    has_corners: ClassVar[bool] = False
    is_linear: ClassVar[bool] = False
    is_centered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.categories < 2:
            raise ValueError(f"Tokens: categories must be at least 2, got {self.categories}")

    @property
    def size(self) -> int:
        """Number of states, the mask token among them: what an embedding table needs."""
        return self.categories + self.mask

    @property
    def mask_token(self) -> int:
        """The number of the mask token.

        Raises:
            ValueError: this space has none.
        """
        if not self.mask:
            raise ValueError(f"{self} has no mask token; use Tokens({self.categories}, mask=True)")
        return self.categories

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one point: none."""
        return ()

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """The token 0; padding holds it. Always int64, whatever ``dtype`` the rest of a state has."""
        return torch.zeros(*shape, dtype=torch.int64, device=device)

    def check(self, x: Tensor, atol: float = 0.0, *, with_mask: bool | None = None) -> None:
        """Raise if ``x`` does not hold tokens.

        Args:
            x: any shape.
            atol: ignored, tokens are exact.
            with_mask: whether the mask token may occur; as the space says if absent.

        Raises:
            TypeError: not whole numbers.
            ValueError: a number out of range; says which and where.
        """
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"tokens are whole numbers (int64), got {x.dtype}; one-hot points belong to Simplex")
        top = self.size if with_mask is None else self.categories + with_mask
        is_off = (x < 0) | (x >= top)
        if bool(is_off.any()):
            where = is_off.nonzero()[0].tolist()
            raise ValueError(f"token {int(x[tuple(where)])} at {where} is not one of the {top} of {self}")

    def center(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens as they are: they have no mean."""
        return x

    def rotate(self, rotation: Tensor, x: Tensor) -> Tensor:
        """Tokens as they are: they do not turn."""
        return x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """1 where two tokens differ, 0 where they are equal, ``(...)``: summed over a sequence, the Hamming distance."""
        return (x != y).to(torch.get_default_dtype())

    def one_hot(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Tokens as corners of the simplex, ``(..., size)``."""
        made = torch.zeros(*x.shape, self.size, dtype=dtype or torch.get_default_dtype(), device=x.device)
        return made.scatter_(-1, x.unsqueeze(-1), 1.0)
