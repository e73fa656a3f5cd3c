"""Baseline networks."""

from manifoldflow.nn.features import Coordinates, FourierFeatures, PointFeatures
from manifoldflow.nn.mlp import TangentMLP

__all__ = ["Coordinates", "FourierFeatures", "PointFeatures", "TangentMLP"]
