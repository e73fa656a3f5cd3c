"""Conditional paths from source to data and their schedules."""

from manifoldflow.paths.geodesic import Geodesic, PathPoint
from manifoldflow.paths.schedule import Cosine, Exponential, Late, Linear, Polynomial, Schedule

__all__ = ["Cosine", "Exponential", "Geodesic", "Late", "Linear", "PathPoint", "Polynomial", "Schedule"]
