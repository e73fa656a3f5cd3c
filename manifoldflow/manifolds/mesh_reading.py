"""Triangle meshes from files and arrays, checked before anything is computed on them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.csgraph
from numpy.typing import ArrayLike, NDArray

SUFFIXES = (".obj", ".off", ".ply", ".stl")

TINY_AREA = 1e-10
"""Below this share of the squared size of the mesh a triangle counts as degenerate."""


@dataclass(frozen=True)
class Geometry:
    """Vertices and faces of a checked mesh as bytes: hashable, and pickled with everything that refers to it.

    Attributes:
        key: SHA-256 of the content, the identity of the mesh.
        counts: numbers of vertices and faces.
        vertex_bytes: float64 ``(V, 3)``.
        face_bytes: int64 ``(F, 3)``, counter-clockwise seen from one side.
    """

    key: str
    counts: tuple[int, int]
    vertex_bytes: bytes = field(repr=False, compare=False)
    face_bytes: bytes = field(repr=False, compare=False)

    @property
    def vertices(self) -> NDArray[np.float64]:
        """``(V, 3)``, read-only."""
        return np.frombuffer(self.vertex_bytes, np.float64).reshape(-1, 3)

    @property
    def faces(self) -> NDArray[np.int64]:
        """``(F, 3)``, read-only."""
        return np.frombuffer(self.face_bytes, np.int64).reshape(-1, 3)


def read_arrays(path: str | Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Vertices and triangles of an OBJ, OFF, PLY or STL file; polygons are cut into triangles, equal points made one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown format, or no triangles in it.
        ImportError: trimesh is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mesh file at {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: unknown mesh format; give one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("reading mesh files needs trimesh: pip install 'manifoldflow[meshes]'") from error
    try:
        loaded = trimesh.load(path, process=False, force="mesh", skip_materials=True)
    except Exception as error:  # trimesh raises whatever its parsers meet
        raise ValueError(f"{path} could not be read as {path.suffix[1:].upper()}: {error}") from error
    faces, points = np.asarray(getattr(loaded, "faces", ())), np.asarray(getattr(loaded, "vertices", ()))
    if faces.size == 0:
        raise ValueError(f"{path} holds no triangles")
    # A file repeats a point for every triangle (STL) or for every texture seam (OBJ).
    vertices, index = np.unique(points.astype(np.float64), axis=0, return_inverse=True)
    return vertices, index.reshape(-1)[faces]


def checked_geometry(vertices: ArrayLike, faces: ArrayLike, name: str = "mesh") -> Geometry:
    """A closed, edge-manifold, consistently oriented mesh in one piece, or one line that says why it is not.

    Vertices that no triangle uses are dropped.

    Args:
        vertices: ``(V, 3)``.
        faces: ``(F, 3)`` vertex numbers from 0.
        name: how errors call the mesh.

    Raises:
        ValueError: wrong shapes, NaN, numbers of missing vertices, degenerate triangles, edges with a number of
            triangles other than two, neighbours of opposite orientation, several pieces.
    """
    points, triangles = np.asarray(vertices, np.float64), np.asarray(faces)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{name}: vertices need shape (V, 3), got {points.shape}")
    if triangles.ndim == 2 and triangles.shape[1] == 4:
        raise ValueError(
            f"{name}: the faces are quadrilaterals; cut each (a, b, c, d) into the triangles (a, b, c) and (a, c, d)"
        )
    if triangles.ndim != 2 or triangles.shape[1] != 3 or len(triangles) == 0:
        raise ValueError(f"{name}: faces need shape (F, 3) with at least one face, got {triangles.shape}")
    if not np.issubdtype(triangles.dtype, np.integer):
        raise ValueError(f"{name}: faces must be whole numbers, got {triangles.dtype}")
    if triangles.min() < 0 or triangles.max() >= len(points):
        raise ValueError(f"{name}: faces name vertices outside 0..{len(points) - 1}; are they counted from 1?")
    used, triangles = np.unique(triangles, return_inverse=True)
    triangles = triangles.reshape(-1, 3).astype(np.int64)
    points = np.ascontiguousarray(points[used])
    if not np.isfinite(points).all():
        raise ValueError(f"{name}: vertex {int(used[~np.isfinite(points).all(1)][0])} is NaN or infinite")
    a, b, c = (points[triangles[:, i]] for i in range(3))
    doubled = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    size = np.ptp(points, axis=0).max()
    flat = np.flatnonzero(doubled <= TINY_AREA * size**2)
    if len(flat):
        raise ValueError(f"{name}: face {flat[0]} has no area ({len(flat)} such faces); remove degenerate triangles")
    _check_edges(triangles, used, name)
    pieces = _count_pieces(triangles, len(points))
    if pieces > 1:
        raise ValueError(
            f"{name}: it has {pieces} separate pieces; spectral distances need one, so pass them one by one"
        )
    digest = hashlib.sha256(points.tobytes() + triangles.tobytes()).hexdigest()
    return Geometry(digest, (len(points), len(triangles)), points.tobytes(), triangles.tobytes())


def _check_edges(triangles: NDArray[np.int64], used: NDArray[Any], name: str) -> None:
    start, end = triangles.reshape(-1), np.roll(triangles, -1, axis=1).reshape(-1)
    low, high = np.minimum(start, end), np.maximum(start, end)
    edges, which, counts = np.unique(np.stack([low, high], 1), axis=0, return_inverse=True, return_counts=True)

    def said(rows: NDArray[np.bool_]) -> str:
        p, q = used[edges[rows][0]]
        return f"edge ({p}, {q}), and {int(rows.sum()) - 1} more"

    if (counts > 2).any():
        raise ValueError(f"{name}: more than two triangles meet at {said(counts > 2)}: the mesh is not a manifold")
    if (counts < 2).any():
        raise ValueError(
            f"{name}: only one triangle at {said(counts < 2)}: the mesh is open; close its holes (trimesh.repair.fill_holes)"
        )
    turns = np.bincount(which.reshape(-1), np.where(start < end, 1, -1))
    if (turns != 0).any():
        raise ValueError(
            f"{name}: the two triangles at {said(turns != 0)} have opposite orientations; run trimesh.repair.fix_winding"
        )


def _count_pieces(triangles: NDArray[np.int64], vertices: int) -> int:
    start, end = triangles.reshape(-1), np.roll(triangles, -1, axis=1).reshape(-1)
    graph = scipy.sparse.coo_matrix((np.ones(len(start)), (start, end)), shape=(vertices, vertices))
    return int(scipy.sparse.csgraph.connected_components(graph, directed=False)[0])
