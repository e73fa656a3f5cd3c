"""Sources, noises and their densities."""

from manifoldflow.distributions.base import Distribution
from manifoldflow.distributions.igso3 import IGSO3
from manifoldflow.distributions.mesh_bumps import MeshBumps
from manifoldflow.distributions.normal import Normal
from manifoldflow.distributions.reflected_normal import ReflectedNormal
from manifoldflow.distributions.uniform import Uniform
from manifoldflow.distributions.wrapped_normal import WrappedNormal

__all__ = ["IGSO3", "Distribution", "MeshBumps", "Normal", "ReflectedNormal", "Uniform", "WrappedNormal"]
