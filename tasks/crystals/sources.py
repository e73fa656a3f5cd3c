"""Where the cells start: a Gaussian of the logarithm of the metric tensor, fitted to data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.spd import matrix_exp, matrix_log, symmetric_basis

Six = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class LogNormalCells(Distribution):
    r"""Positive-definite 3 x 3 matrices whose logarithm is Gaussian, its six numbers in :func:`symmetric_basis` independent.

    Lengths are then log-normal, and every draw is a cell.

    Args:
        mean: of the six numbers of :math:`\log G`.
        scale: their standard deviations.
        manifold: ``SPD(3)`` or ``LogEuclideanSPD(3)``; :class:`manifoldflow.Flow` fills it in.
    """

    mean: Six = (0.0,) * 6
    scale: Six = (1.0,) * 6
    manifold: Manifold | None = None

    @staticmethod
    def fit(lattice: Tensor, floor: float = 0.03) -> "LogNormalCells":
        """The law with the means and deviations of ``lattice`` ``(M, 3, 3)``, deviations at least ``floor``."""
        numbers = lattice_numbers(lattice)
        scale = numbers.std(0).clamp_min(floor)
        return LogNormalCells(tuple(numbers.mean(0).tolist()), tuple(scale.tolist()))  # type: ignore[arg-type]

    @property
    def centre(self) -> tuple[float, ...]:
        """The cell of the mean logarithm, its nine numbers in a row."""
        basis = symmetric_basis(3, torch.float64)
        made = matrix_exp(torch.einsum("k,kij->ij", basis.new_tensor(self.mean), basis))
        return tuple(made.flatten().tolist())

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        noise = torch.randn(*shape, 6, generator=generator, dtype=dtype, device=device).double()
        numbers = noise * noise.new_tensor(self.scale) + noise.new_tensor(self.mean)
        return matrix_exp(torch.einsum("...k,kij->...ij", numbers, symmetric_basis(3, torch.float64, device))).to(dtype)

    def _log_density(self, x: Tensor) -> Tensor:
        """By the volume of the space: that of the logarithm, or for the affine-invariant metric with the factor between them."""
        numbers = lattice_numbers(x)
        scale = numbers.new_tensor(self.scale)
        off = (numbers - numbers.new_tensor(self.mean)) / scale
        flat = -0.5 * off.square().sum(-1) - scale.log().sum() - 3 * math.log(2 * math.pi)
        origin = self.space.origin(x.shape[:-2], dtype=torch.float64, device=x.device)
        factor = self.space.log_exp_volume(origin, matrix_log(x.double()))
        return (flat - factor).to(x.dtype)


def lattice_numbers(lattice: Tensor) -> Tensor:
    """The six numbers of the matrix logarithm ``(..., 6)`` of metric tensors ``(..., 3, 3)``, in double precision."""
    return torch.einsum(
        "...ij,kij->...k", matrix_log(lattice.double()), symmetric_basis(3, torch.float64, lattice.device)
    )
