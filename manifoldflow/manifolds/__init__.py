"""Spaces: closed-form geodesics, hyperbolic space, positive-definite matrices, domains with walls, triangle meshes."""

from manifoldflow.manifolds.adapter import FromGeoopt, ToGeoopt
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.checked import Checked
from manifoldflow.manifolds.domains import Ball, Box, Domain, HalfSpace
from manifoldflow.manifolds.euclidean import Centered, Euclidean
from manifoldflow.manifolds.hyperbolic import Lorentz, PoincareBall
from manifoldflow.manifolds.mesh import Mesh
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.reflected_simplex import ReflectedSimplex
from manifoldflow.manifolds.simplex import Simplex
from manifoldflow.manifolds.so3 import SO3
from manifoldflow.manifolds.spd import SPD, LogEuclideanSPD
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.manifolds.torus import Torus

__all__ = [
    "SO3",
    "SPD",
    "Ball",
    "Box",
    "Centered",
    "Checked",
    "Domain",
    "Euclidean",
    "FromGeoopt",
    "HalfSpace",
    "LogEuclideanSPD",
    "Lorentz",
    "Manifold",
    "Mesh",
    "PoincareBall",
    "ReflectedSimplex",
    "Simplex",
    "Sphere",
    "ToGeoopt",
    "Torus",
    "UnitQuaternion",
]
