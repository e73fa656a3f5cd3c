r"""What a mesh looks up: connectivity, the unfolding over edges, and which triangle a point lies on.

On a triangle a point is its barycentric coordinates b and a tangent their rates b', so a straight line over an edge needs
no geometry but two tables per (face, edge): a permutation for b and a 3x3 matrix for b', both exact isometries.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifoldflow.manifolds.mesh_reading import Geometry

MOST_CELLS = 2_000_000
ROWS = 2**13
"""Points whose faces are looked up together: more would leave the cache, and their tables fill the memory."""

NEAR = 0.25
"""How far off the surface the grid still finds the closest triangle for certain, in cells."""


class Tables(NamedTuple):
    """Tables of a mesh of V vertices and F faces. Edge i of a face is opposite to its corner i; ``edge = 3 face + i``.

    Attributes:
        corners: ``(F, 3, 3)``, the points of the corners.
        faces: ``(F, 3)``, their numbers.
        normals: ``(F, 3)`` units.
        basis: ``(F, 2, 3)``, orthonormal, in the plane of the face.
        hats: ``(F, 3, 3)``, gradients of the barycentric coordinates: b' = hats u.
        planes: ``(F, 4, 4)``, rows that give from (x, 1) the height over the plane and the distances beyond the edges.
        altitudes: ``(F, 3)`` of the corners over their edges.
        areas: ``(F,)``, and ``cumulative``, their normalised sums in float64.
        across: ``(3F,)``, the face behind an edge, and ``entry``, the number that the edge has there.
        order: ``(3F, 3)``: coordinate m behind the edge is coordinate order[m] before it.
        unfold: ``(3F, 3, 3)``: rates behind the edge from those before it.
        along: ``(F, 3, 3)``, directions of the edges, and ``middles``, the mean normals there of both faces.
        leans: ``(F, 3)``, cosine between the normal of the face and ``middles``.
        corner_normals: ``(F, 3, 3)``, units, shared by all faces of a vertex.
        cells: grid cell -> row of ``candidates``; ``candidates`` ``(rows, K)``, faces near the cell.
        low, cell: corner ``(3,)`` of the grid and size of its cells; ``shape``, numbers of cells.
        reach: how far off the surface the grid is exact, in length.
        area: total.
    """

    corners: Tensor
    faces: Tensor
    normals: Tensor
    basis: Tensor
    hats: Tensor
    planes: Tensor
    altitudes: Tensor
    areas: Tensor
    cumulative: Tensor
    across: Tensor
    entry: Tensor
    order: Tensor
    unfold: Tensor
    along: Tensor
    middles: Tensor
    leans: Tensor
    corner_normals: Tensor
    cells: Tensor
    candidates: Tensor
    low: Tensor
    shape: tuple[int, int, int]
    cell: float
    reach: float
    area: float


@functools.lru_cache(maxsize=32)
def tables(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables in one dtype on one device."""
    host = _tables(geometry)

    def moved(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() and name != "cumulative" else value.dtype)

    return Tables(**{name: moved(name, value) for name, value in host._asdict().items()})


@functools.lru_cache(maxsize=16)
def _tables(geometry: Geometry) -> Tables:
    faces = geometry.faces
    corners = geometry.vertices[faces]
    count = len(faces)
    following = np.roll(corners, -1, axis=1)
    # Edge i runs from corner i + 1 to corner i + 2.
    starts, ends = following, np.roll(corners, -2, axis=1)
    along = ends - starts
    lengths = np.linalg.norm(along, axis=-1, keepdims=True)
    along = along / lengths
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    doubled = np.linalg.norm(cross, axis=-1)
    normals = cross / doubled[:, None]
    outward = np.cross(along, normals[:, None])
    altitudes = doubled[:, None] / lengths[..., 0]
    hats = -outward / altitudes[..., None]
    across, entry = _across(faces)

    # The edge has the opposite direction behind itself, and the conormal there points back.
    behind = across.reshape(count, 3)
    turn = (
        along[..., :, None] * along[..., None, :]
        - outward[behind, entry.reshape(count, 3)][..., :, None] * outward[..., None, :]
    )
    spans = (corners[:, None, :, :] - starts[:, :, None, :]).swapaxes(-1, -2)  # (F, edge, xyz, corner)
    unfold = hats[behind] @ turn @ spans
    local = np.arange(3)
    order = np.empty((3 * count, 3), np.int64)
    own, there = np.tile(local, count), entry
    rows = np.arange(3 * count)
    order[rows, there] = own
    order[rows, (there + 1) % 3] = (own + 2) % 3
    order[rows, (there + 2) % 3] = (own + 1) % 3

    sums = normals[:, None] + normals[behind]
    middles = sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-12)
    # On an edge folded back on itself no direction is outside both faces; the bound keeps fields finite there.
    leans = np.maximum((middles * normals[:, None]).sum(-1), 0.2)
    corner_normals = _corner_normals(faces, cross, np.cross(middles, along))[faces]

    rows4 = np.concatenate([normals[:, None], outward], 1)
    anchors = np.concatenate([corners[:, :1], starts], 1)
    planes = np.concatenate([rows4, -(rows4 * anchors).sum(-1, keepdims=True)], -1)
    areas = 0.5 * doubled
    cells, candidates, low, shape, cell = _grid(corners, planes)
    basis = np.stack([along[:, 0], np.cross(normals, along[:, 0])], 1)
    arrays = [corners, faces, normals, basis, hats, planes, altitudes, areas, np.cumsum(areas) / areas.sum()]
    arrays += [across, entry, order, unfold.reshape(-1, 3, 3), along, middles, leans, corner_normals]
    arrays += [cells, candidates, low]
    made: dict[str, Any] = {
        name: torch.from_numpy(np.array(a)) for name, a in zip(Tables._fields, arrays, strict=False)
    }
    return Tables(**made | {"shape": shape, "cell": cell, "reach": NEAR * cell, "area": float(areas.sum())})


