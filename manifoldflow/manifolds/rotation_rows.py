"""Formulas of rotations on lists of coordinates: quaternions [w, x, y, z], rotation vectors [x, y, z], matrices row by row.

:mod:`manifoldflow.manifolds.rotation` wraps them for tensors, :mod:`manifoldflow.manifolds.compiled` fuses them.
"""

import torch
from torch import Tensor

from manifoldflow.manifolds.rows import Rows, dot, norm
from manifoldflow.numerics import polar_angle


def product(a: Rows, b: Rows) -> Rows:
    """Of 3x3 matrices."""
    return [dot(a[3 * i : 3 * i + 3], b[j::3]) for i in range(3) for j in range(3)]


def transpose(a: Rows) -> Rows:
    """Of a 3x3 matrix."""
    return [a[3 * j + i] for i in range(3) for j in range(3)]


def hamilton(p: Rows, q: Rows) -> Rows:
    """Product of quaternions."""
    (a, b, c, d), (w, x, y, z) = p, q
    return [
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    ]


def conjugate(q: Rows) -> Rows:
    """Of a quaternion."""
    return [q[0], *(-v for v in q[1:])]


def matrix_of_rotvec(w: Rows) -> Rows:
    """See :func:`manifoldflow.manifolds.rotation.rotvec_to_matrix`."""
    x, y, z = w
    r = norm(w)
    half = 0.5 * r
    # 2 sin(r/2)^2 keeps the digits that 1 - cos r loses.
    s, c = r.sin() / r, 0.5 * (half.sin() / half).square()
    cx, cy, cz = c * x, c * y, c * z
    sx, sy, sz = s * x, s * y, s * z
    xy, xz, yz = cx * y, cx * z, cy * z
    xx, yy, zz = cx * x, cy * y, cz * z
    return [1 - yy - zz, xy - sz, xz + sy, xy + sz, 1 - xx - zz, yz - sx, xz - sy, yz + sx, 1 - xx - yy]


def quaternion_of_rotvec(w: Rows) -> Rows:
    """See :func:`manifoldflow.manifolds.rotation.rotvec_to_quaternion`."""
    half = 0.5 * norm(w)
    scale = 0.5 * half.sin() / half
    return [half.cos(), *(scale * v for v in w)]


def quaternion_of_matrix(r: Rows) -> Rows:
    """See :func:`manifoldflow.manifolds.rotation.matrix_to_quaternion`."""
    a, b, c, d, e, f, g, h, i = r
    ww, xx, yy, zz = 1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i
    xw, yw, zw = h - f, c - g, d - b
    xy, xz, yz = b + d, c + g, f + h
    w_over_x, y_over_z = ww >= xx, yy >= zz
    first_pair = torch.where(w_over_x, ww, xx) >= torch.where(y_over_z, yy, zz)

    def best(by_w: Tensor, by_x: Tensor, by_y: Tensor, by_z: Tensor) -> Tensor:
        return torch.where(first_pair, torch.where(w_over_x, by_w, by_x), torch.where(y_over_z, by_y, by_z))

    q = [best(ww, xw, yw, zw), best(xw, xx, xy, xz), best(yw, xy, yy, yz), best(zw, xz, yz, zz)]
    scale = torch.where(q[0] < 0, -1.0, 1.0).to(a.dtype) / dot(q, q).sqrt()
    return [scale * v for v in q]


def matrix_of_quaternion(q: Rows) -> Rows:
    """See :func:`manifoldflow.manifolds.rotation.quaternion_to_matrix`."""
    w, x, y, z = q
    x2, y2, z2 = 2 * x, 2 * y, 2 * z
    xx, yy, zz, xy, xz, yz, wx, wy, wz = x * x2, y * y2, z * z2, x * y2, x * z2, y * z2, w * x2, w * y2, w * z2
    return [1 - yy - zz, xy - wz, xz + wy, xy + wz, 1 - xx - zz, yz - wx, xz - wy, yz + wx, 1 - xx - yy]


def rotvec_of_quaternion(q: Rows) -> Rows:
    """See :func:`manifoldflow.manifolds.rotation.quaternion_to_rotvec`."""
    w, *v = q
    sign = torch.where(w < 0, -1.0, 1.0).to(w.dtype)
    sine = norm(v)
    scale = 2 * sign * polar_angle(sine, sign * w) / sine
    return [scale * p for p in v]


def power(q: Rows, t: Tensor | float) -> Rows:
    """The rotation by the share ``t`` of the angle in [0, pi] of a quaternion with w >= 0."""
    w, *v = q
    sine = norm(v)
    turned = t * polar_angle(sine, w)
    scale = turned.sin() / sine
    return [turned.cos(), *(scale * p for p in v)]
