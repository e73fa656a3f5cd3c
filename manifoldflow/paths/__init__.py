"""Conditional paths from source to data and their schedules."""

from manifoldflow.paths.birth_death import BirthDeath
from manifoldflow.paths.dirichlet import DirichletPath
from manifoldflow.paths.dirichlet_field import dirichlet_speed
from manifoldflow.paths.geodesic import Geodesic, PathPoint
from manifoldflow.paths.interpolant import Bridge, Bump, NoiseLevel, StochasticInterpolant
from manifoldflow.paths.jumps import Jumps, Masking, UniformJump
from manifoldflow.paths.logits import NoisyPoint
from manifoldflow.paths.metric_jump import MetricJump
from manifoldflow.paths.premetric import Premetric
from manifoldflow.paths.schedule import Cosine, Exponential, Late, Linear, Polynomial, Schedule
from manifoldflow.paths.spherical_bridge import SphericalBridge

__all__ = [
    "BirthDeath",
    "Bridge",
    "Bump",
    "Cosine",
    "DirichletPath",
    "Exponential",
    "Geodesic",
    "Jumps",
    "Late",
    "Linear",
    "Masking",
    "MetricJump",
    "NoiseLevel",
    "NoisyPoint",
    "PathPoint",
    "Polynomial",
    "Premetric",
    "Schedule",
    "SphericalBridge",
    "StochasticInterpolant",
    "UniformJump",
    "dirichlet_speed",
]
