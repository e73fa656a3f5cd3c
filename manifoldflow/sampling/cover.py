"""Trajectories on folded manifolds, on the cover where they do not fold."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.sampling.steps import Velocity
from manifoldflow.state import State, expand_mask, fields, first_tensor, like


class Cover:
    r"""Manifolds that are a folded part of another one, for trajectories that leave them.

    The geodesics of the Fisher-Rao simplex are those of the sphere of :math:`z = \sqrt p`, folded back (p = z^2) where they leave
    it, and a learned field lets a few trajectories across. Backward in time such a point came from outside, where the source has
    no mass: its density is 0. Folded back it would be counted twice, and the density would integrate to more than 1. So the
    density of a flow on the simplex that lets trajectories across integrates to less than 1, by the mass of those that do.

    Args:
        spaces: manifold of the state, or a dict of them.
    """

    def __init__(self, spaces: Any) -> None:
        self.below = fields(spaces)
        self.names = {n for n, s in self.below.items() if s.cover is not s}
        self.spaces = like({n: s.cover for n, s in self.below.items()}, spaces)

    def up(self, x: State) -> State:
        """Points as points of the cover."""
        return like({n: self.below[n].lift(v) for n, v in fields(x).items()}, x)

    def down(self, z: State) -> State:
        """And back, folding."""
        return like({n: self.below[n].fold(v) for n, v in fields(z).items()}, z)

    def lift(self, velocity: Velocity) -> Velocity:
        """The field on the cover; outside it goes on as it is at the folded point."""
        if not self.names:
            return velocity

        def lifted(z: State, t: Tensor) -> State:
            v, place = fields(velocity(self.down(z), t)), fields(z)
            return like({n: self.below[n].lift_tangent(place[n], u) for n, u in v.items()}, z)

        return lifted

    def log_inside(self, z: State, mask: Tensor | None) -> Tensor:
        """0 where all of a sample lies inside, minus infinity elsewhere, ``(B,)``."""
        first = first_tensor(z)
        total = torch.zeros(first.shape[0], dtype=first.dtype, device=first.device)
        for n in self.names:
            is_out = ~self.below[n].is_inside(fields(z)[n])
            if mask is not None:
                is_out = is_out & expand_mask(mask, is_out)
            total = total.masked_fill(is_out.flatten(1).any(-1) if is_out.ndim > 1 else is_out, -torch.inf)
        return total
