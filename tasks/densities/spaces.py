"""Manifolds by name, and how the numbers of a table become points of them."""

import difflib
import math

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.rotation import matrix_to_quaternion, quaternion_to_matrix, rotvec_to_matrix

NAMES = ("sphere", "torus", "so3", "quaternion", "simplex", "simplex-flat", "euclidean")
"""What ``--manifold`` takes; sizes follow a colon: ``torus:3``, ``sphere:2``, ``simplex:4``, ``euclidean:2``."""

TOLERANCE = 1e-3
"""How far a point of a table may lie off its manifold: files keep three digits or more."""


def space_of(name: str) -> Manifold:
    """The manifold of a name such as ``"sphere"`` (S^2), ``"torus:3"`` (angles in radians) or ``"so3"``.

    Raises:
        ValueError: unknown name, or a size that is missing or no whole number.
    """
    kind, _, size = name.strip().lower().partition(":")
    if kind not in NAMES:
        close = difflib.get_close_matches(kind, NAMES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown manifold {name!r}{hint}; use one of {', '.join(NAMES)}, with a size as in torus:3")
    if kind in ("so3", "quaternion"):
        return mf.SO3() if kind == "so3" else mf.UnitQuaternion()
    if not size and kind != "sphere":
        raise ValueError(f"manifold {kind!r} needs a size, as in {kind}:3")
    if size and not size.isdigit():
        raise ValueError(f"manifold {name!r}: the size must be a whole number, got {size!r}")
    d = int(size or 2)
    if kind == "torus":
        return mf.Torus(d, 2 * math.pi)
    if kind == "sphere":
        return mf.Sphere(d)
    if kind == "euclidean":
        return mf.Euclidean(d)
    return mf.Simplex(d, "flat" if kind == "simplex-flat" else "fisher_rao")


def name_of(space: Manifold) -> str:
    """The name that :func:`space_of` turns into ``space``."""
    if isinstance(space, mf.SO3):
        return "so3"
    if isinstance(space, mf.UnitQuaternion):
        return "quaternion"
    if isinstance(space, mf.Sphere):
        return f"sphere:{space.dim}"
    if isinstance(space, mf.Torus) and abs(space.period - 2 * math.pi) < 1e-9:
        return f"torus:{space.d}"
    if isinstance(space, mf.Euclidean):
        return f"euclidean:{space.dim}"
    if isinstance(space, mf.Simplex):
        return f"simplex{'-flat' if space.metric == 'flat' else ''}:{space.categories}"
    raise ValueError(f"{space} has no name that a density flow could be rebuilt from; named are {', '.join(NAMES)}")


def sizes(kind: str, count: int) -> str:
    """The manifold's full name for a table of ``count`` columns where the user left the size out."""
    if ":" in kind or kind in ("so3", "quaternion"):
        return kind
    return f"{kind}:{2 if count == 2 else count - 1}" if kind == "sphere" else f"{kind}:{count}"


def angles_to_sphere(degrees: Tensor) -> Tensor:
    """Unit vectors ``(..., 3)`` of (latitude, longitude) in degrees ``(..., 2)``: x to (0, 0), z to the north pole."""
    lat, lon = degrees.deg2rad().unbind(-1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)


def sphere_to_angles(x: Tensor) -> Tensor:
    """(latitude, longitude) in degrees of unit vectors; the inverse of :func:`angles_to_sphere`."""
    flat = torch.linalg.vector_norm(x[..., :2], dim=-1)
    return torch.stack([torch.atan2(x[..., 2], flat), torch.atan2(x[..., 1], x[..., 0])], -1).rad2deg()


def to_points(space: Manifold, numbers: Tensor, in_degrees: bool) -> Tensor:
    """Points ``(N, *event)`` from a table ``(N, columns)``, before any check of whether they lie on the manifold.

    Sphere: 2 columns are latitude and longitude, 3 a unit vector. Rotations: 9 columns are a matrix by rows, 4 a quaternion
    (w, x, y, z), 3 a rotation vector.

    Raises:
        ValueError: the number of columns fits no form.
    """
    count = numbers.shape[-1]
    if isinstance(space, mf.Sphere) and space.dim == 2 and count == 2:
        return angles_to_sphere(numbers if in_degrees else numbers.rad2deg())
    if isinstance(space, mf.SO3 | mf.UnitQuaternion):
        if count not in (3, 4, 9):
            raise ValueError(f"rotations need 9 columns (matrix by rows), 4 (quaternion) or 3 (vector), got {count}")
        wants_matrix = isinstance(space, mf.SO3)
        if count == 3:
            matrix = rotvec_to_matrix(numbers.deg2rad() if in_degrees else numbers)
        elif count == 9:
            matrix = numbers.reshape(-1, 3, 3)
        else:
            return quaternion_to_matrix(numbers) if wants_matrix else numbers
        return matrix if wants_matrix else matrix_to_quaternion(matrix)
    wanted = math.prod(space.event_shape)
    if count != wanted:
        also = ", or 2 (latitude, longitude)" if isinstance(space, mf.Sphere) and space.dim == 2 else ""
        raise ValueError(f"{name_of(space)} needs {wanted} columns{also}, got {count}")
    if isinstance(space, mf.Torus):
        return (numbers.deg2rad() if in_degrees else numbers).remainder(space.period)
    return numbers


def distance_off(space: Manifold, points: Tensor, numbers: Tensor) -> Tensor:
    """How far each row of a table is off its manifold, ``(N,)``.

    Rotation matrices and quaternions are judged by the numbers given: turning one form into the other would hide the fault.
    """
    if isinstance(space, mf.SO3 | mf.UnitQuaternion):
        count = numbers.shape[-1]
        if count == 3:
            return torch.zeros(len(numbers), dtype=numbers.dtype)
        if count == 4:
            return (torch.linalg.vector_norm(numbers, dim=-1) - 1).abs()
        return mf.SO3().residual(numbers.reshape(-1, 3, 3))
    return space.residual(points)


def to_table(space: Manifold, x: Tensor) -> tuple[list[str], Tensor]:
    """Column names and numbers of points, in the units people read: degrees for the earth and for tori."""
    if isinstance(space, mf.Sphere) and space.dim == 2:
        return ["latitude", "longitude"], sphere_to_angles(x)
    if isinstance(space, mf.Torus):
        return [f"angle{i + 1}" for i in range(space.d)], (x.rad2deg() + 180).remainder(360) - 180
    flat = x.flatten(1)
    if isinstance(space, mf.SO3):
        return [f"r{i}{j}" for i in range(3) for j in range(3)], flat
    if isinstance(space, mf.UnitQuaternion):
        return list("wxyz"), flat
    return [f"x{i + 1}" for i in range(flat.shape[-1])], flat
