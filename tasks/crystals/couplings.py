"""Noise that starts near: atoms of the source change places and shift together until they are closest to those of the data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifoldflow.coupling import Permute
from manifoldflow.discrete import Tokens
from manifoldflow.manifolds import Torus
from manifoldflow.state import fields, like


@dataclass(frozen=True)
class AtomOT:
    """Optimal transport inside of every crystal: the source's coordinates are permuted and shifted onto the data's.

    Both are symmetries of a crystal, so the law of the source as a crystal stays what it was, and paths become shorter. Atoms
    change places within a species, where the species are given; ``across`` lets all change places, with their source species,
    for de novo generation, where an atom is what it becomes. The squared distance on the torus is what is made least, by
    permuting (exact assignment, batched) and shifting (the mean difference) in turn, from the circular mean on.

    Args:
        rounds: of permuting and shifting.
        across: atoms change places whatever their species.
    """

    rounds: int = 2
    across: bool = False
    is_independent: ClassVar[bool] = False
    keeps_frame: ClassVar[bool] = True
    """What is pinned (species, a lattice) does not change by it, so it may be used there."""

    def __call__(
        self,
        x0: Any,
        x1: Any,
        *,
        spaces: Any = None,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
        pinned: Mapping[str, Tensor | None] | None = None,
    ) -> tuple[Any, Any]:
        a, b = fields(x0), fields(x1)
        kinds = None if self.across else b["species"]
        fixed = pinned.get("species") if pinned is not None else None
        if fixed is not None and self.across:
            kinds = torch.where(fixed, b["species"] + 1, 0)  # those that are given stay within their kind
        moved = align_atoms(a["frac"], b["frac"], kinds, mask, self.rounds)
        held = pinned.get("frac") if pinned is not None else None
        if held is not None:  # where some atoms are given, so is the frame
            moved = torch.where(held.any(-1)[:, None, None], a["frac"], moved)
        return like({**a, "frac": moved}, x0), x1


def align_atoms(frac0: Tensor, frac1: Tensor, kinds: Tensor | None, mask: Tensor | None, rounds: int = 2) -> Tensor:
    """``frac0`` permuted within kinds and shifted, each crystal as a whole, to be near ``frac1``.

    Args:
        frac0, frac1: ``(B, N, 3)``.
        kinds: ``(B, N)`` whole numbers; only atoms of one kind change places. None where all may.
        mask: bool ``(B, N)``.
        rounds: of permuting and shifting.

    Returns:
        ``(B, N, 3)`` in [0, 1).
    """
    real = torch.ones(frac0.shape[:2], dtype=torch.bool, device=frac0.device) if mask is None else mask
    weight = real.unsqueeze(-1).to(frac0.dtype)
    kind = torch.zeros_like(real, dtype=torch.int64) if kinds is None else kinds
    kind = torch.where(real, kind, -1)
    count = weight.sum(1, keepdim=True).clamp_min(1)
    x = (frac0 + _circular_mean(frac1 - frac0, weight)).remainder(1)
    spaces: Any = {"frac": Torus(3), "kind": Tokens(2)}
    for _ in range(rounds):
        moved: Any = _PERMUTE({"frac": x, "kind": kind}, {"frac": frac1, "kind": kind}, spaces=spaces, mask=real)[0]
        x = moved["frac"]
        for _ in range(2):
            x = x + (_short(frac1 - x) * weight).sum(1, keepdim=True) / count
    x = x.remainder(1)
    return torch.where(real.unsqueeze(-1), torch.where(x >= 1, 0.0, x), torch.zeros_like(x))


_PERMUTE = Permute("frac", within="kind")


def _short(gap: Tensor) -> Tensor:
    return gap - gap.round()


def _circular_mean(gap: Tensor, weight: Tensor) -> Tensor:
    angle = 2 * torch.pi * gap
    return torch.atan2((angle.sin() * weight).sum(1, keepdim=True), (angle.cos() * weight).sum(1, keepdim=True)) / (
        2 * torch.pi
    )
