"""Conversions of rotations as matrix products with constant tables: few kernels for small batches on a CPU.

The entries of :math:`4 q q^T` are linear in those of the rotation matrix, and these are linear in the products
:math:`q_i q_j`. What :mod:`manifoldflow.manifolds.rotation_rows` does number by number in a hundred kernels is here four.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from manifoldflow.numerics import dot, products_keep_digits

WIDTH = 12
"""Of the tables with ten products: products of matrices with 9 or 10 columns take three times as long."""

PAIRS = [(i, j) for i in range(4) for j in range(i, 4)]


class Tables(NamedTuple):
    """Of one dtype.

    Attributes:
        outer, offset: ``4 q q^T`` (16) of a matrix (9).
        left, right: the factors of the ten products (and two zeros), of q (4).
        matrix: the matrix (9, and three zeros) of the ten products.
    """

    outer: Tensor
    offset: Tensor
    left: Tensor
    right: Tensor
    matrix: Tensor


def _tables(dtype: torch.dtype) -> Tables:
    # Rows of 4 q q^T as signs of the entries of R, by Shepperd (1978); the products of R, by Euler and Rodrigues.
    signs = {(0, 0): "a+e+i", (1, 1): "a-e-i", (2, 2): "-a+e-i", (3, 3): "-a-e+i"}
    signs |= {(0, 1): "h-f", (0, 2): "c-g", (0, 3): "d-b", (1, 2): "b+d", (1, 3): "c+g", (2, 3): "f+h"}
    outer = torch.zeros(4, 4, 9, dtype=dtype, device="cpu")
    for (i, j), terms in signs.items():
        sign = 1.0
        for letter in terms:
            if letter in "+-":
                sign = 1.0 if letter == "+" else -1.0
                continue
            outer[i, j, "abcdefghi".index(letter)] = outer[j, i, "abcdefghi".index(letter)] = sign
    entries = [
        "ww+xx-yy-zz",
        "2xy-2wz",
        "2xz+2wy",
        "2xy+2wz",
        "ww-xx+yy-zz",
        "2yz-2wx",
        "2xz-2wy",
        "2yz+2wx",
        "ww-xx-yy+zz",
    ]
    matrix = torch.zeros(WIDTH, WIDTH, dtype=dtype, device="cpu")
    for row, entry in enumerate(entries):
        for term in entry.replace("-", "+-").split("+"):
            size = (-1.0 if term.startswith("-") else 1.0) * (2.0 if "2" in term else 1.0)
            i, j = sorted("wxyz".index(c) for c in term.lstrip("-2"))
            matrix[row, PAIRS.index((i, j))] = size
    eye = torch.eye(4, dtype=dtype, device="cpu")
    left, right = (torch.zeros(WIDTH, 4, dtype=dtype, device="cpu") for _ in range(2))
    for k, (i, j) in enumerate(PAIRS):
        left[k], right[k] = eye[i], eye[j]
    return Tables(outer.flatten(0, 1), eye.flatten(), left, right, matrix)


TABLES = {dtype: _tables(dtype) for dtype in (torch.float32, torch.float64)}


def usable(x: Tensor) -> Tables | None:
    """The tables for ``x``, None where they would not pay or would lose digits."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not products_keep_digits():
        return None
    return TABLES.get(x.dtype)


def _quaternions(r: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """Multiples of the quaternions of rotation matrices ``(..., 3, 3)``, and what brings them to length 1, ``(..., 1)``."""
    table = linear(r.flatten(-2), tables.outer, tables.offset)
    largest, index = table[..., ::5].max(-1, keepdim=True)
    rows = table.reshape(-1, 4)
    chosen = torch.arange(0, len(rows), 4, device=r.device).reshape(index.shape) + index
    return rows.index_select(0, chosen.flatten()).reshape(*index.shape[:-1], 4), 0.5 * largest.rsqrt()


def interpolate(x0: Tensor, x1: Tensor, t: Tensor | float, tables: Tables) -> Tensor:
    r"""The rotation at the share ``t`` of the way from ``x0`` to ``x1``: spherical interpolation of their quaternions.

    The weights :math:`\sin((1 - t) h) / \sin h` are flat at h = 0, so the half angle h may come from a cosine.

    Args:
        x0, x1: rotation matrices ``(..., 3, 3)``.
        t: number, or leading batch axes of x0 with size 1 for the rest and a last axis of 1.
    """
    rows, sizes = _quaternions(torch.stack([x0, x1]), tables)
    (a, b), (size_a, size_b) = rows.unbind(0), sizes.unbind(0)
    cosine = dot(a, b) * (size_a * size_b)
    half = cosine.abs().clamp_max(1 - 2 * torch.finfo(cosine.dtype).eps).acos()
    later = t * half
    below = half.sin()
    before, after = (half - later).sin() * size_a / below, later.sin() * size_b / below
    after = torch.where(cosine < 0, -after, after)
    return rotation_matrices(torch.addcmul(before * a, after, b), tables)


def rotation_matrices(q: Tensor, tables: Tables) -> Tensor:
    """Matrices ``(..., 3, 3)`` of unit quaternions."""
    entries = linear(linear(q, tables.left) * linear(q, tables.right), tables.matrix)
    return entries[..., :9].reshape(*q.shape[:-1], 3, 3)
