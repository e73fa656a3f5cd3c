r"""Conversions between representations of a rotation, pure functions without a manifold object.

Conventions: active rotations that act on column vectors; unit quaternions as ``[w, x, y, z]`` (q and -q are the same
rotation); rotation vectors in radians; all leading axes are batch. Every map is smooth where its result is, exact to
round-off from angle 0 to pi, and branch-free, so it runs under vmap, jvp and ``torch.compile(fullgraph=True)``.
"""

import torch
from torch import Tensor

from manifoldflow.manifolds import rotation_products as products
from manifoldflow.manifolds import rotation_rows as rot
from manifoldflow.manifolds.rows import matrices, pays, points, rows
from manifoldflow.numerics import smooth_norm


def hat(w: Tensor) -> Tensor:
    """The skew matrix of a vector: ``hat(w) @ v == cross(w, v)``; ``(..., 3) -> (..., 3, 3)``."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def compose(a: Tensor, b: Tensor) -> Tensor:
    """Product of matrices ``(..., 3, 3)`` with all its digits: on an accelerator without the matrix
    unit, which TF32 cuts to 3 digits."""
    if a.device.type == "cpu":
        return a @ b
    columns, rows = a.unbind(-1), b.unbind(-2)
    terms = [c.unsqueeze(-1) * r.unsqueeze(-2) for c, r in zip(columns, rows, strict=True)]
    return terms[0] + terms[1] + terms[2]


def rotvec_to_matrix(w: Tensor) -> Tensor:
    r"""``(..., 3) -> (..., 3, 3)`` by Rodrigues' formula

    :math:`R = I + \mathrm{sinc}(a) [w]_\times + \frac{1 - \cos a}{a^2} [w]_\times^2`, a = \|w\|."""
    return matrices(rot.matrix_of_rotvec(rows(w)))


def rotvec_to_quaternion(w: Tensor) -> Tensor:
    r"""Unit quaternion :math:`(\cos(a/2), \mathrm{sinc}(a/2)\, w / 2)`, ``(..., 3) -> (..., 4)``."""
    if pays(w):
        return points(rot.quaternion_of_rotvec(rows(w)))
    half = 0.5 * smooth_norm(w)
    return torch.cat([half.cos(), (0.5 * half.sin() / half) * w], -1)


def quaternion_to_rotvec(q: Tensor) -> Tensor:
    """The rotation vector of length at most pi, ``(..., 4) -> (..., 3)``; q and -q give the same one.

    The sign is fixed by ``w >= 0``; at w = 0 (angle pi exactly) the axis is the vector part as it stands.
    """
    if pays(q):
        return points(rot.rotvec_of_quaternion(rows(q)))
    w, v = q.split([1, 3], -1)
    sign = torch.where(w < 0, -1.0, 1.0).to(q.dtype)
    sine = smooth_norm(v)
    return (2 * sign * torch.atan2(sine, sign * w) / sine) * v


def matrix_to_quaternion(r: Tensor) -> Tensor:
    """The unit quaternion with w >= 0 of a rotation matrix, ``(..., 3, 3) -> (..., 4)``.

    The four rows of the symmetric matrix 4 q q^T can each be read off R; the one with the largest diagonal entry (at
    least 1) is normalised, so no digits are lost at any angle. Shepperd (1978), without its branches.
    """
    return points(rot.quaternion_of_matrix(rows(r, 2)))


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """Rotation matrix of a unit quaternion, ``(..., 4) -> (..., 3, 3)``."""
    if (tables := products.usable(q)) is not None:
        return products.rotation_matrices(q, tables)
    return matrices(rot.matrix_of_quaternion(rows(q)))


def matrix_to_rotvec(r: Tensor) -> Tensor:
    """The rotation vector of length at most pi, ``(..., 3, 3) -> (..., 3)``, through the best-conditioned quaternion."""
    return points(rot.rotvec_of_quaternion(rot.quaternion_of_matrix(rows(r, 2))))


def inverse_right_jacobian(w: Tensor, v: Tensor) -> Tensor:
    r"""The change of the rotation vector ``w`` that turns Exp(w) by the body-frame ``v``, both ``(..., 3)``.

    .. math::
        J_r^{-1}(w) v = v + \tfrac12 w \times v + c\, w \times (w \times v), \quad a = \|w\|, \quad
        c = \frac{1 - (a/2) \cot(a/2)}{a^2}

    Finite below a = 2 pi (Chirikjian 2012, eq. 10.86, with the half angle, which is well conditioned at a = pi).
    """
    w, v = torch.broadcast_tensors(w, v)
    squared = (w * w).sum(-1, keepdim=True)
    is_small = squared < 0.1
    half = 0.5 * squared.where(~is_small, 1.0).sqrt()
    q = torch.where(is_small, squared, 0.0)
    series = 1 / 12 + q * (
        1 / 720 + q * (1 / 30240 + q * (1 / 1209600 + q * (1 / 47900160 + q * (691 / 1307674368000))))
    )
    c = torch.where(is_small, series, (1 - half / half.tan()) / (4 * half * half))
    turned = torch.linalg.cross(w, v)
    return v + 0.5 * turned + c * torch.linalg.cross(w, turned)


def quaternion_multiply(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product of quaternions ``(..., 4)``: the rotation q followed by p."""
    return points(rot.hamilton(rows(p), rows(q)))


