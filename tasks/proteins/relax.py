"""Relaxation: the closest backbone with sound peptide bonds, closed hydrogen bonds and no overlapping atoms.

A flow places every residue with an error of a tenth of an angstrom or so; a bond tolerates a fifth of that. Designers
minimise an energy after sampling; this is the least that a backbone without side chains needs, as rigid residues under
restraints that see every backbone atom. It moves residues by fractions of an angstrom and leaves the fold alone.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldflow.manifolds.rotation import quaternion_to_matrix, rotvec_to_matrix
from manifoldflow.tasks.proteins.geometry import (
    C_N,
    C_N_CA,
    C_O,
    CA_C,
    CA_C_N,
    N_CA,
    bonded,
    carbonyl_oxygen,
    local_backbone,
)

N, CA, C, O = range(4)  # noqa: E741 - the atom's name
ATOMS = 4


def _opposite(a: float, b: float, angle: float) -> float:
    return math.sqrt(a * a + b * b - 2 * a * b * math.cos(angle))


def _trans_ca_ca() -> float:
    """CA-CA distance that the bonds and angles imply, 3.81 A: another value would strain every peptide of an ideal chain."""
    first, second = math.pi - CA_C_N, C_N_CA - CA_C_N  # directions of C-N and N-CA against CA-C, in the peptide plane
    x = CA_C + C_N * math.cos(first) + N_CA * math.cos(second)
    return math.hypot(x, C_N * math.sin(first) + N_CA * math.sin(second))


# Distances across a trans peptide bond in angstrom, by atoms of residue i and residue i + 1, and the error that real
# chains show too. O to N follows from the others, unless O is the motif's own.
_BONDS = (
    (C, N, C_N, 0.01),
    (CA, N, _opposite(CA_C, C_N, CA_C_N), 0.02),
    (C, CA, _opposite(C_N, N_CA, C_N_CA), 0.02),
    (CA, CA, _trans_ca_ca(), 0.02),
    (O, N, _opposite(C_O, C_N, math.pi - CA_C_N / 2), 0.03),
)
_BOND_ERROR = 0.05  # angstrom that count as 1
_FREE_OMEGA, _OMEGA_ERROR = math.radians(8), math.radians(8)  # a peptide may be off its plane by this much for nothing

# Least distances in angstrom of two backbone atoms, rows of residue i and columns of residue j > i, atoms N, CA, C, O;
# 98 to 99 % of the closest pairs of 240 experimental chains lie above. 0 = held by bonds and angles. A hydrogen bond has N
# and O 2.7 A or more apart.
_NEAREST = (
    ((0.0,) * ATOMS,) * ATOMS,  # the residue itself, which is rigid
    (  # j = i + 1: what the torsions can bring too close
        (2.6, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 2.85, 2.95),
        (0.0, 0.0, 2.7, 2.9),
    ),
    (  # j = i + 2
        (4.0, 0.0, 0.0, 3.6),
        (3.95, 5.0, 0.0, 4.3),
        (2.9, 4.1, 4.2, 3.8),
        (2.75, 3.7, 3.55, 3.15),
    ),
    (  # further
        (3.8, 3.8, 3.55, 2.7),
        (3.8, 3.8, 3.85, 3.05),
        (3.55, 3.85, 3.95, 3.3),
        (2.7, 3.05, 3.3, 3.05),
    ),
)
_OVERLAP = 0.2  # angstrom that count as 1
_REACH = 9.0  # angstrom between CA atoms beyond which no two atoms can come too close
_MARGIN = 1.0  # angstrom that a pair may approach before the list of pairs is made anew
_RENEW = 30  # iterations

# A hydrogen bond that the flow has nearly made (DSSP energy below this, kcal/mol) is drawn to these lengths.
_NEARLY_BONDED = -0.05
_H_O, _N_O, _N_H = 2.15, 3.1, 1.01
_HYDROGEN_ERROR = 0.32  # angstrom that count as 1

RELAX_STEPS = 150  # iterations


class Pairs(NamedTuple):
    """Pairs of atoms that may come too close: flat indices into ``(B, N, 4)`` and least distances."""

    first: Tensor
    second: Tensor
    least: Tensor


def restraints(
    x: dict[str, Tensor],
    mask: Tensor,
    residue_index: Tensor | None = None,
    *,
    fixed: Tensor | None = None,
    atoms: Tensor | None = None,
) -> Tensor:
    """Restraint energy of each backbone, ``(B,)``: squared errors of bonds, peptide planes and overlaps.

    A bond counts 1 at 0.05 A beyond what real chains show, a peptide plane at 8 degrees, an overlap of backbone atoms at 0.2 A.

    Args:
        x: frames ``{"trans": (B, N, 3) angstrom, "rots": (B, N, 3, 3)}``.
        mask: bool ``(B, N)``.
        residue_index: ``(B, N)``; residues with consecutive numbers are bonded.
        fixed, atoms: see :func:`relax`; pairs of two fixed residues do not count.
    """
    index, free, joined = _chain(x, mask, residue_index, fixed)
    placed = _atoms(x, joined, fixed, atoms)
    pairs = _close_pairs(placed, mask, index, free)
    owner = pairs.first // (placed.shape[1] * ATOMS)
    overlaps = _overlaps(placed, pairs)
    return _bonds(placed, joined).sum(-1).index_add(0, owner, overlaps)


def relax(
    x: dict[str, Tensor],
    mask: Tensor | None = None,
    residue_index: Tensor | None = None,
    *,
    fixed: Tensor | None = None,
    atoms: Tensor | None = None,
    steps: int = RELAX_STEPS,
    tether: float = 0.02,
) -> dict[str, Tensor]:
    """Move residues as little as needed to meet the restraints: Adam on a shift and a turn of every residue.

    Args:
        x: frames ``{"trans": (B, N, 3) angstrom, "rots": (B, N, 3, 3) or (B, N, 4)}``.
        mask: bool ``(B, N)``, True where a residue is real.
        residue_index: ``(B, N)``; see :func:`restraints`.
        fixed: bool ``(B, N)``, residues that stay where they are (a motif).
        atoms: ``(B, N, 4, 3)`` angstrom, true atoms N, CA, C, O of the fixed residues in the pose of ``x``; what it holds
            elsewhere is not read. Default: ideal residues, with O in the plane to the next one.
        steps: iterations.
        tether: energy of a shift of 1 A or a turn of 1 rad.

    Returns:
        Frames with rotation matrices.
    """
    trans, rots = x["trans"], x["rots"]
    rots = quaternion_to_matrix(rots) if rots.shape[-1] == 4 and rots.ndim == 3 else rots
    if mask is None:
        mask = torch.ones(trans.shape[:2], dtype=torch.bool, device=trans.device)
    index, free, joined = _chain(x, mask, residue_index, fixed)
    moving = free.unsqueeze(-1).to(trans.dtype)
    with torch.enable_grad():
        motion = torch.zeros(*trans.shape[:2], 6, dtype=trans.dtype, device=trans.device, requires_grad=True)
        # eps is the gradient of a bond that is 0.001 A off: without it Adam blows up round-off in directions that nothing holds.
        optimizer = torch.optim.Adam([motion], lr=0.05, eps=1.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
            optimizer.zero_grad()
            placed = _atoms(_moved(trans, rots, motion * moving), joined, fixed, atoms)
            if step % _RENEW == 0:
                with torch.no_grad():
                    pairs = _close_pairs(placed, mask, index, free)
                    bonds = _hydrogen_bonds(placed, mask, index, joined)
            energy = _bonds(placed, joined).sum() + _overlaps(placed, pairs).sum()
            energy = energy + _open_hydrogen_bonds(placed, bonds).sum() + tether * (motion**2).sum()
            energy.backward()
            optimizer.step()
    with torch.no_grad():
        return _moved(trans, rots, motion * moving)


def backbone_atoms(
    x: dict[str, Tensor],
    mask: Tensor,
    residue_index: Tensor | None = None,
    *,
    fixed: Tensor | None = None,
    atoms: Tensor | None = None,
) -> Tensor:
    """Atoms N, CA, C, O of frames with the fixed residues' own, ``(B, N, 4, 3)``; arguments as for :func:`relax`."""
    _, _, joined = _chain(x, mask, residue_index, fixed)
    return _atoms(x, joined, fixed, atoms) * mask[..., None, None].to(x["trans"].dtype)


