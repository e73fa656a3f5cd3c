"""Baseline networks."""

from manifoldflow.nn.features import Coordinates, FourierFeatures, LandmarkFeatures, PointFeatures
from manifoldflow.nn.frames import FrameMLP, NormalCoordinates
from manifoldflow.nn.mlp import TangentMLP
from manifoldflow.nn.nearest import NearestLandmarks
from manifoldflow.nn.resnet import TangentResNet
from manifoldflow.nn.walls import NoFlux

__all__ = [
    "Coordinates",
    "FourierFeatures",
    "FrameMLP",
    "LandmarkFeatures",
    "NearestLandmarks",
    "NoFlux",
    "NormalCoordinates",
    "PointFeatures",
    "TangentMLP",
    "TangentResNet",
]
