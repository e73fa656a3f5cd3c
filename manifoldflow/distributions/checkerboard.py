"""Checkerboards: the test with edges."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold


@dataclass(frozen=True)
class Checkerboard(Distribution):
    """Uniform on every second field: twice the uniform density there, 0 on the others.

    On T^2 the fields are squares, on S^2 they are cut by meridians and by circles of latitude so that all have the same area.

    Args:
        rows, columns: fields along the second and the first coordinate (latitude and longitude), even numbers.
        manifold: ``Torus(2, ...)`` or ``Sphere(2)``; :class:`manifoldflow.Flow` fills it in.
    """

    rows: int = 4
    columns: int = 4
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if self.rows < 2 or self.columns < 2 or self.rows % 2 or self.columns % 2:
            raise ValueError(
                f"Checkerboard: rows and columns must be even, at least 2, got {self.rows}, {self.columns}"
            )
        if self.manifold is not None and self.manifold.dim != 2:
            raise ValueError(
                f"Checkerboard is for two dimensions, such as Torus(2) and Sphere(2), not for {self.manifold}"
            )
        if self.manifold is not None:
            self.manifold.from_shares(torch.zeros(2))  # refuses what has no such chart

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        u, v = torch.rand((2, *shape), generator=generator, dtype=dtype, device=device)
        row = (v * self.rows).floor()
        # A column of the right colour: half as many, every second one, shifted by the row.
        pair = u * (self.columns // 2)
        column = 2 * pair.floor() + row.remainder(2)
        a = (column + pair.frac()) / self.columns
        return self.space.from_shares(torch.stack([a, v], -1))

    def _log_density(self, x: Tensor) -> Tensor:
        a, b = self.space.to_shares(x).unbind(-1)
        field = (a * self.columns).floor() + (b * self.rows).floor()
        inside = math.log(2) - self.space.log_volume
        return torch.where(field.remainder(2) == 0, inside, -torch.inf)