def _chain(
    x: dict[str, Tensor], mask: Tensor, residue_index: Tensor | None, fixed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Residue numbers, which residues may move, and which are bonded to the next."""
    trans = x["trans"]
    index = residue_index
    if index is None:
        index = torch.arange(trans.shape[1], device=trans.device).expand(trans.shape[:2])
    return index, mask if fixed is None else mask & ~fixed, bonded(residue_index, mask, trans)


def _atoms(x: dict[str, Tensor], joined: Tensor, fixed: Tensor | None, atoms: Tensor | None) -> Tensor:
    """N, CA, C and O, ``(B, N, 4, 3)``, with the fixed residues' own atoms where they are given."""
    trans, rots = x["trans"], x["rots"]
    local = local_backbone(trans.dtype, trans.device)
    nac = torch.einsum("bnij,aj->bnai", rots, local) + trans.unsqueeze(-2)
    if atoms is None or fixed is None:
        return torch.cat([nac, carbonyl_oxygen(nac, rots, joined).unsqueeze(-2)], -2)
    own = fixed[..., None, None]
    nac = torch.where(own, atoms[..., :3, :].to(nac.dtype), nac)
    o = torch.where(own, atoms[..., 3:, :].to(nac.dtype), carbonyl_oxygen(nac, rots, joined).unsqueeze(-2))
    return torch.cat([nac, o], -2)


def _bonds(atoms: Tensor, joined: Tensor) -> Tensor:
    """Energy of each peptide bond, ``(B, N - 1)``: four distances and the plane."""
    energy = torch.zeros_like(atoms[:, 1:, 0, 0])
    for i, j, ideal, free in _BONDS:
        error = ((_length(atoms[:, :-1, i] - atoms[:, 1:, j]) - ideal).abs() - free).clamp_min(0) / _BOND_ERROR
        energy = energy + error * error
    # A trans peptide is where CA-CA is longest, so that distances alone hardly feel its twist: cos(omega) does.
    u, v, w = (
        atoms[:, :-1, C] - atoms[:, :-1, CA],
        atoms[:, 1:, N] - atoms[:, :-1, C],
        atoms[:, 1:, CA] - atoms[:, 1:, N],
    )
    left, right = torch.linalg.cross(u, v, dim=-1), torch.linalg.cross(v, w, dim=-1)
    cosine = (left * right).sum(-1) / (_length(left) * _length(right))
    twist = (cosine + math.cos(_FREE_OMEGA)).clamp_min(0) * (2 / _OMEGA_ERROR**2)
    return torch.where(joined, energy + twist, 0.0)


def _close_pairs(atoms: Tensor, mask: Tensor, index: Tensor, free: Tensor) -> Pairs:
    """All pairs of atoms of two residues, not both fixed, that are too close or within the margin of it."""
    length = mask.shape[1]
    table = torch.tensor(_NEAREST, dtype=atoms.dtype, device=atoms.device)
    near = _distances(atoms[:, :, CA], atoms[:, :, CA]) < _REACH
    near = near & mask.unsqueeze(2) & mask.unsqueeze(1) & (free.unsqueeze(2) | free.unsqueeze(1))
    b, i, j = near.triu(1).nonzero().unbind(1)
    least = table[(index[b, j] - index[b, i]).abs().clamp_max(len(_NEAREST) - 1)]
    distance = (atoms[b, i].unsqueeze(2) - atoms[b, j].unsqueeze(1)).norm(dim=-1)
    pair, one, other = ((distance < least + _MARGIN) & (least > 0)).nonzero().unbind(1)
    first, second = ((b * length + residue)[pair] * ATOMS for residue in (i, j))
    return Pairs(first + one, second + other, least[pair, one, other])


def _overlaps(atoms: Tensor, pairs: Pairs) -> Tensor:
    flat = atoms.flatten(0, 2)
    distance = _length(flat[pairs.first] - flat[pairs.second])
    return ((pairs.least - distance).clamp_min(0) / _OVERLAP) ** 2


def _hydrogens(atoms: Tensor) -> Tensor:
    """H on N of residues 1 ... N - 1, in the plane of C, N and CA, ``(B, N - 1, 3)``."""
    normalize = torch.nn.functional.normalize
    n = atoms[:, 1:, N]
    outward = normalize(n - atoms[:, :-1, C], dim=-1) + normalize(n - atoms[:, 1:, CA], dim=-1)
    return n + _N_H * normalize(outward, dim=-1)


def _hydrogen_bonds(atoms: Tensor, mask: Tensor, index: Tensor, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chain, donor (counted from the second residue) and acceptor of every N-H that has or nearly has its hydrogen bond."""
    n, h = atoms[:, 1:, N], _hydrogens(atoms)
    n_o = _distances(n, atoms[:, :, O])
    gaps = (n_o, _distances(h, atoms[:, :, C]), _distances(h, atoms[:, :, O]), _distances(n, atoms[:, :, C]))
    no, hc, ho, nc = (gap.clamp_min(0.5).reciprocal() for gap in gaps)
    apart = (index[:, 1:].unsqueeze(2) - index.unsqueeze(1)).abs() >= 3
    possible = joined.unsqueeze(2) & mask.unsqueeze(1) & apart & (n_o < 4.2)
    energy, acceptor = torch.where(possible, 27.9 * (no + hc - ho - nc), 0.0).min(2)
    chain, donor = (energy < _NEARLY_BONDED).nonzero().unbind(1)
    return chain, donor, acceptor[chain, donor]


def _open_hydrogen_bonds(atoms: Tensor, bonds: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Energy of hydrogen bonds that are too long; pushing atoms apart is the overlaps' part."""
    chain, donor, acceptor = bonds
    o = atoms[chain, acceptor, O]
    h_o = _length(_hydrogens(atoms)[chain, donor] - o) - _H_O
    n_o = _length(atoms[chain, donor + 1, N] - o) - _N_O
    return (h_o.clamp_min(0) / _HYDROGEN_ERROR) ** 2 + (n_o.clamp_min(0) / _HYDROGEN_ERROR) ** 2


def _moved(trans: Tensor, rots: Tensor, motion: Tensor) -> dict[str, Tensor]:
    # In the frame of the residue, so that the way of the optimiser turns with the chain.
    shift = torch.einsum("bnij,bnj->bni", rots, motion[..., :3])
    return {"trans": trans + shift, "rots": rots @ rotvec_to_matrix(motion[..., 3:])}


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode loses 1e-2 angstrom


def _length(v: Tensor) -> Tensor:
    return (v * v).sum(-1).add(1e-8).sqrt()