def _corner_normals(
    faces: NDArray[np.int64], cross: NDArray[np.float64], sideways: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Unit normals of the vertices ``(V, 3)``: the direction most nearly orthogonal to ``sideways`` of their edges.

    That is, in the plane of an edge and its mean normal for all edges at once, as far as a vertex allows it.
    """
    count = int(faces.max()) + 1
    outer = sideways[..., :, None] * sideways[..., None, :]
    sums, rough = np.zeros((count, 3, 3)), np.zeros((count, 3))
    for i in range(3):
        for end in (1, 2):
            np.add.at(sums, faces[:, (i + end) % 3], outer[:, i])
        np.add.at(rough, faces[:, i], cross)
    normal = np.linalg.eigh(sums)[1][..., 0]
    return normal * np.where((normal * rough).sum(-1, keepdims=True) < 0, -1.0, 1.0)


def _across(faces: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The face behind every edge, and which of its edges that is."""
    starts, ends = np.roll(faces, -1, axis=1).reshape(-1), np.roll(faces, -2, axis=1).reshape(-1)
    most = int(faces.max()) + 1
    forward, backward = starts * most + ends, ends * most + starts
    order = np.argsort(forward)
    twin = order[np.searchsorted(forward[order], backward)]
    return twin // 3, twin % 3


def _grid(
    corners: NDArray[np.float64], planes: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], tuple[int, int, int], float]:
    """For every cell of a regular grid the faces that come nearer than ``NEAR`` cells to it."""
    edge = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).mean()
    box_low, box_high = corners.min((0, 1)), corners.max((0, 1))
    extent = np.maximum(box_high - box_low, 1e-6 * edge)
    cell = max(0.7 * float(edge), float((np.prod(extent + 2 * edge) / MOST_CELLS) ** (1 / 3)))
    low = box_low - cell
    shape = tuple(int(n) for n in np.ceil((extent + 2 * cell) / cell).astype(int))
    first = np.floor((corners.min(1) - NEAR * cell - low) / cell).astype(int)
    last = np.floor((corners.max(1) + NEAR * cell - low) / cell).astype(int)
    counts = (last - first + 1).prod(1)
    owner = np.repeat(np.arange(len(corners)), counts)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    spans = (last - first + 1)[owner]
    offset = np.stack([rank // (spans[:, 1] * spans[:, 2]), rank // spans[:, 2] % spans[:, 1], rank % spans[:, 2]], 1)
    place = first[owner] + offset
    # The distance to a triangle is at least that to its plane and to the half planes of its edges.
    middle = np.concatenate([low + (place + 0.5) * cell, np.ones((len(place), 1))], 1)
    beyond = (planes[owner] @ middle[:, :, None])[..., 0]
    beyond[:, 0] = np.abs(beyond[:, 0])
    keep = beyond.max(1) <= (np.sqrt(3) / 2 + NEAR * np.sqrt(3)) * cell
    owner, place = owner[keep], place[keep]
    flat = np.ravel_multi_index(tuple(place.T), shape)
    order = np.argsort(flat, kind="stable")
    flat, owner = flat[order], owner[order]
    occupied, begin, sizes = np.unique(flat, return_index=True, return_counts=True)
    column = np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)  # short rows repeat their last face
    candidates = owner[begin[:, None] + column]
    row = np.full(int(np.prod(shape)), -1)
    row[occupied] = np.arange(len(occupied))
    # Cells without faces point to the nearest cell with some.
    row = row.reshape(shape)
    nearest = scipy.ndimage.distance_transform_edt(row < 0, return_distances=False, return_indices=True)
    return row[tuple(nearest)].reshape(-1), candidates, low, shape, cell  # type: ignore[return-value]


def candidates_of(table: Tables, x: Tensor) -> Tensor:
    """Faces ``(N, K)`` near the points ``(N, 3)``: they hold the closest one of points within ``reach`` of the surface."""
    place = ((x.detach() - table.low) / table.cell).floor().long()
    place = torch.stack([place[:, i].clamp(0, n - 1) for i, n in enumerate(table.shape)], -1)
    flat = (place[:, 0] * table.shape[1] + place[:, 1]) * table.shape[2] + place[:, 2]
    return table.candidates[table.cells[flat]]


def locate(table: Tables, x: Tensor) -> tuple[Tensor, Tensor]:
    """Face ``(N,)`` and barycentric coordinates ``(N, 3)`` of points ``(N, 3)`` on or very near the surface.

    Differentiable with respect to ``x`` through the coordinates, as the projection onto the plane of the face.
    """
    where = x.detach()
    if len(where) <= ROWS:
        face = _nearest(table, where)
    else:
        face = torch.cat([_nearest(table, chunk) for chunk in where.split(ROWS)])
    return face, coordinates(table, face, x)


def _nearest(table: Tables, x: Tensor) -> Tensor:
    candidates = candidates_of(table, x)
    beyond = _beyond(table.planes[candidates], x.unsqueeze(1))
    off = beyond[..., 0].square() + beyond[..., 1:].amax(-1).clamp_min(0).square()
    return candidates.gather(1, off.argmin(1, keepdim=True)).squeeze(1)


def coordinates(table: Tables, face: Tensor, x: Tensor) -> Tensor:
    """Barycentric coordinates of ``x`` on its face, moved into the triangle where round-off left it."""
    b = (-_beyond(table.planes[face], x)[..., 1:] / table.altitudes[face]).clamp_min(0)
    return b / b.sum(-1, keepdim=True)


def _beyond(planes: Tensor, x: Tensor) -> Tensor:
    """Height over the plane and distances beyond the three edges, ``(..., 4)``; the last axes of planes are (4, 4)."""
    return (planes[..., :3] * x.unsqueeze(-2)).sum(-1) + planes[..., 3]


def place(table: Tables, face: Tensor, b: Tensor) -> Tensor:
    """Points with barycentric coordinates ``b`` ``(N, 3)`` on ``face`` ``(N,)``."""
    return (b.unsqueeze(-1) * table.corners[face]).sum(-2)


def walk(
    table: Tables, face: Tensor, b: Tensor, rates: Tensor, carried: Tensor | None, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Straight lines for unit time, over at most ``most`` edges.

    Args:
        table: of the mesh.
        face, b: where they start, ``(N,)`` and ``(N, 3)``.
        rates: barycentric velocity ``(N, 3)``.
        carried: further barycentric vectors ``(N, m, 3)`` to take along in parallel.
        most: bound on the number of edges; a line that meets it stops there.

    Returns:
        Face, coordinates, velocity and carried vectors at the end.
    """
    left = torch.ones_like(b[:, :1])
    came = torch.full_like(face, -1)
    local = torch.arange(3, device=face.device)
    for crossing in range(most + 1):
        leaving = (rates < 0) & (local != came.unsqueeze(-1))
        times = torch.where(leaving, b / torch.where(leaving, -rates, 1.0), torch.inf)
        first, edge = times.min(-1, keepdim=True)
        stays = first >= left
        used = torch.where(stays, left, first)
        b = (b + used * rates).clamp_min(0)
        left = left - used
        # Reading one number from the device is far cheaper than the crossings that it saves; a line of three faces
        # would pay for the bound otherwise.
        if crossing % 4 in ((0, 1, 2, 3) if face.device.type == "cpu" else (3,)) and bool(stays.all()):
            break
        step = 3 * face + edge.squeeze(-1)
        there = table.entry[step]
        stays_1 = stays.squeeze(-1)
        over = b.gather(1, table.order[step]).masked_fill(local == there.unsqueeze(-1), 0.0)
        b = torch.where(stays, b, over)
        unfold = table.unfold[step]
        rates = torch.where(stays, rates, (unfold @ rates.unsqueeze(-1)).squeeze(-1))
        if carried is not None:
            carried = torch.where(stays.unsqueeze(-1), carried, carried @ unfold.mT)
        came = torch.where(stays_1, came, there)
        face = torch.where(stays_1, face, table.across[step])
    return face, b / b.sum(-1, keepdim=True), rates, carried
