"""Parts of a set of crystals that share no composition: polymorphs stay on one side."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from manifoldflow.tasks.common.splits import Split


def split_by_formula(formulas: Sequence[str], val: float = 0.1, test: float = 0.1, salt: str = "") -> Split:
    """Rows by a hash of their reduced formula: the same formula falls on the same side whatever else is in the set.

    The formulas of :class:`manifoldflow.tasks.crystals.structure.Crystal` are in one order of elements, so both ways to put
    A and B into a perovskite are one formula.

    Args:
        formulas: one per crystal.
        val, test: shares that are wanted.
        salt: another one gives another split.

    Raises:
        ValueError: shares that are negative or add up to 1 or more.
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise ValueError(f"shares must be at least 0 and add up to less than 1, got val {val} and test {test}")
    places = [
        int.from_bytes(hashlib.sha256((salt + formula).encode()).digest()[:6], "big") / 2**48 for formula in formulas
    ]
    rows = torch.tensor(places, dtype=torch.float64)
    is_test, is_val = rows < test, (rows >= test) & (rows < test + val)
    where = [(~is_test & ~is_val), is_val, is_test]
    return Split(*(part.nonzero().squeeze(-1) for part in where))


def formulas_of(crystals: Any) -> list[str]:
    """Reduced formulas of a data set or of crystals."""
    return list(crystals.formulas) if hasattr(crystals, "formulas") else [c.formula for c in crystals]
