"""Relaxation: the closest backbone with sound peptide bonds and no overlapping residues.

A flow places every residue with an error of a tenth of an angstrom or so; a bond tolerates a fifth of that. Designers
minimise an energy after sampling; this is the least that a backbone without side chains needs, as rigid residues under
restraints. It moves residues by fractions of an angstrom and leaves the fold alone.
"""

import math

import torch
from torch import Tensor

from manifoldflow.manifolds.rotation import quaternion_to_matrix, rotvec_to_matrix
from manifoldflow.tasks.proteins.geometry import C_N, C_N_CA, CA_C, CA_C_N, N_CA, bonded, local_backbone


def _opposite(a: float, b: float, angle: float) -> float:
    return math.sqrt(a * a + b * b - 2 * a * b * math.cos(angle))


def _trans_ca_ca() -> float:
    """CA-CA distance that the bonds and angles imply, 3.81 A: another value would strain every peptide of an ideal chain."""
    first, second = math.pi - CA_C_N, C_N_CA - CA_C_N  # directions of C-N and N-CA against CA-C, in the peptide plane
    x = CA_C + C_N * math.cos(first) + N_CA * math.cos(second)
    return math.hypot(x, C_N * math.sin(first) + N_CA * math.sin(second))


# Distances across a trans peptide bond in angstrom, by index of the atoms N, CA, C of residue i and residue i + 1.
_BONDS = (
    (2, 0, C_N),
    (1, 0, _opposite(CA_C, C_N, CA_C_N)),
    (2, 1, _opposite(C_N, N_CA, C_N_CA)),
    (1, 1, _trans_ca_ca()),
)
_NEAREST_CA = ((2, 5.0), (3, 4.1))
"""Least CA-CA distance at a separation of exactly 2, and of 3 and more residues; 99 % of real pairs lie above."""


def restraints(x: dict[str, Tensor], mask: Tensor, residue_index: Tensor | None = None) -> Tensor:
    """Restraint energy of each backbone, ``(B,)``: squared errors in units of 0.05 A (bonds) and 0.2 A (overlaps).

    Args:
        x: frames ``{"trans": (B, N, 3) angstrom, "rots": (B, N, 3, 3)}``.
        mask: bool ``(B, N)``.
        residue_index: ``(B, N)``; residues with consecutive numbers are bonded.
    """
    trans, rots = x["trans"], x["rots"]
    atoms = torch.einsum("bnij,aj->bnai", rots, local_backbone(trans.dtype, trans.device)) + trans.unsqueeze(-2)
    joined = bonded(residue_index, mask, trans)
    energy = trans.new_zeros(trans.shape[0])
    for i, j, ideal in _BONDS:
        error = (_length(atoms[:, :-1, i] - atoms[:, 1:, j]) - ideal) / 0.05
        energy = energy + (error * error * joined).sum(-1)
    distance = _length(trans.unsqueeze(2) - trans.unsqueeze(1))
    position = torch.arange(trans.shape[1], device=trans.device)
    apart = position.unsqueeze(0) - position.unsqueeze(1)
    both = mask.unsqueeze(1) & mask.unsqueeze(2)
    for separation, nearest in _NEAREST_CA:
        pairs = both & (apart == separation if separation == 2 else apart >= separation)
        overlap = (nearest - distance).clamp_min(0) / 0.2
        energy = energy + (overlap * overlap * pairs).sum((1, 2))
    return energy


def relax(
    x: dict[str, Tensor],
    mask: Tensor | None = None,
    residue_index: Tensor | None = None,
    *,
    fixed: Tensor | None = None,
    steps: int = 150,
    tether: float = 0.02,
) -> dict[str, Tensor]:
    """Move residues as little as needed to meet the restraints: Adam on a shift and a turn of every residue.

    Args:
        x: frames ``{"trans": (B, N, 3) angstrom, "rots": (B, N, 3, 3) or (B, N, 4)}``.
        mask: bool ``(B, N)``, True where a residue is real.
        residue_index: ``(B, N)``; see :func:`restraints`.
        fixed: bool ``(B, N)``, residues that stay where they are (a motif).
        steps: iterations.
        tether: energy of a shift of 1 A or a turn of 1 rad.

    Returns:
        Frames with rotation matrices.
    """
    trans, rots = x["trans"], x["rots"]
    rots = quaternion_to_matrix(rots) if rots.shape[-1] == 4 and rots.ndim == 3 else rots
    if mask is None:
        mask = torch.ones(trans.shape[:2], dtype=torch.bool, device=trans.device)
    free = (mask if fixed is None else mask & ~fixed).unsqueeze(-1).to(trans.dtype)
    with torch.enable_grad():
        motion = torch.zeros(*trans.shape[:2], 6, dtype=trans.dtype, device=trans.device, requires_grad=True)
        # eps is the gradient of a bond that is 0.001 A off: without it Adam blows up round-off in directions that nothing holds.
        optimizer = torch.optim.Adam([motion], lr=0.05, eps=1.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
            optimizer.zero_grad()
            loss = (
                restraints(_moved(trans, rots, motion * free), mask, residue_index).sum() + tether * (motion**2).sum()
            )
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return _moved(trans, rots, motion * free)


def _moved(trans: Tensor, rots: Tensor, motion: Tensor) -> dict[str, Tensor]:
    # In the frame of the residue, so that the way of the optimiser turns with the chain.
    shift = torch.einsum("bnij,bnj->bni", rots, motion[..., :3])
    return {"trans": trans + shift, "rots": rots @ rotvec_to_matrix(motion[..., 3:])}


def _length(v: Tensor) -> Tensor:
    return (v * v).sum(-1).add(1e-8).sqrt()
