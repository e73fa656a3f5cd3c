"""Checkerboards: the test with edges."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.manifolds.torus import Torus


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
        if self.manifold is not None and not (isinstance(self.manifold, Sphere | Torus) and self.manifold.dim == 2):
            raise ValueError(f"Checkerboard is for Torus(2) and Sphere(2), not for {self.manifold}")

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
        return self._place(a, v)

    def _log_density(self, x: Tensor) -> Tensor:
        a, b = self._parts(x)
        field = (a * self.columns).floor() + (b * self.rows).floor()
        inside = math.log(2) - self.space.log_volume
        return torch.where(field.remainder(2) == 0, inside, -torch.inf)

    def _place(self, a: Tensor, b: Tensor) -> Tensor:
        """The point of two shares in [0, 1)."""
        space = self.space
        if isinstance(space, Torus):
            return torch.stack([a, b], -1) * space.period
        z = 2 * b - 1
        flat = (1 - z * z).clamp_min(0).sqrt()
        return torch.stack([flat * (2 * math.pi * a).cos(), flat * (2 * math.pi * a).sin(), z], -1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        space = self.space
        if isinstance(space, Torus):
            a, b = (x / space.period).remainder(1).unbind(-1)
            return a, b
        return (torch.atan2(x[..., 1], x[..., 0]) / (2 * math.pi)).remainder(1), ((x[..., 2] + 1) / 2).clamp(
            0, 1 - 1e-7
        )
