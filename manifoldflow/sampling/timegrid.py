"""Time grids are data: a one-dimensional tensor of increasing or decreasing times."""

from collections.abc import Sequence

import torch
from torch import Tensor


def linear_grid(
    steps: int,
    start: float = 0.0,
    end: float = 1.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """``steps + 1`` equally spaced times from ``start`` to ``end``, either way round; both ends are exact.

    Raises:
        ValueError: if ``steps`` is below 1 or both ends are equal.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if start == end:
        raise ValueError(f"start and end of a time grid must differ, both are {start}")
    return torch.linspace(start, end, steps + 1, dtype=dtype, device=device)


def check_grid(times: Tensor) -> Tensor:
    """Raise unless ``times`` is one-dimensional with at least two entries; the values are not read (no host sync)."""
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(
            f"times must be a one-dimensional tensor of at least 2 entries, got shape {tuple(times.shape)}"
        )
    return times


def check_times(times: Tensor | Sequence[float], device: torch.device | str | None = None) -> Tensor:
    """A grid that somebody gave, as a tensor on a device.

    Raises:
        ValueError: a time is no number, or two neighbours are equal or turn back; looked at only where that costs no wait for a
            device.
    """
    grid = check_grid(torch.as_tensor(times))
    if grid.device.type == "cpu":
        step = grid.double().diff()
        if not bool(torch.isfinite(grid.double()).all()) or not bool((step > 0).all() | (step < 0).all()):
            raise ValueError(f"times must be numbers that all rise or all fall, got {grid.tolist()}")
    return grid.to(device)
