"""The closest point of a mesh to any point of space, exact and in bounded memory."""

import torch
from torch import Tensor

from manifoldflow.manifolds.mesh_tables import ROWS, Tables, candidates_of, coordinates

ENTRIES = 2**21
"""Pairs of a point and a face that are looked at together."""

FEW = 48
"""Faces that are measured first for a point far from the surface."""


def closest(table: Tables, x: Tensor) -> tuple[Tensor, Tensor]:
    """Face ``(N,)`` and barycentric coordinates ``(N, 3)`` of the closest points to ``x`` ``(N, 3)``.

    Points near the surface are found through the grid. Only where a point is farther off is the whole mesh searched,
    which needs to know their number on the host; a centroid bounds the distance to its face from both sides, so that
    most faces are never measured.
    """
    where = x.detach()
    near = [_near(table, chunk) for chunk in where.split(ROWS)]
    face, squared = torch.cat([f for f, _ in near]), torch.cat([s for _, s in near])
    far = (squared > table.reach**2).nonzero().squeeze(-1)
    if len(far):
        rows = max(1, ENTRIES // len(table.areas))
        face[far] = torch.cat([_search(table, where[chunk]) for chunk in far.split(rows)])
    return face, _on_triangle(table, face, x)


def _near(table: Tables, x: Tensor) -> tuple[Tensor, Tensor]:
    candidates = candidates_of(table, x)
    squared, pick = squared_distances(table, candidates, x).min(1)
    return candidates.gather(1, pick.unsqueeze(1)).squeeze(1), squared


def _search(table: Tables, x: Tensor) -> Tensor:
    middles = table.corners.mean(1)
    radii = torch.linalg.vector_norm(table.corners - middles.unsqueeze(1), dim=-1).amax(-1)
    # The product form of cdist would lose half of the digits.
    least = torch.cdist(x, middles, compute_mode="donot_use_mm_for_euclid_dist") - radii
    count = min(FEW, least.shape[1])
    bounds, faces = least.topk(count, dim=1, largest=False)
    squared, pick = squared_distances(table, faces, x).min(1)
    face = faces.gather(1, pick.unsqueeze(1)).squeeze(1)
    if count < least.shape[1]:
        # A point near the centre of curvature has many faces at almost the same distance.
        open_ = (bounds[:, -1].clamp_min(0).square() <= squared).nonzero().squeeze(-1)
        everything = torch.arange(least.shape[1], device=x.device)
        for chunk in open_.split(max(1, ENTRIES // (8 * least.shape[1]))):
            face[chunk] = squared_distances(table, everything.expand(len(chunk), -1), x[chunk]).argmin(1)
    return face


def squared_distances(table: Tables, faces: Tensor, x: Tensor) -> Tensor:
    """Squared distances ``(N, K)`` of points ``(N, 3)`` to the triangles ``faces`` ``(N, K)``."""
    planes = table.planes[faces]
    beyond = (planes[..., :3] * x[:, None, None, :]).sum(-1) + planes[..., 3]
    inside = (beyond[..., 1:] <= 0).all(-1)
    corners = table.corners[faces]
    starts, ends = corners, corners.roll(-1, -2)
    along = ends - starts
    offset = x[:, None, None, :] - starts
    share = ((offset * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
    edges = (offset - share.unsqueeze(-1) * along).square().sum(-1).amin(-1)
    return torch.where(inside, beyond[..., 0].square(), edges)


def _on_triangle(table: Tables, face: Tensor, x: Tensor) -> Tensor:
    """Barycentric coordinates of the closest point of one triangle each."""
    corners = table.corners[face]
    beyond = (table.planes[face][..., :3] * x.unsqueeze(-2)).sum(-1) + table.planes[face][..., 3]
    inside = (beyond[..., 1:] <= 0).all(-1, keepdim=True)
    along = corners.roll(-1, -2) - corners
    offset = x.unsqueeze(-2) - corners
    share = ((offset * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
    edge = (offset - share.unsqueeze(-1) * along).square().sum(-1).argmin(-1, keepdim=True)
    part = share.gather(-1, edge)
    local = torch.arange(3, device=x.device)
    on_edge = torch.where(local == edge, 1 - part, torch.where(local == (edge + 1) % 3, part, 0.0))
    return torch.where(inside, coordinates(table, face, x), on_edge)
