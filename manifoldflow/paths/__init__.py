"""Conditional paths from source to data and their schedules."""

from manifoldflow.paths.geodesic import Geodesic, PathPoint
from manifoldflow.paths.schedule import Cosine, Exponential, Linear, Polynomial, Schedule

__all__ = ["Cosine", "Exponential", "Geodesic", "Linear", "PathPoint", "Polynomial", "Schedule"]
