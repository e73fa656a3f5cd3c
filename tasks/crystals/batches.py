"""Crystals as a flow's batches: cells per atom, crystals of like size together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.spd import matrix_exp, matrix_log, symmetric_basis
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.crystals.conditions import SPACE_GROUP, hide
from manifoldflow.tasks.crystals.elements import COVALENT, ELEMENTS
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


class Exchange(NamedTuple):
    """Augmentation: training crystals whose elements are each exchanged for one like it, volumes scaled by the radii.

    What substitution, the rule, knows is so taught to the flow: a structure mostly stays one when its elements change a little.

    Args:
        alike: for every species number those that may stand for it, ``(ELEMENTS, k)``, itself among them; see
            :func:`manifoldflow.tasks.crystals.baselines.alike`.
        share: of the crystals.
    """

    alike: Tensor
    share: float = 0.5


def exchanged(
    crystals: Crystals, exchange: Exchange, generator: torch.Generator | None = None
) -> tuple[Crystals, Tensor]:
    """The crystals, a share of them with other elements, and which those are, bool ``(B,)``.

    No element stands for two others: where the draw would have it so, the crystal stays as it was.
    """
    alike, mask = exchange.alike, crystals.mask
    batch, (elements, choices) = len(mask), alike.shape
    pick = torch.randint(choices, (batch, elements, 1), generator=generator)
    becomes = alike.expand(batch, -1, -1).gather(2, pick).squeeze(-1)  # (B, ELEMENTS)
    present = torch.zeros(batch, elements, dtype=torch.bool).scatter_(
        1, crystals.species.where(mask, crystals.species[:, :1]), True
    )
    taken = torch.zeros(batch, elements, dtype=torch.int64).scatter_add_(1, becomes, present.long())
    species = torch.where(mask, becomes.gather(1, crystals.species), crystals.species)
    radii = torch.as_tensor(COVALENT, dtype=crystals.lattice.dtype).pow(3)
    size = [(radii[s] * mask).sum(-1) for s in (species, crystals.species)]
    is_new = (taken <= 1).all(1) & (torch.rand(batch, generator=generator) < exchange.share)
    is_new &= (species != crystals.species).any(1)
    lattice = crystals.lattice * (size[0] / size[1]).pow(2 / 3)[:, None, None]
    made = Crystals(
        torch.where(is_new[:, None], species, crystals.species),
        crystals.frac,
        torch.where(is_new[:, None, None], lattice, crystals.lattice),
        mask,
    )
    return made, is_new


def training_batches(
    crystals: Crystals,
    batch: int,
    max_pairs: int,
    seed: int = 0,
    guesses: Guesses | None = None,
    exchange: Exchange | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    hidden: float = 0.5,
) -> Any:
    """A function for :func:`manifoldflow.training.fit`: from a number to the batches from there on.

    With ``guesses`` a share of the batches starts from them (``x0``), and all are told which they are
    (``cond={"prototype": 1}``, 0 otherwise). With ``exchange`` a share of the other crystals gets other elements and is told so
    by -1; their ``conditions`` but the space group are then unknown. Every condition is hidden with probability ``hidden``.
    """
    sized = SizedBatches(crystals.mask.sum(-1).tolist(), batch, max_pairs, seed)
    told = None
    if guesses is not None:
        told = SizedBatches(guesses.crystals.mask.sum(-1).tolist(), batch, max_pairs, seed + 1)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        plain = sized.from_number(start)
        paired = told.from_number(start) if told is not None else None
        number = start
        while True:
            generator = generator_of(seed, number)
            rows, made, is_paired = torch.as_tensor(next(plain)), {}, False
            is_new: Tensor | None = None
            if guesses is not None and paired is not None:
                pairs = torch.as_tensor(next(paired))
                is_paired = bool(np.random.default_rng((seed, 7, number)).random() < guesses.share)
                rows = guesses.rows[pairs] if is_paired else rows
            some = trimmed(crystals.rows(rows))
            if guesses is not None and is_paired:
                made["x0"] = start_from(trimmed(guesses.crystals.rows(pairs)), guesses.blur, generator)
            elif exchange is not None:
                some, is_new = exchanged(some, exchange, generator)
            cond: dict[str, Tensor] = {}
            if guesses is not None or exchange is not None:
                cond["prototype"] = torch.full((len(some.mask),), float(is_paired))
            if is_new is not None:  # told apart, so that samples are like the real ones
                cond["prototype"] = cond["prototype"].masked_fill(is_new, -1.0)
            if conditions:
                values = {name: value[rows] for name, value in conditions.items()}
                if is_new is not None:
                    values = {n: v if n == SPACE_GROUP else v.masked_fill(is_new, torch.nan) for n, v in values.items()}
                cond |= hide(values, hidden, generator)
            yield {"x": state_of(some), "mask": some.mask, **made} | ({"cond": cond} if cond else {})
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
