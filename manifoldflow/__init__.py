"""manifoldflow: generative models of states that are not flat vectors."""

from manifoldflow import nn
from manifoldflow.checkpoint import load, save
from manifoldflow.coupling import Align, Independent, MinibatchOT, kabsch
from manifoldflow.distributions import IGSO3, Normal, Uniform, WrappedNormal
from manifoldflow.flow import Flow
from manifoldflow.manifolds import SO3, Centered, Euclidean, Simplex, Sphere, Torus, UnitQuaternion
from manifoldflow.paths import Cosine, Exponential, Geodesic, Late, Linear, PathPoint, Polynomial
from manifoldflow.sampling import Adaptive, linear_grid, ode_kernel, simulate

__version__ = "0.1.0"

__all__ = [
    "IGSO3",
    "SO3",
    "Adaptive",
    "Align",
    "Centered",
    "Cosine",
    "Euclidean",
    "Exponential",
    "Flow",
    "Geodesic",
    "Independent",
    "Late",
    "Linear",
    "MinibatchOT",
    "Normal",
    "PathPoint",
    "Polynomial",
    "Simplex",
    "Sphere",
    "Torus",
    "Uniform",
    "UnitQuaternion",
    "WrappedNormal",
    "kabsch",
    "linear_grid",
    "load",
    "nn",
    "ode_kernel",
    "save",
    "simulate",
]
