"""Networks on manifolds without end: normal coordinates in, frame coordinates out."""

from manifoldflow.manifolds.base import Manifold
from manifoldflow.nn.features import NormalCoordinates, PointFeatures
from manifoldflow.nn.mlp import TangentMLP


class FrameMLP(TangentMLP):
    r"""A velocity field :math:`\sum_k f_k(x, t)\, e_k(x)`: a :class:`TangentMLP` that returns coordinates in the frame
    :meth:`Manifold.tangent_basis`.

    For manifolds with a smooth frame (flat space, rotations, hyperbolic space, positive-definite matrices; not spheres).
    Its speed is as large as the network's output, wherever x is, and with :class:`NormalCoordinates` grows at most linearly
    with the distance, so trajectories can't run away to infinity in finite time. With the coordinates of the point and of
    its velocity instead, an error of the network far out is multiplied by the metric.

    Args:
        manifold, width, depth, options: as for :class:`TangentMLP`, which is the same where exp is one-to-one (hyperbolic space,
            positive-definite matrices) unless it is given features.
    """

    def _in_frame(self, manifold: Manifold, features: PointFeatures | None) -> bool:
        return True


__all__ = ["FrameMLP", "NormalCoordinates"]
