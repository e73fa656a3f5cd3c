"""Crystals as a flow's batches: cells per atom, crystals of like size together."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifoldflow.tasks.crystals.structure import Crystals


def per_atom(lattice: Tensor, count: Tensor) -> Tensor:
    """Metric tensors ``(B, 3, 3)`` of cells of ``count`` atoms, for one atom: over the count to the power 2/3.

    The volume of the cell that they mean is the volume per atom, so crystals of all sizes share a source.
    """
    return lattice / count.to(lattice.dtype).clamp_min(1).pow(2 / 3)[:, None, None]


def whole(lattice: Tensor, count: Tensor) -> Tensor:
    """The inverse of :func:`per_atom`."""
    return lattice * count.to(lattice.dtype).clamp_min(1).pow(2 / 3)[:, None, None]


def state_of(crystals: Crystals) -> dict[str, Tensor]:
    """Crystals as a state of the flow."""
    return {**crystals.state, "lattice": per_atom(crystals.lattice, crystals.mask.sum(-1))}


def crystals_of(state: dict[str, Tensor], mask: Tensor) -> Crystals:
    """A state of the flow as crystals; padding holds zeros."""
    return Crystals(
        torch.where(mask, state["species"], 0),
        torch.where(mask.unsqueeze(-1), state["frac"], 0.0),
        whole(state["lattice"], mask.sum(-1)),
        mask,
    )


class SizedBatches:
    """Batches of crystals of about one size, with a bounded number of pairs of atoms; a batch depends on seed and number alone.

    Crystals are sorted by size, blurred so that batches differ between epochs, cut into batches and shuffled.

    Args:
        sizes: atoms of each crystal.
        batch: crystals in a batch, at most.
        max_pairs: bound on B N^2, what a network's time grows with.
        seed: of the order.
    """

    def __init__(self, sizes: Sequence[int], batch: int, max_pairs: int, seed: int = 0) -> None:
        self.sizes = np.asarray(sizes)
        if len(self.sizes) == 0:
            raise ValueError("no crystals to make batches of")
        if int(self.sizes.max()) ** 2 > max_pairs:
            raise ValueError(f"max_pairs is {max_pairs}, but one crystal of {self.sizes.max()} atoms has more")
        self.batch, self.max_pairs, self.seed = batch, max_pairs, seed

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of an epoch, indices of crystals."""
        rng = np.random.default_rng((self.seed, number))
        order = np.argsort(self.sizes + rng.uniform(-1.5, 1.5, len(self.sizes)), kind="stable")
        order = np.roll(order, rng.integers(len(order)))  # so that the cuts fall elsewhere
        made: list[np.ndarray] = []
        start, longest = 0, 0
        for end in range(len(order)):
            longest = max(longest, int(self.sizes[order[end]]))
            if end - start + 1 > self.batch or (end - start + 1) * longest**2 > self.max_pairs:
                made.append(order[start:end])
                start, longest = end, int(self.sizes[order[end]])
        made.append(order[start:])
        return [made[i] for i in rng.permutation(len(made))]

    def from_number(self, start: int) -> Iterator[np.ndarray]:
        """Batches for ever, from the ``start``-th on."""
        number, passed = 0, 0
        while True:
            batches = self.epoch(number)
            if passed + len(batches) > start:
                yield from batches[max(0, start - passed) :]
            passed, number = passed + len(batches), number + 1


def trimmed(crystals: Crystals) -> Crystals:
    """Without columns that are padding in all rows."""
    longest = int(crystals.mask.sum(-1).max())
    return Crystals(
        crystals.species[:, :longest], crystals.frac[:, :longest], crystals.lattice, crystals.mask[:, :longest]
    )


def training_batches(crystals: Crystals, batch: int, max_pairs: int, seed: int = 0) -> Any:
    """A function for :func:`manifoldflow.training.fit`: from a number to the batches from there on."""
    sizes = crystals.mask.sum(-1).tolist()
    sized = SizedBatches(sizes, batch, max_pairs, seed)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for rows in sized.from_number(start):
            some = trimmed(crystals.rows(torch.as_tensor(rows)))
            yield {"x": state_of(some), "mask": some.mask}

    return batches
