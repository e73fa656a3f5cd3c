"""Networks on manifolds without end: normal coordinates in, frame coordinates out."""

from typing import Any

from torch import Tensor, nn

from manifoldflow.manifolds.base import Manifold
from manifoldflow.nn.features import PointFeatures
from manifoldflow.nn.mlp import TangentMLP


class NormalCoordinates(PointFeatures):
    r"""The ``dim`` coordinates of :math:`\log_o x` in the frame at the origin o: as long as x is far.

    Of hyperbolic space and positive-definite matrices, whose own coordinates grow exponentially with the distance or crowd
    at a boundary.

    Args:
        manifold: the space.

    Raises:
        ValueError: if exp is not known to be one-to-one on the manifold.
    """

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        if not manifold.is_hadamard:
            raise ValueError(
                f"NormalCoordinates needs a manifold without conjugate points (hyperbolic space, positive-definite matrices), "
                f"got {manifold}"
            )
        self.manifold, self.size = manifold, manifold.dim

    def forward(self, x: Tensor) -> Tensor:
        space = self.manifold
        origin = space.origin((), dtype=x.dtype, device=x.device)
        _, duals = space.frame_moves(origin)
        return space.log(origin.expand_as(x), x).flatten(-space.tangent_ndim) @ duals.flatten(1).mT


class FrameMLP(TangentMLP):
    r"""A velocity field :math:`\sum_k f_k(x, t)\, e_k(x)`: a :class:`TangentMLP` that returns coordinates in the frame
    :meth:`Manifold.tangent_basis`.

    For manifolds with a smooth frame (flat space, rotations, hyperbolic space, positive-definite matrices; not spheres).
    Its speed is as large as the network's output, wherever x is, and with :class:`NormalCoordinates` grows at most linearly
    with the distance, so trajectories can't run away to infinity in finite time. With the coordinates of the point and of
    its velocity instead, an error of the network far out is multiplied by the metric.

    Args:
        manifold, width, depth, options: as for :class:`TangentMLP`; ``features`` are normal coordinates by default.
    """

    def __init__(
        self,
        manifold: Manifold,
        width: int = 256,
        depth: int = 5,
        *,
        features: PointFeatures | None = None,
        **options: Any,
    ) -> None:
        super().__init__(manifold, width, depth, features=features or NormalCoordinates(manifold), **options)
        self.tangent_shape = (manifold.dim,)
        self.net[-1] = nn.Linear(width, manifold.dim)
        self.manifold: Any = _InFrame(manifold)


class _InFrame:
    """What a :class:`TangentMLP` asks of its manifold, with coordinates in the frame in place of ambient vectors."""

    any_vector_is_tangent = False

    def __init__(self, manifold: Manifold) -> None:
        self.manifold, self.event_ndim = manifold, manifold.event_ndim

    def to_tangent(self, x: Tensor, coordinates: Tensor) -> Tensor:
        space = self.manifold
        weights = coordinates.reshape(coordinates.shape + (1,) * space.tangent_ndim)
        return (weights * space.tangent_basis(x)).sum(-1 - space.tangent_ndim)


__all__ = ["FrameMLP", "NormalCoordinates"]
