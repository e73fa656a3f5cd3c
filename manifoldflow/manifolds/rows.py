"""Points as lists of coordinates, each a tensor of its own.

Pointwise code vectorises along the innermost axis. With the 3 to 9 numbers of one point there it gains little; with the
batch there, all it can. On a CPU that makes compiled geodesics of S^2 5 times faster (100,000 points), compiled
logarithms of rotation matrices 13 times, and the eager form of those 1.4 times.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from manifoldflow.numerics import FEW, tiny_square

F = TypeVar("F", bound=Callable[..., Any])
Rows = list[Tensor]


def for_compiler(x: Tensor) -> bool:
    """Whether ``x`` is being compiled for this CPU; not when a graph is exported, which knows neither size nor machine."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and x.device.type == "cpu"


def pays(x: Tensor) -> bool:
    """Whether ``x`` is being compiled for a CPU and large enough that rows earn the copies into them."""
    return for_compiler(x) and x.numel() >= FEW


def compiled_as(by_rows: Callable[..., Any], least: int = 0) -> Callable[[F], F]:
    """Replace a method of tensors with 2 to 4 numbers in the last axis under ``torch.compile`` on a CPU if there
    are ``least`` numbers or more; eager mode is not touched."""

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def wrapped(self: Any, x: Tensor, y: Tensor, *rest: Any) -> Any:
            if for_compiler(x) and x.numel() >= least and x.ndim > 1 and y.ndim > 1 and 2 <= x.shape[-1] <= 4:
                return by_rows(x, y, *rest)
            return method(self, x, y, *rest)

        return wrapped  # type: ignore[return-value]

    return decorate


def rows(x: Tensor, event_ndim: int = 1) -> Rows:
    """The coordinates of points ``(..., *event)``, matrices row by row.

    On a CPU they are contiguous (a stack is stored, whereas plain strided reads would make every loop a scalar one),
    unless so few that a copy costs more than it saves.
    """
    flat = x if event_ndim == 1 else x.flatten(-event_ndim)
    columns = flat.unbind(-1)
    if x.device.type != "cpu" or not (torch.compiler.is_compiling() or x.numel() >= FEW):
        return list(columns)
    return list(torch.stack(columns).unbind(0))


def points(coordinates: Rows) -> Tensor:
    """Vectors ``(..., n)`` of n coordinates: the inverse of :func:`rows`."""
    if for_compiler(coordinates[0]):
        return torch.stack(coordinates).movedim(0, -1).contiguous()
    return torch.stack(coordinates, -1)


def matrices(coordinates: Rows) -> Tensor:
    """Matrices ``(..., 3, 3)`` of 9 coordinates, row by row."""
    return points(coordinates).unflatten(-1, (3, 3))


def dot(a: Rows, b: Rows) -> Tensor:
    """Inner product, batch shape."""
    total = a[0] * b[0]
    for p, q in zip(a[1:], b[1:], strict=True):
        total = total + p * q
    return total


def norm(a: Rows) -> Tensor:
    """:func:`manifoldflow.numerics.smooth_norm` of coordinates."""
    return (dot(a, a) + tiny_square(a[0].dtype)).sqrt()


def to_unit(a: Rows) -> Rows:
    """:func:`manifoldflow.numerics.to_unit` of coordinates."""
    scale = 1.5 - 0.5 * dot(a, a)
    return [scale * p for p in a]


def times(t: Tensor | float, like: Tensor) -> Tensor | float:
    """A time with the axes of a batch; it may have fewer, and then belongs to the leading ones."""
    if isinstance(t, Tensor) and 0 < t.ndim < like.ndim:
        return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))
    return t
