"""Pairs of a guess and the truth: known crystals with their elements exchanged, laid over the crystal that they are to become.

A flow that is trained on them starts from a guess instead of from noise (a coupling that depends on the data), so the guess at
sampling is a substituted prototype, too.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from manifoldflow.tasks.crystals.couplings import align_atoms
from manifoldflow.tasks.crystals.structure import Crystal, wrap


def axis_changes() -> np.ndarray:
    """The 48 ways to exchange cell vectors and turn them round, ``(48, 3, 3)``: what separates two settings of a reduced cell."""
    made = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            m = np.zeros((3, 3))
            m[range(3), order] = signs
            made.append(m)
    return np.array(made)


def laid_over(guess: Crystal, truth: Crystal) -> tuple[Crystal, float]:
    """``guess`` in the setting, the order of atoms and the place in which it is nearest to ``truth``.

    Args:
        guess, truth: of the same species, as often each.

    Returns:
        The guess, and the root-mean-square difference: of coordinates times the cube root of the volume per atom (so in units of
        the distance between atoms), and of the logarithms of the metric tensors.

    Raises:
        ValueError: other species.
    """
    if sorted(guess.species.tolist()) != sorted(truth.species.tolist()):
        raise ValueError(f"the guess {guess.formula} of {len(guess)} atoms is no {truth.formula} of {len(truth)}")
    order = np.argsort(guess.species, kind="stable")
    place = np.argsort(np.argsort(truth.species, kind="stable"), kind="stable")
    order = order[place]
    changes = axis_changes()
    metrics = changes @ guess.metric @ changes.transpose(0, 2, 1)
    apart = np.abs(metrics - truth.metric).sum((1, 2)) / np.trace(truth.metric)
    near = np.argsort(apart, kind="stable")[:8]
    near = near[apart[near] < apart[near[0]] + 0.15]
    frac = np.stack([wrap(guess.frac[order] @ np.linalg.inv(changes[k])) for k in near])
    count = len(near)
    moved = align_atoms(
        torch.as_tensor(frac),
        torch.as_tensor(truth.frac).expand(count, -1, -1),
        torch.as_tensor(truth.species).expand(count, -1),
        None,
        rounds=3,
    )
    gap = torch.as_tensor(truth.frac) - moved
    gap = gap - gap.round()
    cells = torch.as_tensor(truth.cell)
    off = (gap @ cells).square().sum(-1).mean(-1).sqrt() / (truth.volume / len(truth)) ** (1 / 3)
    total = off + torch.as_tensor(apart[near])
    best = int(total.argmin())
    cell = changes[near[best]] @ guess.cell
    return Crystal(truth.species, moved[best].numpy(), cell, guess.name, guess.labels), float(total[best])


def guess_pairs(
    crystals: Sequence[Crystal], known: Sequence[Crystal], each: int = 3, most_off: float = 0.6
) -> tuple[list[int], list[Crystal]]:
    """Guesses for crystals from known ones of other formulas, laid over them.

    Args:
        crystals: truths.
        known: prototypes to be; those of a truth's own formula are not used.
        each: guesses for each truth, at most: the nearest ones.
        most_off: leave out guesses that differ by more, see :func:`laid_over`: they are other structures.

    Returns:
        Numbers of the truths, and a guess for each of them.
    """
    from manifoldflow.tasks.crystals.baselines import Substitution

    rule = Substitution(known, distinct=False)
    own = np.array([c.formula for c in known])
    rows: list[int] = []
    guesses: list[Crystal] = []
    for i, truth in enumerate(crystals):
        found = 0
        for guess in rule.candidates(truth.species.tolist(), 3 * each, own == truth.formula):
            if len(guess) != len(truth) or found == each:
                continue
            laid, off = laid_over(guess, truth)
            if off <= most_off:
                rows.append(i)
                guesses.append(laid)
                found += 1
    return rows, guesses
