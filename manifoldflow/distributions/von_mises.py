r"""The laws :math:`\exp(-\kappa h)` of a bounded function h of the distance: von Mises, von Mises-Fisher, matrix Fisher."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold


@dataclass(frozen=True)
class VonMisesFisher(Distribution):
    r"""The law around a point whose density falls with the cosine of the distance:

    ========== ==================================================== ====================================================
    manifold   density with respect to the volume                   name
    ========== ==================================================== ====================================================
    S^d        :math:`c\, e^{\kappa \langle \mu, x \rangle}`         von Mises-Fisher (Fisher 1953)
    T^d        :math:`c \prod_i e^{\kappa \cos(x_i - \mu_i)}`        product of von Mises
    rotations  :math:`c\, e^{\kappa\, (tr(M^T R) - 1) / 2}`          isotropic matrix Fisher (Downs 1972)
    other      :math:`c\, e^{\kappa \cos d(\mu, x)}`                 if it is compact and alike in every direction
    ========== ==================================================== ====================================================

    On a torus of another period the cosine is that of the angle that makes a turn a period. For a large kappa it is a
    Gaussian of the scale :math:`1 / \sqrt{\kappa}` radians, for 0 uniform.

    Args:
        kappa: concentration, at least 0.
        mean: the point :math:`\mu`, its numbers in a row; ``manifold.origin`` if absent.
        manifold: a compact manifold; :class:`manifoldflow.Flow` fills it in.

    Raises:
        ValueError: for another manifold, or a mean that is not on it.
    """

    kappa: float = 1.0
    mean: tuple[float, ...] | None = None
    manifold: Manifold | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < math.inf:
            raise ValueError(f"VonMisesFisher: kappa must be at least 0 and finite, got {self.kappa}")
        if self.manifold is None:
            return
        if self.manifold.is_linear:
            raise ValueError(
                f"VonMisesFisher is for spheres, tori and rotations, and compact manifolds like them, not for {self.manifold}"
            )
        log_normalizer(self.manifold, torch.tensor([self.kappa]))  # refuses what has no such law
        if self.mean is not None:
            if len(self.mean) != math.prod(self.manifold.event_shape):
                raise ValueError(f"VonMisesFisher: the mean of {self.manifold} cannot have {len(self.mean)} numbers")
            self.manifold.check(self._centre(torch.float64, None), 1e-4)

    def _centre(self, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        if self.mean is None:
            return self.space.origin((), dtype=dtype, device=device)
        return torch.tensor(self.mean, dtype=dtype, device=device).reshape(self.space.event_shape)

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        return self.space.draw_fisher(self._centre(dtype, device), self.kappa, shape, generator=generator)

    def _log_density(self, x: Tensor) -> Tensor:
        space, centre = self.space, self._centre(x.dtype, x.device)
        front = float(log_normalizer(space, torch.tensor([self.kappa], dtype=torch.float64)))
        return front - self.kappa * space.versine(centre.expand_as(x), x)


def log_normalizer(space: Manifold, kappas: Tensor) -> Tensor:
    r""":math:`\log c(\kappa)` of :math:`c\, e^{-\kappa h}` with respect to the volume; Bessel functions that do not overflow.

    h is :math:`1 - \cos` of the distance (summed over the coordinates of a torus; half of the square on flat space).

    See :meth:`Manifold.log_fisher_normalizer` of each space.

    Args:
        space: flat space, or a compact manifold that looks the same in every direction.
        kappas: concentrations.

    Returns:
        float64, the shape of ``kappas``.
    """
    return space.log_fisher_normalizer(kappas)