def quaternion_conjugate(q: Tensor) -> Tensor:
    """The inverse of a unit quaternion ``(..., 4)``."""
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def quaternion_rotate(q: Tensor, v: Tensor) -> Tensor:
    """Turn vectors ``(..., 3)`` by unit quaternions ``(..., 4)``."""
    axis, v = torch.broadcast_tensors(q[..., 1:], v)
    twice = 2 * torch.linalg.cross(axis, v)
    return v + q[..., :1] * twice + torch.linalg.cross(axis, twice)


def sixd_to_matrix(d6: Tensor) -> Tensor:
    """Gram-Schmidt of two vectors (the first two **columns**), ``(..., 6) -> (..., 3, 3)`` (Zhou et al. 2019, eq. 15).

    Two parallel or zero vectors have no rotation: the result is then finite but arbitrary.
    """
    a, b = d6[..., :3], d6[..., 3:]
    x = torch.nn.functional.normalize(a, dim=-1)
    y = torch.nn.functional.normalize(b - (x * b).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def matrix_to_sixd(r: Tensor) -> Tensor:
    """The first two columns, ``(..., 3, 3) -> (..., 6)``: the inverse of :func:`sixd_to_matrix`."""
    return torch.cat([r[..., :, 0], r[..., :, 1]], -1)


def euler_to_matrix(angles: Tensor, order: str = "ZYX") -> Tensor:
    """Intrinsic Euler angles (radians) to a matrix: ``order="ZYX"`` turns about z, then the new y, then the new x.

    Args:
        angles: ``(..., 3)``, in the order of the letters.
        order: three letters of X, Y, Z; neighbours differ (scipy's upper-case convention).
    """
    result: Tensor | None = None
    for k, axis in enumerate(_check_order(order)):
        w = torch.zeros_like(angles)
        w = torch.cat([angles[..., k : k + 1] if i == axis else w[..., :1] for i in range(3)], -1)
        turn = rotvec_to_matrix(w)
        result = turn if result is None else compose(result, turn)
    assert result is not None
    return result


def matrix_to_euler(r: Tensor, order: str = "ZYX") -> Tensor:
    """Intrinsic Euler angles of a matrix, ``(..., 3)``; the inverse of :func:`euler_to_matrix`.

    The middle angle lies in [-pi/2, pi/2] for three different letters and in [0, pi] for ``ZXZ``-like orders. At gimbal
    lock (middle angle at an end of its range) the last angle is set to 0, as the first two turns share an axis there.
    """
    i, j, k = _check_order(order)
    if i == k:
        third = 3 - i - j
        sign = 1.0 if (j - i) % 3 == 1 else -1.0
        sine = torch.hypot(r[..., i, j], r[..., i, third])
        middle = torch.atan2(sine, r[..., i, i])
        locked = sine < 1e-6
        first = torch.atan2(r[..., j, i], -sign * r[..., third, i])
        last = torch.atan2(r[..., i, j], sign * r[..., i, third])
        first_locked = torch.atan2(sign * r[..., third, j], r[..., j, j])
    else:
        sign = 1.0 if (j - i) % 3 == 1 else -1.0
        cosine = torch.hypot(r[..., i, i], r[..., i, j])
        middle = torch.atan2(sign * r[..., i, k], cosine)
        locked = cosine < 1e-6
        first = torch.atan2(-sign * r[..., j, k], r[..., k, k])
        last = torch.atan2(-sign * r[..., i, j], r[..., i, i])
        first_locked = torch.atan2(sign * r[..., k, j], r[..., j, j])
    return torch.stack([torch.where(locked, first_locked, first), middle, torch.where(locked, 0.0, last)], -1)


def _check_order(order: str) -> tuple[int, int, int]:
    if len(order) != 3 or any(letter not in "XYZ" for letter in order) or order[0] == order[1] or order[1] == order[2]:
        raise ValueError(
            f"order must be three of the letters X, Y, Z with different neighbours, such as 'ZYX', got {order!r}"
        )
    i, j, k = ("XYZ".index(letter) for letter in order)
    return i, j, k
