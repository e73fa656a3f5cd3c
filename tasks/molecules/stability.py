"""Whether atoms have the bonds that their element and charge allow, for whole batches of molecules at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.field import pairs_of_edges
from manifoldflow.tasks.molecules.three_d import ATOMIC_NUMBERS, CHARGES, Made

VALENCES: dict[tuple[int, int], tuple[int, ...]] = {
    (1, 0): (1,),
    (6, 0): (4,),
    (6, 1): (3,),
    (6, -1): (3,),
    (7, 0): (3,),
    (7, 1): (4,),
    (7, -1): (2,),
    (8, 0): (2,),
    (8, 1): (3,),
    (8, -1): (1,),
    (9, 0): (1,),
    (16, 0): (2, 4, 6),
    (16, 1): (3,),
    (16, -1): (1,),
}
"""Sums of bond orders of a stable atom by (atomic number, formal charge); what is not here is not stable."""


@dataclass(frozen=True)
class Stability:
    """What of a batch of molecules is sound.

    Attributes:
        atom: bool ``(n, N)``, the sum of its bond orders is one that element and charge allow; False at padding.
        molecule: bool ``(n,)``, all atoms are.
        connected: bool ``(n,)``, every atom can be reached from every other.
        neutral: bool ``(n,)``, the charges sum to zero.
    """

    atom: Tensor
    molecule: Tensor
    connected: Tensor
    neutral: Tensor


def stability(made: Made) -> Stability:
    """The soundness of molecules, no loop over them."""
    kind, charge, mask = made.state["kind"], made.state["charge"], made.mask
    nodes = mask.shape[1]
    both = mask.unsqueeze(1) & mask.unsqueeze(2)
    order = pairs_of_edges(made.state["bond"], nodes) * both
    valence = order.sum(-1)
    allowed = _allowed(kind.device)
    atom = allowed[kind, charge, valence.clamp_max(allowed.shape[-1] - 1)] & mask
    value = torch.tensor(CHARGES, device=kind.device)[charge] * mask
    return Stability(atom, (atom | ~mask).all(-1), connected(order > 0, mask), value.sum(-1) == 0)


def connected(adjacent: Tensor, mask: Tensor) -> Tensor:
    """Whether graphs ``(n, N, N)`` bool are in one piece, ``(n,)``: powers of the adjacency, squared until nothing is missed."""
    nodes = mask.shape[1]
    eye = torch.eye(nodes, dtype=torch.bool, device=mask.device)
    reach = (adjacent | eye).to(torch.float32)
    for _ in range(max(1, (nodes - 1).bit_length())):
        reach = (reach @ reach).clamp_max(1.0)
    both = mask.unsqueeze(1) & mask.unsqueeze(2)
    return ((reach > 0) | ~both).flatten(1).all(-1)


def _allowed(device: torch.device) -> Tensor:
    """Bool table (element token, charge token, valence)."""
    table = torch.zeros(len(ATOMIC_NUMBERS), len(CHARGES), 16, dtype=torch.bool)
    for (number, charge), sums in VALENCES.items():
        table[ATOMIC_NUMBERS.index(number), CHARGES.index(charge), list(sums)] = True
    return table.to(device)
