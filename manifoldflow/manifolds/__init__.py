"""Spaces with closed-form geodesics."""

from manifoldflow.manifolds.adapter import FromGeoopt, ToGeoopt
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.checked import Checked
from manifoldflow.manifolds.euclidean import Centered, Euclidean
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.simplex import Simplex
from manifoldflow.manifolds.so3 import SO3
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.manifolds.torus import Torus

__all__ = [
    "SO3",
    "Centered",
    "Checked",
    "Euclidean",
    "FromGeoopt",
    "Manifold",
    "Simplex",
    "Sphere",
    "ToGeoopt",
    "Torus",
    "UnitQuaternion",
]
