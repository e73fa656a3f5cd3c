"""The sphere's maps coordinate by coordinate: what ``torch.compile`` gets instead of the usual form on a CPU.

The compiler vectorises the innermost axis. With the 2 to 4 numbers of one point there it gains nothing; with the batch
there, all it can: 5 times on the geodesics of S^2 and 15 times on the gradient of ``log`` (100,000 points). So each
coordinate is a tensor of its own here. The formulas are those of :class:`manifoldflow.Sphere`, to round-off.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from manifoldflow.numerics import polar_angle, tiny_square

F = TypeVar("F", bound=Callable[..., Any])
Rows = list[Tensor]


def compiled_as(by_rows: Callable[..., Any]) -> Callable[[F], F]:
    """Replace a method of tensors ``(..., 2 to 4)`` under ``torch.compile`` on a CPU; eager mode is not touched."""

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def wrapped(self: Any, x: Tensor, y: Tensor, *rest: Any) -> Any:
            if (
                torch.compiler.is_compiling()
                and x.device.type == "cpu"
                and x.ndim > 1
                and y.ndim > 1
                and 2 <= x.shape[-1] <= 4
            ):
                return by_rows(x, y, *rest)
            return method(self, x, y, *rest)

        return wrapped  # type: ignore[return-value]

    return decorate


def exp(x: Tensor, u: Tensor) -> Tensor:
    """See :meth:`manifoldflow.Sphere.exp`."""
    a, v = _rows(x), _rows(u)
    r = _norm(v)
    cos, sinc = r.cos(), r.sin() / r
    return _points([cos * p + sinc * q for p, q in zip(a, v, strict=True)])


def log(x: Tensor, y: Tensor) -> Tensor:
    """See :meth:`manifoldflow.Sphere.log`."""
    tangential, sine, angle = _polar(_rows(x), _rows(y))
    scale = angle / sine
    return _points([scale * q for q in tangential])


def geodesic(x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """See :meth:`manifoldflow.Sphere.geodesic`."""
    a = _rows(x0)
    tangential, sine, angle = _polar(a, _rows(x1))
    if isinstance(t, Tensor) and 0 < t.ndim < angle.ndim:
        t = t.reshape(t.shape + (1,) * (angle.ndim - t.ndim))
    turned = t * angle
    cos, sin = turned.cos(), turned.sin()
    along, forward, back = sin / sine, angle / sine * cos, angle * sin
    pairs = list(zip(a, tangential, strict=True))
    return _points([cos * p + along * q for p, q in pairs]), _points([forward * q - back * p for p, q in pairs])


def _polar(a: Rows, b: Rows) -> tuple[Rows, Tensor, Tensor]:
    cosine = _dot(a, b)
    nudge = 0.1 * torch.finfo(cosine.dtype).eps
    on_first = torch.where(a[0].abs() < 0.7, nudge, 0.0)
    extra = [on_first, nudge - on_first, *(torch.zeros_like(on_first) for _ in a[2:])]
    chord = [torch.where(cosine < 0, q + p + e, q - p) for p, q, e in zip(a, b, extra, strict=True)]
    radial = _dot(a, chord)
    tangential = [q - radial * p for p, q in zip(a, chord, strict=True)]
    sine = _norm(tangential)
    return tangential, sine, polar_angle(sine, cosine)


def _rows(x: Tensor) -> Rows:
    """The coordinates, contiguous: a stack is stored, whereas plain strided reads would make every loop a scalar one."""
    return list(torch.stack(x.unbind(-1)).unbind(0))


def _points(rows: Rows) -> Tensor:
    return torch.stack(rows).movedim(0, -1).contiguous()


def _dot(a: Rows, b: Rows) -> Tensor:
    total = a[0] * b[0]
    for p, q in zip(a[1:], b[1:], strict=True):
        total = total + p * q
    return total


def _norm(a: Rows) -> Tensor:
    return (_dot(a, a) + tiny_square(a[0].dtype)).sqrt()
