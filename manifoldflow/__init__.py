"""manifoldflow: generative models of states that are not flat vectors."""

from manifoldflow import nn
from manifoldflow.checkpoint import load, save
from manifoldflow.coupling import Align, Independent, MinibatchOT, kabsch
from manifoldflow.distributions import IGSO3, Normal, ReflectedNormal, Uniform, WrappedNormal
from manifoldflow.flow import Flow
from manifoldflow.manifolds import (
    SO3,
    SPD,
    Ball,
    Box,
    Centered,
    Euclidean,
    HalfSpace,
    Lorentz,
    Mesh,
    PoincareBall,
    ReflectedSimplex,
    Simplex,
    Sphere,
    Torus,
    UnitQuaternion,
)
from manifoldflow.paths import (
    Cosine,
    Exponential,
    Geodesic,
    Late,
    Linear,
    PathPoint,
    Polynomial,
    Premetric,
    StochasticInterpolant,
)
from manifoldflow.sampling import SDE, Adaptive, linear_grid, ode_kernel, sample_sde, simulate

__version__ = "0.1.0"

__all__ = [
    "IGSO3",
    "SDE",
    "SO3",
    "SPD",
    "Adaptive",
    "Align",
    "Ball",
    "Box",
    "Centered",
    "Cosine",
    "Euclidean",
    "Exponential",
    "Flow",
    "Geodesic",
    "HalfSpace",
    "Independent",
    "Late",
    "Linear",
    "Lorentz",
    "Mesh",
    "MinibatchOT",
    "Normal",
    "PathPoint",
    "PoincareBall",
    "Polynomial",
    "Premetric",
    "ReflectedNormal",
    "ReflectedSimplex",
    "Simplex",
    "Sphere",
    "StochasticInterpolant",
    "Torus",
    "Uniform",
    "UnitQuaternion",
    "WrappedNormal",
    "kabsch",
    "linear_grid",
    "load",
    "nn",
    "ode_kernel",
    "sample_sde",
    "save",
    "simulate",
]
