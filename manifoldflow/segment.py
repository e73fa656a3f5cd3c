"""Sums, means, maxima and softmax over ragged groups: rows that say which group they belong to.

Native torch operations; where the package torch-scatter is installed, its kernels do the sum and the maximum. The two agree
(tests), and the maximum sends its gradient to one row of every group, the first of those that reach it, by a backward of its own:
``scatter_reduce`` of torch shares it between ties.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

NATIVE_ONLY = False
"""Set to leave torch-scatter alone although it is installed."""


@lru_cache(maxsize=1)
def _installed() -> Any:
    try:
        import torch_scatter
    except (ImportError, OSError):  # built for another torch
        return None
    return torch_scatter


def scatter_package() -> Any:
    """torch-scatter if it is there and wanted, else None."""
    return None if NATIVE_ONLY else _installed()


def segment_sum(value: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums of rows, ``(count, ...)``; 0 of groups without any.

    Args:
        value: ``(M, ...)``.
        index: group of every row, ``(M,)``, from 0 to ``count`` - 1, in any order.
        count: number of groups.
    """
    package = scatter_package()
    if package is not None:
        return package.scatter_add(value, _spread(index, value), 0, dim_size=count)
    return value.new_zeros(count, *value.shape[1:]).index_add(0, index, value)


def segment_count(index: Tensor, count: int) -> Tensor:
    """Number of rows of every group, int64 ``(count,)``."""
    return torch.zeros(count, dtype=torch.long, device=index.device).index_add(0, index, torch.ones_like(index))


def segment_mean(value: Tensor, index: Tensor, count: int) -> Tensor:
    """Means of rows, ``(count, ...)``; 0 of groups without any. As :func:`segment_sum`."""
    size = segment_count(index, count).clamp_min(1).to(value.dtype)
    return segment_sum(value, index, count) / size.reshape(-1, *[1] * (value.ndim - 1))


def segment_max(value: Tensor, index: Tensor, count: int, empty: float = 0.0) -> Tensor:
    """Maxima of rows, ``(count, ...)``, element by element; ``empty`` of groups without any.

    The gradient goes to the first row that reaches the maximum. As :func:`segment_sum`.
    """
    best, arg = segment_argmax(value.detach(), index, count)
    found = value.gather(0, arg.clamp_max(max(len(value) - 1, 0))) if len(value) else best
    return torch.where(arg < len(value), found, torch.full_like(found, empty))


def segment_argmax(value: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Maxima ``(count, ...)`` and the first row that reaches each; that is M, and the maximum minus infinity, of empty groups."""
    spread, package = _spread(index, value), scatter_package()
    if package is not None and value.is_floating_point() and len(value):
        best = package.scatter_max(value, spread, 0, dim_size=count)[0]
        empty = segment_count(index, count) == 0
        best = best.masked_fill(empty.reshape(-1, *[1] * (value.ndim - 1)), -torch.inf)
    else:
        best = value.new_full((count, *value.shape[1:]), -torch.inf)
        best = best.scatter_reduce(0, spread, value, "amax", include_self=True)
    rows = torch.arange(len(value), device=value.device).reshape(-1, *[1] * (value.ndim - 1)).expand_as(value)
    reaches = torch.where(value == best.gather(0, spread), rows, len(value))
    first = torch.full_like(best, len(value), dtype=torch.long)
    return best, first.scatter_reduce(0, spread, reaches, "amin", include_self=True)


def segment_softmax(value: Tensor, index: Tensor, count: int) -> Tensor:
    """Softmax within groups, of the shape of ``value``; stable for any size of the numbers. As :func:`segment_sum`."""
    spread = _spread(index, value)
    best = segment_argmax(value.detach(), index, count)[0]
    best = torch.where(best.isfinite(), best, 0.0)
    raised = (value - best.gather(0, spread)).exp()
    return raised / segment_sum(raised, index, count).gather(0, spread)


def _spread(index: Tensor, value: Tensor) -> Tensor:
    return index.reshape(-1, *[1] * (value.ndim - 1)).expand_as(value)
