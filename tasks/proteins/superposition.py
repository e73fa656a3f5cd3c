"""Superposition of matched points, and the RMSD and TM-score that follow from it.

A superposition is (rotation (..., 3, 3), shift (..., 3)) that moves x onto y as ``x @ rotation.mT + shift``; CA traces
are (..., N, 3) in angstrom. The TM-score (Zhang & Skolnick 2004) of matched residues at distances d_i, normalised by a
length L, is (1/L) sum_i 1 / (1 + d_i^2 / d0(L)^2), maximal over superpositions.
"""

import torch
from torch import Tensor

Motion = tuple[Tensor, Tensor]


def superpose(x: Tensor, y: Tensor, weight: Tensor) -> Motion:
    """The rigid motion of x onto y with the least weighted squared deviation (Kabsch, through Horn's quaternion).

    Args:
        x, y: (..., N, 3). weight: (..., N), not negative.
    """
    share = (weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)).unsqueeze(-2)
    center_x, center_y = share @ x, share @ y
    covariance = ((x - center_x).mT * share) @ (y - center_y)
    rotation = rotation_from_covariance(covariance)
    return rotation, (center_y - center_x @ rotation.mT).squeeze(-2)


def move(x: Tensor, motion: Motion) -> Tensor:
    """Apply a superposition to points (..., N, 3)."""
    return x @ motion[0].mT + motion[1].unsqueeze(-2)


def rmsd(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square deviation in angstrom after the best superposition of (B, N, 3) on (B, N, 3): (B,)."""
    weight = torch.ones_like(x[..., 0]) if mask is None else mask.to(x.dtype)
    squared = (move(x, superpose(x, y, weight)) - y).square().sum(-1)
    return ((squared * weight).sum(-1) / weight.sum(-1).clamp(min=1)).sqrt()


def d0(length: Tensor) -> Tensor:
    """The TM-score's distance scale in angstrom, 1.24 (L - 15)^(1/3) - 1.8, at least 0.5."""
    excess = (length - 15).clamp(min=0).to(torch.get_default_dtype())
    return (1.24 * excess ** (1 / 3) - 1.8).clamp(min=0.5)


def tm_score_aligned(x: Tensor, y: Tensor, mask: Tensor | None = None, length: Tensor | None = None) -> Tensor:
    """TM-score with residue i of x matched to residue i of y, shape (B,).

    The superposition is sought from the whole chain, its halves, quarters and eighths; each start climbs by iterated
    reweighted superposition with weights (1 + d^2/d0^2)^-2, which never lowers the score. A local search: the result is
    a lower bound of the optimum.

    Args:
        x, y: (B, N, 3) CA atoms in angstrom. mask: (B, N), the matched residues.
        length: (B,) normalising length; default: the number of matched residues.
    """
    mask = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
    length = mask.sum(-1) if length is None else length
    scale = d0(length).to(x)
    motion = search(x, y, mask, scale, levels=4, steps=6)
    return tm_sum(x, y, mask, climb(x, y, mask, motion, scale, 15), scale) / length


def _closeness(x: Tensor, y: Tensor, mask: Tensor, motion: Motion, scale: Tensor) -> Tensor:
    """1 / (1 + d^2 / scale^2) of matched residues, 0 elsewhere."""
    squared = (move(x, motion) - y).square().sum(-1)
    return mask / (1 + squared / scale[..., None] ** 2)


def tm_sum(x: Tensor, y: Tensor, mask: Tensor, motion: Motion, scale: Tensor) -> Tensor:
    return _closeness(x, y, mask, motion, scale).sum(-1)


def climb(x: Tensor, y: Tensor, mask: Tensor, motion: Motion, scale: Tensor, steps: int) -> Motion:
    """Raise the TM-score by reweighted superpositions.

    1/(1 + s) is convex in s = d^2/scale^2, so its tangent, of slope -(1 + s)^-2, is a lower bound; a superposition with
    these weights maximises the bound, and the score never falls (majorise-minimise).
    """
    for _ in range(steps):
        motion = superpose(x, y, _closeness(x, y, mask, motion, scale) ** 2)
    return motion


def search(x: Tensor, y: Tensor, mask: Tensor, scale: Tensor, levels: int, steps: int) -> Motion:
    """The best of superpositions that start from the whole alignment and from windows of 1/2, 1/4 ... of it."""
    rank = (mask.cumsum(-1) - 0.5) / mask.sum(-1, keepdim=True).clamp(min=1)
    windows = [
        (k / 2**level / 2, (k / 2 + 1) / 2**level) for level in range(levels) for k in range(2 ** (level + 1) - 1)
    ]
    seeds = torch.stack([mask & (rank > low) & (rank < high) for low, high in windows], -2).to(x.dtype)
    x, y, mask, scale = x.unsqueeze(-3), y.unsqueeze(-3), mask.unsqueeze(-2), scale.unsqueeze(-1)
    motion = superpose(x, y, seeds)
    motion = climb(x, y, mask, motion, scale.clamp(min=4.5), min(1, steps))
    motion = climb(x, y, mask, motion, scale, steps - 1)
    best = tm_sum(x, y, mask, motion, scale).argmax(-1)
    return pick(motion, best)


def pick(motion: Motion, index: Tensor) -> Motion:
    """Entry ``index`` (P,) of superpositions stacked along axis 1."""
    row = torch.arange(len(index), device=index.device)
    return motion[0][row, index], motion[1][row, index]


def rotation_from_covariance(covariance: Tensor) -> Tensor:
    """The proper rotation R with the largest trace(R H) for H = sum x y^T, (..., 3, 3): Horn 1987.

    The quaternion is the leading eigenvector of a symmetric 4 x 4 matrix; unlike the SVD it never reflects.
    """
    h = covariance
    trace = h.diagonal(dim1=-2, dim2=-1).sum(-1)
    skew = torch.stack([h[..., 1, 2] - h[..., 2, 1], h[..., 2, 0] - h[..., 0, 2], h[..., 0, 1] - h[..., 1, 0]], -1)
    block = h + h.mT - trace[..., None, None] * torch.eye(3, dtype=h.dtype, device=h.device)
    top = torch.cat([trace[..., None], skew], -1)
    matrix = torch.cat([top.unsqueeze(-2), torch.cat([skew.unsqueeze(-1), block], -1)], -2)
    w, a, b, c = torch.linalg.eigh(matrix).eigenvectors[..., -1].unbind(-1)
    rows = [
        [w * w + a * a - b * b - c * c, 2 * (a * b - w * c), 2 * (a * c + w * b)],
        [2 * (a * b + w * c), w * w - a * a + b * b - c * c, 2 * (b * c - w * a)],
        [2 * (a * c - w * b), 2 * (b * c + w * a), w * w - a * a - b * b + c * c],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
