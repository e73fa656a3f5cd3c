"""Crystals as a flow's batches: cells per atom, crystals of like size together."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.spd import matrix_exp, matrix_log, symmetric_basis
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.crystals.elements import ELEMENTS
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


class Guesses(NamedTuple):
    """Pairs of a guess and the truth, see :mod:`manifoldflow.tasks.crystals.pairs`.

    Args:
        rows: of the truths in the training set, ``(P,)``.
        crystals: the guesses, atoms in the order of the truth's.
        share: of the batches that start from guesses.
        blur: standard deviation of noise on their coordinates (turns) and on the logarithms of their metric tensors, so that the
            flow learns a neighbourhood.
    """

    rows: Tensor
    crystals: Crystals
    share: float = 0.5
    blur: float = 0.02


def training_batches(
    crystals: Crystals, batch: int, max_pairs: int, seed: int = 0, guesses: Guesses | None = None
) -> Any:
    """A function for :func:`manifoldflow.training.fit`: from a number to the batches from there on.

    With ``guesses`` a share of the batches starts from them (``x0``), and all are told which they are
    (``cond={"prototype": ...}``).
    """
    sized = SizedBatches(crystals.mask.sum(-1).tolist(), batch, max_pairs, seed)
    if guesses is None:
        told = None
    else:
        told = SizedBatches(guesses.crystals.mask.sum(-1).tolist(), batch, max_pairs, seed + 1)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        if guesses is None or told is None:
            for rows in sized.from_number(start):
                some = trimmed(crystals.rows(torch.as_tensor(rows)))
                yield {"x": state_of(some), "mask": some.mask}
            return
        plain, paired = sized.from_number(start), told.from_number(start)
        number = start
        while True:
            is_paired = np.random.default_rng((seed, 7, number)).random() < guesses.share
            own, pairs = torch.as_tensor(next(plain)), torch.as_tensor(next(paired))
            some = trimmed(crystals.rows(guesses.rows[pairs] if is_paired else own))
            made: dict[str, Any] = {"x": state_of(some), "mask": some.mask}
            if is_paired:
                made["x0"] = start_from(trimmed(guesses.crystals.rows(pairs)), guesses.blur, generator_of(seed, number))
            made["cond"] = {"prototype": torch.full((len(some.mask),), float(is_paired))}
            yield made
            number += 1

    return batches


def start_from(guesses: Crystals, blur: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Guesses as source points of the flow, blurred; all species masked."""
    state = state_of(guesses)
    frac = state["frac"] + blur * torch.randn(state["frac"].shape, generator=generator, dtype=state["frac"].dtype)
    noise = torch.randn(len(guesses.mask), 6, generator=generator, dtype=torch.float64)
    log = matrix_log(state["lattice"].double()) + blur * torch.einsum(
        "bk,kij->bij", noise, symmetric_basis(3, torch.float64)
    )
    lattice = matrix_exp(log).to(state["lattice"].dtype)
    return {
        "species": torch.where(guesses.mask, ELEMENTS, 0),
        "frac": torch.where(guesses.mask.unsqueeze(-1), mf.Torus(3).project(frac), 0.0),
        "lattice": 0.5 * (lattice + lattice.mT),
    }
