"""The maps of small manifolds coordinate by coordinate: what ``torch.compile`` gets instead of the usual form on a CPU.

Same formulas, same values to round-off; see :mod:`manifoldflow.manifolds.rows` for why.
"""

import torch
from torch import Tensor

from manifoldflow.manifolds import rotation_rows as rot
from manifoldflow.manifolds.rows import Rows, dot, matrices, norm, points, rows, times, to_unit
from manifoldflow.numerics import polar_angle


def sphere_exp(x: Tensor, u: Tensor) -> Tensor:
    """See :meth:`manifoldflow.Sphere.exp`."""
    a, v = rows(x), rows(u)
    r = norm(v)
    cos, sinc = r.cos(), r.sin() / r
    return points(to_unit([cos * p + sinc * q for p, q in zip(a, v, strict=True)]))


def sphere_log(x: Tensor, y: Tensor) -> Tensor:
    """See :meth:`manifoldflow.Sphere.log`."""
    tangential, sine, angle = _polar(rows(x), rows(y))
    scale = angle / sine
    return points([scale * q for q in tangential])


def sphere_geodesic(x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """See :meth:`manifoldflow.Sphere.geodesic`."""
    a = rows(x0)
    tangential, sine, angle = _polar(a, rows(x1))
    turned = times(t, angle) * angle
    cos, sin = turned.cos(), turned.sin()
    along, forward, back = sin / sine, angle / sine * cos, angle * sin
    pairs = list(zip(a, tangential, strict=True))
    return points([cos * p + along * q for p, q in pairs]), points([forward * q - back * p for p, q in pairs])


def so3_exp(x: Tensor, u: Tensor) -> Tensor:
    """See :meth:`manifoldflow.SO3.exp`."""
    return matrices(rot.product(rows(x, 2), rot.matrix_of_rotvec(rows(u))))


def so3_log(x: Tensor, y: Tensor) -> Tensor:
    """See :meth:`manifoldflow.SO3.log`."""
    return points(rot.rotvec_of_quaternion(_turn(rows(x, 2), rows(y, 2))))


def so3_interpolate(x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
    """See :meth:`manifoldflow.SO3.interpolate`."""
    a = rows(x0, 2)
    turn = _turn(a, rows(x1, 2))
    return matrices(rot.product(a, rot.matrix_of_quaternion(rot.power(turn, times(t, turn[0])))))


def so3_geodesic(x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """See :meth:`manifoldflow.SO3.geodesic`."""
    a = rows(x0, 2)
    turn = _turn(a, rows(x1, 2))
    x = matrices(rot.product(a, rot.matrix_of_quaternion(rot.power(turn, times(t, turn[0])))))
    return x, points(rot.rotvec_of_quaternion(turn))


def quaternion_exp(x: Tensor, u: Tensor) -> Tensor:
    """See :meth:`manifoldflow.UnitQuaternion.exp`."""
    return points(to_unit(rot.hamilton(rows(x), rot.quaternion_of_rotvec(rows(u)))))


def quaternion_log(x: Tensor, y: Tensor) -> Tensor:
    """See :meth:`manifoldflow.UnitQuaternion.log`."""
    return points(rot.rotvec_of_quaternion(rot.hamilton(rot.conjugate(rows(x)), rows(y))))


def quaternion_interpolate(x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
    """See :meth:`manifoldflow.UnitQuaternion.interpolate`."""
    return quaternion_geodesic(x0, x1, t)[0]  # what makes the velocity is dead code for the compiler


def quaternion_geodesic(x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """See :meth:`manifoldflow.UnitQuaternion.geodesic`."""
    a, b = rows(x0), rows(x1)
    cosine = dot(a, b)
    sign = torch.where(cosine < 0, -1.0, 1.0).to(cosine.dtype)
    chord = [sign * q - p for p, q in zip(a, b, strict=True)]
    tangential, sine = _across(a, chord)
    half = polar_angle(sine, cosine.abs())
    turned = times(t, half) * half
    cos, along, rate = turned.cos(), turned.sin() / sine, 2 * half / sine
    x = points([cos * p + along * q for p, q in zip(a, tangential, strict=True)])
    return x, points([rate * v for v in rot.hamilton(rot.conjugate(a), tangential)[1:]])


def _turn(a: Rows, b: Rows) -> Rows:
    """The quaternion of the rotation from one matrix to another, in the frame of the first."""
    return rot.quaternion_of_matrix(rot.product(rot.transpose(a), b))


def _across(a: Rows, chord: Rows) -> tuple[Rows, Tensor]:
    """The part of a chord that is orthogonal to ``a``, and its length."""
    radial = dot(a, chord)
    tangential = [q - radial * p for p, q in zip(a, chord, strict=True)]
    return tangential, norm(tangential)


def _polar(a: Rows, b: Rows) -> tuple[Rows, Tensor, Tensor]:
    cosine = dot(a, b)
    side, nudge = cosine.detach().sign(), 0.05 * torch.finfo(cosine.dtype).eps
    aside = [torch.where(p.abs() < 0.7, nudge * 0.5**k, 0.0) for k, p in enumerate(a)]
    chord = [q - side * p + (1 - side) * n for p, q, n in zip(a, b, aside, strict=True)]
    tangential, sine = _across(a, chord)
    return tangential, sine, polar_angle(sine, cosine)
