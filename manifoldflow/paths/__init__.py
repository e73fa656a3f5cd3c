"""Conditional paths from source to data and their schedules."""

from manifoldflow.paths.geodesic import Geodesic, PathPoint
from manifoldflow.paths.interpolant import Bridge, Bump, NoiseLevel, StochasticInterpolant
from manifoldflow.paths.jumps import JumpPoint, Jumps, Masking, UniformJump
from manifoldflow.paths.premetric import Premetric
from manifoldflow.paths.schedule import Cosine, Exponential, Late, Linear, Polynomial, Schedule

__all__ = [
    "Bridge",
    "Bump",
    "Cosine",
    "Exponential",
    "Geodesic",
    "JumpPoint",
    "Jumps",
    "Late",
    "Linear",
    "Masking",
    "NoiseLevel",
    "PathPoint",
    "Polynomial",
    "Premetric",
    "Schedule",
    "StochasticInterpolant",
    "UniformJump",
]
