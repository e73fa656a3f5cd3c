"""Conditional paths from source to data and their schedules."""

from manifoldflow.paths.base import NoisyPoint, Path, PathPoint, Point, Source
from manifoldflow.paths.birth_death import BirthDeath
from manifoldflow.paths.categorical_bayes import CategoricalBayes
from manifoldflow.paths.diffusion import Diffusion, VarianceExploding, VariancePreserving
from manifoldflow.paths.dirichlet import DirichletPath
from manifoldflow.paths.dirichlet_field import dirichlet_speed
from manifoldflow.paths.gaussian_bayes import GaussianBayes
from manifoldflow.paths.geodesic import Geodesic
from manifoldflow.paths.how import Jumps
from manifoldflow.paths.interpolant import BridgeNoise, BumpNoise, NoiseLevel, StochasticInterpolant
from manifoldflow.paths.jumps import UniformJump
from manifoldflow.paths.masking import Masking
from manifoldflow.paths.metric_jump import MetricJump
from manifoldflow.paths.periodic_bayes import PeriodicBayes
from manifoldflow.paths.premetric import Premetric
from manifoldflow.paths.schedule import Annealed, Cosine, Exponential, Late, Linear, Polynomial, Schedule
from manifoldflow.paths.spherical_bridge import SphericalBridge
from manifoldflow.paths.wrapped_diffusion import WrappedDiffusion

__all__ = [
    "Annealed",
    "BirthDeath",
    "BridgeNoise",
    "BumpNoise",
    "CategoricalBayes",
    "Cosine",
    "Diffusion",
    "DirichletPath",
    "Exponential",
    "GaussianBayes",
    "Geodesic",
    "Jumps",
    "Late",
    "Linear",
    "Masking",
    "MetricJump",
    "NoiseLevel",
    "NoisyPoint",
    "Path",
    "PathPoint",
    "PeriodicBayes",
    "Point",
    "Polynomial",
    "Premetric",
    "Schedule",
    "Source",
    "SphericalBridge",
    "StochasticInterpolant",
    "UniformJump",
    "VarianceExploding",
    "VariancePreserving",
    "WrappedDiffusion",
    "dirichlet_speed",
]


def default_path(space: object) -> Path:
    """The path of a space for which none is named: unmasking or uniform jumps of tokens, the geodesic of a manifold."""
    if getattr(space, "is_discrete", False):
        return Masking() if getattr(space, "mask", False) else UniformJump()
    return Geodesic()
