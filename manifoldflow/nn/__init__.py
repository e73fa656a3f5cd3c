"""Baseline networks."""

from manifoldflow.nn.features import Coordinates, FourierFeatures, LandmarkFeatures, PointFeatures
from manifoldflow.nn.mlp import TangentMLP

__all__ = ["Coordinates", "FourierFeatures", "LandmarkFeatures", "PointFeatures", "TangentMLP"]
