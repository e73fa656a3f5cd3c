"""Closed meshes made by code, for tests and demonstrations."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.manifolds.mesh import Mesh


def torus_mesh(around: int = 80, across: int = 32, *, major: float = 1.0, minor: float = 0.4, **options: Any) -> Mesh:
    """A torus of revolution about z, ``around * across`` vertices (2,560), oriented outward.

    Args:
        around, across: vertices of the large and of the small circle.
        major, minor: their radii.
        options: ``kernel``, ``pairs``, ``tau`` of :class:`Mesh`.
    """
    if around < 3 or across < 3:
        raise ValueError(f"a torus needs at least 3 vertices on each circle, got {around} and {across}")
    if not 0 < minor < major:
        raise ValueError(f"a torus needs 0 < minor < major, got {minor} and {major}")
    i, j = (a.reshape(-1) for a in np.meshgrid(np.arange(around), np.arange(across), indexing="ij"))
    large, small = 2 * np.pi * i / around, 2 * np.pi * j / across
    ring = major + minor * np.cos(small)
    vertices = np.stack([ring * np.cos(large), ring * np.sin(large), minor * np.sin(small)], 1)

    def number(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        return a % around * across + b % across

    a, b, c, d = number(i, j), number(i + 1, j), number(i + 1, j + 1), number(i, j + 1)
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return Mesh.from_arrays(vertices, faces, name="torus", **options)


def bumpy_sphere_mesh(subdivisions: int = 4, *, bumps: float = 0.15, radius: float = 1.0, **options: Any) -> Mesh:
    r"""The surface :math:`r = R (1 + a \sin 3x \sin 4y \sin(3z + 1))` over the unit sphere, oriented outward.

    Args:
        subdivisions: how often an icosahedron's triangles are cut into four; n give 10 * 4^n + 2 vertices (2,562).
        bumps: amplitude a, 0 for a round sphere.
        radius: R.
        options: ``kernel``, ``pairs``, ``tau`` of :class:`Mesh`.
    """
    vertices, faces = _icosphere(subdivisions)
    x, y, z = vertices.T
    height = 1 + bumps * np.sin(3 * x) * np.sin(4 * y) * np.sin(3 * z + 1)
    name = "bumpy sphere" if bumps else "sphere"
    return Mesh.from_arrays(radius * height[:, None] * vertices, faces, name=name, **options)


def _icosphere(subdivisions: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    g = (1 + 5**0.5) / 2
    vertices = np.array([[0, s, t * g] for s in (-1, 1) for t in (-1, 1)], np.float64)
    vertices = np.concatenate([np.roll(vertices, k, axis=1) for k in range(3)])
    gaps = np.linalg.norm(vertices[:, None] - vertices, axis=-1)
    near = np.abs(gaps - 2) < 1e-9
    corners = np.array(
        [(a, b, c) for a in range(12) for b in range(a) for c in range(b) if near[a, b] and near[b, c] and near[a, c]]
    )
    inward = np.linalg.det(vertices[corners]) < 0
    corners[inward] = corners[inward][:, ::-1]
    faces = corners.astype(np.int64)
    for _ in range(subdivisions):
        starts, ends = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
        edges = np.stack([np.minimum(starts, ends), np.maximum(starts, ends)], 1)
        edges, which = np.unique(edges, axis=0, return_inverse=True)
        middle = len(vertices) + which.reshape(-1, 3)
        vertices = np.concatenate([vertices, vertices[edges].mean(1)])
        a, b, c = faces.T
        ab, bc, ca = middle.T
        faces = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return vertices / np.linalg.norm(vertices, axis=1, keepdims=True), faces
