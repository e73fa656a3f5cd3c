"""Backbone atoms and residue frames: the map between them and the ideal geometry it uses.

A frame is (R, x): x the CA position, and the columns of R an orthonormal basis from N, CA, C (Gram-Schmidt with
CA -> C first, CA -> N second), so that atom = R @ local + x. Lengths are angstrom, angles radians.
"""

import math

import torch
from torch import Tensor

# Engh & Huber (1991) means, as used by every frame model: N-CA 1.458, CA-C 1.525, N-CA-C 111.0 degrees.
N_CA, CA_C, C_O, C_N = 1.458, 1.525, 1.231, 1.329
N_CA_C = math.radians(111.0)
CA_C_N, C_N_CA, CA_C_O = math.radians(117.2), math.radians(121.7), math.radians(120.1)
CA_CA = 3.80
BREAK_OFFSET = 33
"""A chain break raises ``residue_index`` by this much more than 1: beyond every relative-position bin."""

LOCAL_N = (N_CA * math.cos(N_CA_C), N_CA * math.sin(N_CA_C), 0.0)
LOCAL_C = (CA_C, 0.0, 0.0)
# O of a residue without a successor, in its own frame: trans to a nitrogen at psi = 140 degrees (extended).
_TERMINAL_PSI = math.radians(140.0)


def local_backbone(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ideal N, CA, C in the residue frame, ``(3, 3)``."""
    return torch.tensor([LOCAL_N, (0.0, 0.0, 0.0), LOCAL_C], dtype=dtype, device=device)


def frames_from_atoms(coords: Tensor) -> dict[str, Tensor]:
    """Residue frames of backbone atoms by Gram-Schmidt (AlphaFold 2, supplementary algorithm 21).

    Args:
        coords: ``(..., N, A, 3)`` angstrom with atoms N, CA, C first.

    Returns:
        ``{"trans": (..., N, 3), "rots": (..., N, 3, 3)}``. Residues whose three atoms coincide (padding) get the identity.
    """
    n, ca, c = coords[..., 0, :], coords[..., 1, :], coords[..., 2, :]
    x = c - ca
    is_void = (x * x).sum(-1, keepdim=True) < 1e-8
    x = torch.nn.functional.normalize(x, dim=-1)
    y = n - ca
    y = torch.nn.functional.normalize(y - (x * y).sum(-1, keepdim=True) * x, dim=-1)
    rots = torch.stack([x, y, torch.linalg.cross(x, y)], -1)
    identity = torch.eye(3, dtype=coords.dtype, device=coords.device).expand_as(rots)
    return {"trans": ca, "rots": torch.where(is_void.unsqueeze(-1), identity, rots)}


def bonded(residue_index: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor:
    """Whether residue i is bonded to i + 1, bool ``(B, N - 1)``: consecutive indices, both real."""
    b, n = like.shape[0], like.shape[1]
    joined = torch.ones(b, n - 1, dtype=torch.bool, device=like.device)
    if residue_index is not None:
        joined = residue_index[:, 1:] - residue_index[:, :-1] == 1
    if mask is not None:
        joined = joined & mask[:, 1:] & mask[:, :-1]
    return joined


def atoms_from_frames(x: dict[str, Tensor], mask: Tensor | None = None, residue_index: Tensor | None = None) -> Tensor:
    """Backbone atoms N, CA, C, O of frames.

    N, CA, C are ideal in the frame. O lies in the peptide plane of CA, C and the next residue's N, 1.231 A from C on
    the far side; a residue without a bonded successor gets an extended psi of 140 degrees.

    Args:
        x: ``{"trans": (B, N, 3), "rots": (B, N, 3, 3)}``, angstrom.
        mask: bool ``(B, N)``; padding is set to 0.
        residue_index: ``(B, N)``; neighbours whose indices are not consecutive are not bonded.

    Returns:
        ``(B, N, 4, 3)`` angstrom.
    """
    trans, rots = x["trans"], x["rots"]
    local = local_backbone(trans.dtype, trans.device)
    nac = torch.einsum("bnij,aj->bnai", rots, local) + trans.unsqueeze(-2)
    coords = torch.cat([nac, carbonyl_oxygen(nac, rots, bonded(residue_index, mask, trans)).unsqueeze(-2)], -2)
    return coords if mask is None else coords * mask[..., None, None].to(coords.dtype)


def carbonyl_oxygen(nac: Tensor, rots: Tensor, joined: Tensor) -> Tensor:
    """O of every residue, ``(B, N, 3)``: in the peptide plane, or at an extended psi where no residue follows.

    Args:
        nac: atoms N, CA, C ``(B, N, 3, 3)``, angstrom.
        rots: orientations ``(B, N, 3, 3)``.
        joined: bool ``(B, N - 1)``, whether residue i is bonded to i + 1.
    """
    n, ca, c = nac.unbind(-2)
    normalize = torch.nn.functional.normalize
    # With the successor's N: O opposes the bisector of (CA - C) and (N' - C).
    inward = normalize(ca[:, :-1] - c[:, :-1], dim=-1) + normalize(n[:, 1:] - c[:, :-1], dim=-1)
    planar = c[:, :-1] - C_O * normalize(inward, dim=-1)
    # Without: in the residue's frame, from internal coordinates (dihedral N-CA-C-O = psi + 180 degrees).
    torsion = _TERMINAL_PSI + math.pi
    direction = (-math.cos(CA_C_O), math.sin(CA_C_O) * math.cos(torsion), math.sin(CA_C_O) * math.sin(torsion))
    terminal = c + rots @ (torch.tensor(direction, dtype=nac.dtype, device=nac.device) * C_O)
    use_planar = torch.nn.functional.pad(joined, (0, 1)).unsqueeze(-1)
    return torch.where(use_planar, torch.cat([planar, terminal[:, -1:]], 1), terminal)
