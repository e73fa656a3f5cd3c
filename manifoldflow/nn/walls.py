"""A velocity field that does not cross the walls of a domain."""

from typing import Any

from torch import Tensor, nn

from manifoldflow.manifolds.base import Manifold


class NoFlux(nn.Module):
    r"""A model whose velocity loses its normal component at the walls, :meth:`Domain.without_flux`.

    The exact velocity of a flow on a convex domain has none there: no straight path leaves the domain. A network learns that
    only about, and what it lets through is missing from the mass of :meth:`Flow.log_prob`.

    Args:
        model: a velocity model of the domain.
        domain: the space.
        width: of the layer at the walls in which the normal component fades, in units of length.
    """

    def __init__(self, model: nn.Module, domain: Manifold, width: float) -> None:
        super().__init__()
        if not domain.has_walls:
            raise TypeError(
                f"NoFlux needs a domain with walls (Box, Ball, HalfSpace, ReflectedSimplex, Simplex), got {domain}"
            )
        if not width > 0:
            raise ValueError(f"NoFlux: width must be positive, got {width}")
        self.model, self.domain, self.width = model, domain, width

    def forward(self, x: Tensor, t: Tensor, *, cond: Any = None) -> Tensor:
        """Velocity at points ``(..., *event)`` and times of leading batch axes."""
        v = self.model(x, t) if cond is None else self.model(x, t, cond=cond)
        return self.domain.without_flux(x, v, self.width)
